// Nothing that happens while saving a checkpoint (failing writes, a full disk, a kill) costs the one before.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <fstream>

#include "dev/test/checkpoint_run.h"
#include "dev/test/child.h"
#include "llmc/base/files.h"
#include "llmc/base/rng.h"

using namespace llmc;
using namespace llmc::test;

// The system calls that change what is on disk, replaced for this program: each is a moment to be killed at.
namespace {
int moments = 0, last_moment = 0;  // a count of them; the one that kills, 0: none
void moment() {
    if (++moments == last_moment) raise(SIGKILL);
}
}  // namespace
extern "C" {
int rename(const char* from, const char* to) noexcept {
    moment();
    return int(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int unlinkat(int directory, const char* name, int flags) noexcept {
    moment();
    return int(syscall(SYS_unlinkat, directory, name, flags));
}
int fsync(int file) {
    moment();
    return int(syscall(SYS_fsync, file));
}
ssize_t pwrite(int file, const void* bytes, size_t size, off_t offset) {
    moment();
    return ssize_t(syscall(SYS_pwrite64, file, bytes, size, offset));
}
}

// RLIMIT_FSIZE stands in for a full disk where no small disk can be mounted: every write beyond it fails.
TEST_F(CheckpointTest, WritesThatFailLeaveTheOldCheckpoint) {
    TestRun run(directory, ctx, 500);  // 10 kB model, 10 kB optimizer
    run.save(1);
    EXPECT_EQ(in_child([&] {
        signal(SIGXFSZ, SIG_IGN);
        rlimit limit{};
        getrlimit(RLIMIT_FSIZE, &limit);
        for (rlim_t bytes : {0, 10, 300, 5000, 10000}) {
            limit.rlim_cur = bytes;
            setrlimit(RLIMIT_FSIZE, &limit);
            try {
                run.save(2, 1);
                _exit(1);
            } catch (const RunError& e) {
                if (!std::string(e.what()).starts_with("could not save the checkpoint of step 2: ")) _exit(2);
            }
            if (run.load(directory) != 1) _exit(3);
            if (listing() != Names{"latest", "step-00000001"}) _exit(4);
        }
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_FSIZE, &limit);
        run.save(2, 1);  // tried again, with room
        if (run.load(directory) != 2) _exit(5);
    }), 0);
    EXPECT_EQ(run.load(directory), 2);
}

// A real full disk: a tmpfs of 256 kB in a mount namespace of the child's own, with ever less room, so that the disk
// gets full in every file and at every rename.
TEST_F(CheckpointTest, FullDiskLeavesTheOldCheckpoint) {
    TestRun run(directory, ctx, 500);
    int code = in_child([&] {
        if (unshare(CLONE_NEWNS | (geteuid() == 0 ? 0 : CLONE_NEWUSER)) != 0 ||
            mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
            mount("tmpfs", directory.c_str(), "tmpfs", 0, "size=256k") != 0)
            _exit(77);
        run.save(1);
        int failed = 0, saved = 0;
        int64_t current = 1;
        for (int64_t ballast = 55; ballast >= 20; ballast--) {  // pages
            std::ofstream(directory + "/ballast") << std::string(size_t(ballast * 4096), 'x');
            try {
                run.save(current + 1, 1);
                current++, saved++;
            } catch (const RunError& e) {
                failed++;
                if (std::string(e.what()).find("No space left on device") == std::string::npos) throw;
            }
            Checkpoint c = open_checkpoint(directory);
            if (run.load(directory) != current || !c.note.empty()) _exit(1);
            std::filesystem::remove(directory + "/ballast");
        }
        if (failed < 5 || saved < 5) _exit(2);
    });
    if (code == 77) GTEST_SKIP() << "mounting a tmpfs is not permitted here";
    EXPECT_EQ(code, 0);
}

// A disk with room for two: a run that keeps two, or more, goes on, and one that is whole is always there.
TEST_F(CheckpointTest, OldCheckpointsMakeRoomOnAFullDisk) {
    TestRun run(directory, ctx, 2500);  // 50 kB a file
    const int code = in_child([&] {
        if (unshare(CLONE_NEWNS | (geteuid() == 0 ? 0 : CLONE_NEWUSER)) != 0 ||
            mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
            mount("tmpfs", directory.c_str(), "tmpfs", 0, "size=300k") != 0)
            _exit(77);
        for (int64_t step = 1; step <= 6; step++) run.save(step, step % 2 ? 2 : 5);
        if (run.load(directory) != 6) _exit(1);
        // The newest is damaged, so the one before it is the one that stays.
        const std::string newest = directory + "/step-00000006/model.safetensors";
        std::string bytes = read_file(newest);
        bytes.back() ^= 1;
        std::ofstream(newest, std::ios::binary) << bytes;
        std::ofstream(directory + "/ballast") << std::string(40 << 10, 'x');
        try {
            run.save(7, 2);
        } catch (const RunError&) {
            _exit(run.load(directory + "/step-00000005") == 5 ? 3 : 2);
        }
        if (run.load(directory) != 7) _exit(4);
    });
    if (code == 77) GTEST_SKIP() << "mounting a tmpfs is not permitted here";
    EXPECT_EQ(code, 0);
}

// Killed before every single system call of a save, once of a new step and once of a step that is replaced, with only
// one checkpoint kept.
TEST_F(CheckpointTest, AKillAtEveryMomentLeavesALoadableCheckpoint) {
    TestRun run(directory, ctx);
    for (int64_t step : {1, 2}) {
        int killed = 0;
        for (bool finished = false; !finished; killed += !finished) {
            run.save(1, 1);  // also cleans up after the kill before
            EXPECT_EQ(listing(), (Names{"latest", "step-00000001"}));
            int code = in_child([&] {
                last_moment = moments + 1 + killed;
                run.save(step, 1);
            });
            finished = code == 0;
            EXPECT_EQ(code, finished ? 0 : killed_by(SIGKILL));
            int64_t loaded = run.load(directory);
            EXPECT_TRUE(loaded == step || (loaded == 1 && !finished)) << "killed at moment " << killed;
        }
        EXPECT_GT(killed, 20);
    }
}

TEST_F(CheckpointTest, AKillAtAnyTimeLeavesALoadableCheckpoint) {
    TestRun run(directory, ctx, 20000);  // 400 kB a file
    run.save(1, 2);
    RandomStream random(1, "when to kill");
    for (uint64_t round = 0; round < 10; round++) {
        pid_t pid = fork();
        if (pid == 0) {
            for (int64_t i = 0;; i++) run.save(2 + i / 2, 2);  // every step twice
        }
        usleep(useconds_t(random.bits(round) % 40000));
        kill(pid, SIGKILL);
        waitpid(pid, nullptr, 0);
        EXPECT_GE(run.load(directory), 1) << "round " << round;
    }
    run.save(1'000'000, 1);  // cleans up after all of them
    EXPECT_EQ(listing(), (Names{"latest", "step-01000000"}));
}
