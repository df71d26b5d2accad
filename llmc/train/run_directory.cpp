#include "llmc/train/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <thread>
#include <utility>

#include "llmc/base/errors.h"
#include "llmc/base/files.h"
#include "llmc/planner/plan.h"
#include "llmc/train/log.h"
#include "llmc/train/resume.h"

namespace llmc {

using nlohmann::json;

namespace {

// "process 123 on east"
std::string this_process() {
    char host[256] = "";
    ::gethostname(host, sizeof host - 1);
    return str("process ", ::getpid(), " on ", *host ? host : "unnamed host");
}

// The first line of the lock's file.
std::string first_line(int fd) {
    char text[300];
    const ssize_t size = ::pread(fd, text, sizeof text, 0);
    const std::string line(text, size_t(std::max<ssize_t>(size, 0)));
    return line.substr(0, line.find('\n'));
}

bool names_a_process(const std::string& line) { return line.compare(0, 8, "process ") == 0; }

// What the holder has written about itself; it may not have come to it yet.
std::string holder(int fd) {
    const std::string line = first_line(fd);
    return names_a_process(line) ? line : "another process";
}

// For the message to others. A file of that name that someone else made keeps its text.
void write_holder(int fd) {
    const std::string line = first_line(fd), text = this_process() + "\n";
    if (!line.empty() && !names_a_process(line)) return;
    [[maybe_unused]] const bool written =  // a message without a name is good enough
        ::ftruncate(fd, 0) == 0 && ::pwrite(fd, text.data(), text.size(), 0) > 0;
}

// 0, or the error: EWOULDBLOCK if another process keeps the lock for some seconds.
int lock_patiently(int fd) {
    using namespace std::chrono;
    for (const auto end = steady_clock::now() + seconds(3);; std::this_thread::sleep_for(milliseconds(100))) {
        if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return 0;
        if (errno != EWOULDBLOCK || steady_clock::now() > end) return errno;
    }
}

}  // namespace

RunLock::~RunLock() {
    if (fd >= 0) ::close(fd);
}

RunLock::RunLock(RunLock&& other) noexcept : fd(std::exchange(other.fd, -1)) {}

bool RunLock::take(const std::string& run_dir) {
    if (fd >= 0) return true;
    std::error_code error;
    if (!std::filesystem::is_directory(run_dir, error)) return false;
    const std::string path = run_dir + "/" + file;
    fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) input_error("--run-dir ", run_dir, " cannot be used: cannot open ", path, ": ", std::strerror(errno));
    const int problem = lock_patiently(fd);
    if (problem == EWOULDBLOCK)
        input_error("--run-dir ", run_dir, " is in use by ", holder(fd), ": wait for its end, or choose another one");
    if (problem)
        std::fprintf(stderr, "warning: nothing keeps other runs away from %s: its filesystem has no locks (%s)\n",
                     run_dir.c_str(), std::strerror(problem));
    write_holder(fd);
    return true;
}

bool RunLock::make(const std::string& run_dir) {
    if (fd >= 0) return false;
    try {
        make_directories(run_dir);
    } catch (const RunError& error) {
        input_error("--run-dir ", run_dir, " cannot be used: ", error.what());
    }
    return take(run_dir);
}

void take_on_all(RunLock& lock, const std::string& run_dir, World& world) {
    std::string problem;
    try {
        if (world.rank == 0) lock.take(run_dir);
    } catch (const InputError& error) {
        problem = error.what();
    }
    problem = world.all_gather(problem)[0];
    if (!problem.empty()) input_error(problem);
}

namespace {

// Called by all ranks for the same checkpoint: what any of them finds wrong with it, or "".
std::string problem_of(const std::string& directory, std::optional<Checkpoint>& opened, World& world) {
    std::string problem;
    try {
        opened = open_checkpoint(directory);
        check_training_state(*opened);
        verify_checkpoint(*opened, world);
        opened->verified = true;
    } catch (const InputError& error) {
        problem = error.what();
    }
    for (const std::string& theirs : world.all_gather(problem))
        if (!theirs.empty()) return theirs;
    return "";
}

}  // namespace

// Rank 0 names one checkpoint after the other, until one is right for all ranks or there are no more.
std::optional<Checkpoint> find_checkpoint(const std::string& run_dir, World& world) {
    std::optional<Checkpoint> found;
    auto check = [&](const Checkpoint& candidate) {
        world.all_gather(candidate.directory);
        std::optional<Checkpoint> opened;
        if (const std::string problem = problem_of(candidate.directory, opened, world); !problem.empty())
            input_error(problem);
    };
    if (world.rank == 0) {
        found = find_latest(run_dir, check);
        if (found) found->verified = true;
        world.all_gather("");
        return found;
    }
    for (std::string named; !(named = world.all_gather("")[0]).empty();)
        if (!problem_of(named, found, world).empty()) found.reset();
    return found;
}

void refuse_second_run(const std::string& run_dir) {
    input_error(run_dir, " holds a run already: go on with --resume, or choose another --run-dir");
}

void prepare_run_directory(const std::string& run_dir, RunLock& lock, const json& identity, const Dataset& data,
                           const std::optional<Checkpoint>& found) {
    if (lock.make(run_dir) && find_latest(run_dir)) refuse_second_run(run_dir);
    start_run_directory(run_dir, identity, data);
    const std::string log_path = run_dir + "/log.jsonl";
    if (!found)
        std::filesystem::remove(log_path);  // of a run that ended before its first checkpoint
    else if (const TruncatedLog cut = truncate_after_step(log_path, found->step); cut.unreadable > 1)
        std::fprintf(stderr, "warning: %lld lines of %s were damaged and are gone\n",
                     static_cast<long long>(cut.unreadable), log_path.c_str());
}

std::string space_warning(const std::string& run_dir, int64_t room, int64_t bytes, int64_t saves, int64_t keep) {
    if (room < 0) return "";
    // One that is whole stays until the next is written; older ones make room for it.
    const int64_t wanted = keep ? std::min(saves, std::max<int64_t>(keep, 2)) : saves, fitting = room / bytes;
    if (fitting >= wanted) return "";
    return str("the disk of ", run_dir, " has room for ", fitting, " checkpoints of ", bytes_text(double(bytes)),
               ", and this run needs ", wanted, " (--keep ", keep, ", --save-interval): ",
               fitting < 2 || !keep ? "saving will fail" : "older ones will be deleted earlier",
               "; free some space, or choose another --run-dir");
}

void check_shared(const std::string& run_dir, const json& identity, World& world) {
    world.barrier();
    std::string problem;
    for (int tries = 10; tries > 0; tries--) {  // a network filesystem may take a while
        try {
            problem = read_file(run_dir + "/run.json") == run_json(identity) ? "" : "another run.json";
        } catch (const InputError& error) {
            problem = error.what();
        }
        if (problem.empty()) break;
        std::this_thread::sleep_for(std::chrono::seconds(1));
    }
    const std::vector<std::string> problems = world.all_gather(problem), hosts = world.all_gather(world.host);
    for (size_t rank = 0; rank < problems.size(); rank++)
        if (!problems[rank].empty())
            input_error("--run-dir ", run_dir, " is not the same directory on ", hosts[rank], " as on ", hosts[0], " (",
                        problems[rank], "): choose one on a filesystem that all hosts share");
}

}  // namespace llmc
