#include "llmc/comm/watchdog.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "llmc/base/errors.h"
#include "llmc/comm/comm.h"

namespace llmc {

namespace {

double seconds_since_boot() {  // the same for all processes of the host
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return double(now.tv_sec) + double(now.tv_nsec) * 1e-9;
}

void write(std::atomic<char> (&to)[32], const char* text) {
    size_t i = 0;
    for (; i + 1 < std::size(to) && text[i]; i++) to[i].store(text[i], std::memory_order_relaxed);
    to[i].store('\0', std::memory_order_relaxed);
}

// "all_reduce of 4096 bytes"
std::string text_of(const Activity& activity) {
    std::string text;
    for (const std::atomic<char>& c : activity.what) {
        if (!c.load()) break;
        text += c.load();
    }
    return activity.bytes.load() ? str(text, " of ", activity.bytes.load(), " bytes") : text;
}

Activity& activity_of(int rank, std::span<Activity> activities) {
    for (Activity& activity : activities)
        if (activity.rank == rank) return activity;
    run_error("rank ", rank, " has no entry in the shared memory of its host");
}

}  // namespace

Watchdog::Watchdog(const World& w, std::span<Activity> all)
    : world(w), activities(all), mine(activity_of(w.rank, all)), launcher(::getppid()), thread([this] { watch(); }) {}

Watchdog::~Watchdog() {
    {
        std::lock_guard lock(mutex);
        stop = true;
    }
    changed.notify_one();
    thread.join();
}

void Watchdog::set_timeout(double seconds) {
    std::lock_guard lock(mutex);
    timeout = seconds;
    changed.notify_one();
}

void Watchdog::begin(const char* what, int64_t bytes) {
    if (depth++ > 0) return;
    write(mine.what, what);
    mine.bytes = bytes;
    mine.since = seconds_since_boot();
}

void Watchdog::end() {
    if (--depth == 0) mine.since = 0;
}

std::list<Watchdog::Question>::iterator Watchdog::add(Question question) {
    std::lock_guard lock(mutex);
    return questions.insert(questions.end(), std::move(question));
}

void Watchdog::remove(std::list<Question>::iterator question) {
    std::lock_guard lock(mutex);
    questions.erase(question);
}

std::string Watchdog::what_others_do() const {
    std::string text;
    for (const Activity& other : activities) {
        if (other.rank == mine.rank) continue;
        text += str(text.empty() ? "" : ", ", "rank ", other.rank, " is in ",
                    other.since.load() > 0 ? text_of(other) : "no collective");
    }
    return text.empty() ? "" : "; " + text;
}

// What must end this process; nothing if all is well.
std::string Watchdog::problem() const {
    if (::getppid() != launcher) return "the launcher is gone";
    const double since = mine.since.load();
    if (since > 0 && seconds_since_boot() - since > timeout)
        return str(text_of(mine), " takes more than ", timeout, " seconds (--comm-timeout)", what_others_do());
    for (const Question& question : questions)
        if (std::string text = question(timeout); !text.empty()) return text + what_others_do();
    return "";
}

void Watchdog::watch() {
    std::unique_lock lock(mutex);
    while (!stop) {
        changed.wait_for(lock, std::chrono::duration<double>(std::clamp(timeout / 8, 0.01, 1.0)));
        if (stop) return;
        const std::string text = problem();
        if (text.empty()) continue;
        std::fprintf(stderr, "rank %d (%s): %s\n", world.rank, world.host.c_str(), text.c_str());
        std::fflush(stderr);
        // Not MPI_Abort, which is not for this thread: the launcher ends a job of which a process failed.
        ::_exit(1);
    }
}

}  // namespace llmc
