// One run at a time writes to a run directory.
#include "dev/test/train_mot_test.h"
#include "dev/test/train_ranks.h"
#include "llmc/train/run_directory.h"

namespace llmc::test {
namespace {

using namespace std::chrono_literals;

class RunLocks : public TrainRanks {
protected:
    Process start_long(const std::string& run_dir, const std::string& says, const char* steps = "100000") const {
        return Process(command(run_dir, {"--steps", steps, "--save-interval", "20"}), says);
    }
    std::vector<std::string> command(const std::string& run_dir, const std::vector<std::string>& more) const {
        std::vector<std::string> words = recipe(1, run_dir, with({"--pattern", "attention mot"}, more));
        words.erase(words.begin(), std::find(words.begin(), words.end(), program("train_mot")));  // without mpirun
        return words;
    }
    int resume(const std::string& run_dir, int64_t more_steps) const {
        const int64_t steps = std::stoll(read_file(dir / run_dir + "/latest").substr(5)) + more_steps;
        return Process(command(run_dir, {"--resume", "--steps", std::to_string(steps)}), output).wait();
    }
};

TEST_F(RunLocks, ASecondRunIsRefusedWithTheNameOfTheFirst) {
    ASSERT_EQ(Process(command("mot", {"--steps", "3"}), output).wait(), 0) << said();
    const Process first = start_long("run", dir / "first.txt");
    ASSERT_TRUE(wait_for(dir / "run/latest")) << read_file(dir / "first.txt");
    const std::vector<std::vector<std::string>> others = {
        command("run", {"--steps", "3"}),
        command("run", {"--auto-resume", "--steps", "3"}),
        recipe(2, "run", with({"--pattern", "attention mot"}, {"--auto-resume", "--steps", "3"})),
        {program("train_mot"), "transition", "--from", dir / "mot", "--to", "token-choice", "--data", data, "--run-dir",
         dir / "run", "--threads", "1"},
        {program("train_gpt"), "--data", data, "--run-dir", dir / "run", "--threads", "1"}};
    std::vector<Process> processes;
    for (size_t i = 0; i < others.size(); i++) processes.emplace_back(others[i], dir / str(i, ".txt"));
    for (size_t i = 0; i < others.size(); i++) {
        EXPECT_EQ(processes[i].wait(), 2) << i;
        const std::string text = read_file(dir / str(i, ".txt")), name = str("is in use by process ", first.id, " on ");
        EXPECT_NE(text.find(name), std::string::npos) << i << ": " << text;
    }
    ::kill(first.id, SIGTERM);
    EXPECT_EQ(first.wait(), 143) << read_file(dir / "first.txt");
    EXPECT_TRUE(log("run", "event").empty());  // nobody has resumed it
    EXPECT_EQ(resume("run", 1), 0) << said();
}

// Neither sees a directory when it looks first.
TEST_F(RunLocks, OfTwoThatBeginTogetherOneGoesOn) {
    Process processes[] = {start_long("run", dir / "0.txt", "5000"), start_long("run", dir / "1.txt", "5000")};
    int status = 0;
    const pid_t refused = ::waitpid(-1, &status, 0);
    EXPECT_EQ(ending_of(status), 2);
    const Process& other = processes[processes[0].id == refused];
    ASSERT_TRUE(wait_for(dir / "run/latest"));
    ::kill(other.id, SIGTERM);
    EXPECT_EQ(other.wait(), 143);
    const std::vector<json> records = log("run", "loss");
    for (size_t i = 0; i < records.size(); i++) ASSERT_EQ(records[i].at("step"), i + 1);
}

TEST_F(RunLocks, AKilledRunLeavesNoLock) {
    const Process first = start_long("run", dir / "first.txt");
    ASSERT_TRUE(wait_for(dir / "run/latest")) << read_file(dir / "first.txt");
    ::kill(first.id, SIGKILL);
    EXPECT_EQ(first.wait(), killed_by(SIGKILL));
    EXPECT_EQ(resume("run", 1), 0) << said();
    EXPECT_TRUE(path_exists(dir / "run/lock"));
}

TEST_F(RunLocks, ATransitionTakesADirectoryThatHoldsOnlyALock) {
    ASSERT_EQ(Process(command("mot", {"--steps", "3"}), output).wait(), 0) << said();
    make_directories(dir / "sparse");
    write_file_atomic(dir / "sparse/lock", "process 1 on another host\n");
    const std::vector<std::string> words = {program("train_mot"), "transition", "--from", dir / "mot", "--to",
                                            "token-choice",       "--data",     data,     "--run-dir", dir / "sparse",
                                            "--threads",          "1"};
    EXPECT_EQ(Process(words, output).wait(), 0) << said();
    EXPECT_EQ(read_file(dir / "sparse/lock").find("process 1 on another"), std::string::npos);
}

}  // namespace

// A program that a run starts does not keep the lock.
TEST(RunLock, IsNotInherited) {
    const TempDir dir;
    RunLock lock;
    EXPECT_TRUE(lock.take(dir.path));
    EXPECT_FALSE(lock.make(dir.path));
    int keeping = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
        std::error_code gone;
        if (std::filesystem::read_symlink(entry.path(), gone) != dir.path + "/lock") continue;
        keeping++;
        EXPECT_TRUE(::fcntl(std::stoi(entry.path().filename()), F_GETFD) & FD_CLOEXEC);
    }
    EXPECT_EQ(keeping, 1);
    EXPECT_EQ(read_file(dir.path + "/lock").find("process "), 0u);
    EXPECT_FALSE(RunLock().take(dir.path + "/absent"));
    EXPECT_TRUE(RunLock().make(dir.path + "/new/deep"));
    EXPECT_THROW(RunLock().make("/proc/no/such/place"), InputError);
}

TEST(RunLock, ATextOfSomeoneElseStays) {
    const TempDir dir;
    write_file_atomic(dir.path + "/lock", "combination 1234\n");
    EXPECT_TRUE(RunLock().take(dir.path));
    EXPECT_EQ(read_file(dir.path + "/lock"), "combination 1234\n");
}

TEST(Space, IsWarnedOfWhereItIsShort) {
    constexpr int64_t mib = 1 << 20;
    auto warning = [](int64_t room, int64_t saves, int64_t keep) {
        return space_warning("RUN", room, mib, saves, keep);
    };
    EXPECT_EQ(warning(3 * mib, 100, 3), "");
    EXPECT_EQ(warning(2 * mib, 100, 1), "");
    EXPECT_EQ(warning(2 * mib, 2, 5), "");
    EXPECT_EQ(warning(100 * mib, 100, 0), "");
    EXPECT_EQ(warning(-1, 100, 3), "") << "not known";
    EXPECT_EQ(warning(3 * mib - 1, 100, 3),
              "the disk of RUN has room for 2 checkpoints of 1.00 MiB, and this run needs 3 (--keep 3, "
              "--save-interval): older ones will be deleted earlier; free some space, or choose another --run-dir");
    EXPECT_NE(warning(2 * mib - 1, 100, 1).find("1 checkpoints of 1.00 MiB, and this run needs 2"), std::string::npos);
    EXPECT_NE(warning(99 * mib, 100, 0).find("saving will fail"), std::string::npos);
    EXPECT_NE(warning(0, 1, 1).find("saving will fail"), std::string::npos);
}

}  // namespace llmc::test
