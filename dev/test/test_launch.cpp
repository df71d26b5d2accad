// Runs over two hosts, and runs that are started again until they are done.
#include "dev/test/train_ranks.h"

namespace llmc::test {
namespace {

class Launch : public TrainRanks {
protected:
    const std::vector<std::string> flags = with(every_kind, {"--precision", "fp64", "--steps", "30"});

    // What must end by itself, ended after two minutes.
    static std::vector<std::string> bounded(const std::vector<std::string>& words) {
        return with({"/usr/bin/timeout", "--foreground", "--kill-after", "5", "120"}, words);
    }
    int run_words(std::vector<std::string> words, const std::vector<std::string>& more) const {
        return Process(with(std::move(words), more), output).wait();
    }
    void expect_nobody_left(const std::string& run_dir) const {
        for (int i = 0; i < 100 && !ranks_of(run_dir).empty(); i++)
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
        EXPECT_TRUE(ranks_of(run_dir).empty()) << "a process is still there";
    }
    size_t count(const std::string& part) const {
        size_t n = 0;
        const std::string text = said();
        for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at++) n++;
        return n;
    }
    void kill_a_rank_after(const std::string& run_dir, const std::string& checkpoint) const {
        ASSERT_TRUE(wait_for(dir / run_dir + "/" + checkpoint)) << said();
        const std::vector<pid_t> ranks = ranks_of(run_dir);
        ASSERT_FALSE(ranks.empty()) << said();
        ::kill(ranks[0], SIGKILL);
    }
};

// ---------------------------------------------------------------------------------------------- scripts/run_until_done
class RunUntilDone : public Launch {
protected:
    std::vector<std::string> loop(const std::vector<std::string>& more = {}) const {
        const std::string script = source_directory() + "/scripts/run_until_done.sh";
        return with(bounded({script, "--pause", "0", "--restarts", "2"}), more);
    }
};

TEST_F(RunUntilDone, AKilledRankCostsAtMostOneSaveInterval) {
    ASSERT_EQ(start(2, "whole", with(flags, {"--steps", "60"})), 0) << said();
    const auto again = with(flags, {"--steps", "60", "--save-interval", "5", "--keep", "0", "--auto-resume"});
    Process run(with(loop(), recipe(2, "run", again)), output);
    kill_a_rank_after("run", "step-00000005");
    EXPECT_EQ(run.wait(), 0) << said();
    EXPECT_EQ(count("restart 1 of 2"), 1u) << said();
    EXPECT_EQ(count("done: 60 steps"), 1u) << said();
    // The same steps as if nothing had happened, each once.
    const std::vector<json> want = log("whole", "loss"), got = log("run", "loss");
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); i++) {
        EXPECT_EQ(got[i].at("step"), want[i].at("step"));
        EXPECT_NEAR(got[i].at("loss").get<double>(), want[i].at("loss").get<double>(), 1e-9);
    }
    const std::vector<json> resumed = log("run", "event");
    ASSERT_EQ(resumed.size(), 1u);
    EXPECT_GE(resumed[0].at("step").get<int>(), 5) << "the checkpoint was there when the rank was killed";
    expect_nobody_left("run");
}

TEST_F(RunUntilDone, BadInputIsNotTriedAgain) {
    EXPECT_EQ(run_words(loop(), recipe(5, "run", {"--auto-resume"})), 2);
    EXPECT_EQ(count("cannot be distributed"), 1u) << said();
    EXPECT_EQ(count("bad input"), 1u) << said();
}

TEST_F(RunUntilDone, GivesUpWithoutANewCheckpoint) {
    const std::string fails = dir / "fails";
    write_file_atomic(fails, "#!/bin/sh\necho tried\nexit 7\n");
    std::filesystem::permissions(fails, std::filesystem::perms::owner_all);
    EXPECT_EQ(run_words(loop(), {fails, "--run-dir", dir / "run", "--auto-resume"}), 7);
    EXPECT_EQ(count("tried"), 3u) << said();
    EXPECT_EQ(count("2 restarts have brought no new checkpoint (no checkpoint): giving up"), 1u) << said();
    // A checkpoint each time keeps it going.
    write_file_atomic(fails, "#!/bin/sh\nmkdir -p \"$2\"\necho x >> \"$2/latest\"\n"
                             "[ $(wc -l < \"$2/latest\") = 6 ] || exit 7\n");
    std::filesystem::permissions(fails, std::filesystem::perms::owner_all);
    EXPECT_EQ(run_words(loop(), {fails, "--run-dir", dir / "run", "--auto-resume"}), 0) << said();
    EXPECT_EQ(count("restart 1 of 2"), 5u) << said();
}

TEST_F(RunUntilDone, ACommandThatHangsIsEnded) {
    EXPECT_EQ(run_words(loop({"--restarts", "0", "--patience", "1"}),
                        {"/bin/sh", "-c", "sleep 1000", "--run-dir", dir / "run", "--auto-resume"}), 128 + SIGKILL);
    EXPECT_EQ(count("for 1 seconds: ending the command"), 1u) << said();
}

TEST_F(RunUntilDone, ItNeedsToKnowTheRun) {
    EXPECT_EQ(run_words(loop(), {"/bin/true", "--auto-resume"}), 2);
    EXPECT_EQ(count("no --run-dir"), 1u) << said();
    EXPECT_EQ(run_words(loop(), {"/bin/true", "--run-dir", "x"}), 2);
    EXPECT_EQ(count("no --auto-resume"), 1u) << said();
    EXPECT_EQ(run_words(loop({"--again", "1"}), {"/bin/true"}), 2);
    EXPECT_EQ(count("--again is not known"), 1u) << said();
}

TEST_F(RunUntilDone, SignalsArePassedOn) {
    for (int signal : {SIGINT, SIGTERM, SIGHUP}) {
        const std::string name = str("run", signal);
        std::vector<std::string> words =
            recipe(1, name, with(flags, {"--steps", "100000", "--save-interval", "5", "--auto-resume"}));
        words.erase(words.begin(), std::find(words.begin(), words.end(), program("train_mot")));  // without mpirun
        Process run(with(loop(), words), output);
        ASSERT_TRUE(wait_for(dir / name + "/latest")) << said();
        ::kill(run.id, signal);
        EXPECT_EQ(run.wait(), 128 + signal) << said();
        EXPECT_EQ(count("interrupted after step"), 1u) << said();
        EXPECT_EQ(count("restart"), 0u) << said();
        expect_nobody_left(name);
    }
}

// ------------------------------------------------------------------------------------------------ scripts/slurm
class Slurm : public Launch {
protected:
    static constexpr int tasks = 2;

    // A directory of programs that stand in for Slurm's, first in the PATH.
    void SetUp() override {
        Launch::SetUp();
        make_directories(dir / "bin");
        std::filesystem::create_symlink(source_directory() + "/dev/test/fake_srun.sh", dir / "bin/srun");
        write_program("bin/scontrol", "echo \"scontrol $*\"\n");
    }
    void write_program(const std::string& name, const std::string& script) const {
        write_file_atomic(dir / name, "#!/bin/sh\n" + script);
        std::filesystem::permissions(dir / name, std::filesystem::perms::owner_all);
    }
    // sbatch runs the script in the directory where it was submitted.
    std::vector<std::string> batch(const std::string& script, const std::string& train_mot,
                                   const std::vector<std::string>& train_flags) const {
        std::string joined = " ";  // empty would mean the script's own
        for (const std::string& word : train_flags) joined += word + " ";
        return {"/usr/bin/env", "-C", source_directory(), "PATH=" + (dir / "bin:") + std::getenv("PATH"),
                str("FAKE_TASKS=", tasks), "SLURM_JOB_ID=4711", "TRAIN_MOT=" + train_mot, "DATA=" + data,
                "RUN_DIR=" + (dir / "run"), "FLAGS=" + joined, "/bin/bash", "scripts/slurm/" + script};
    }
    std::vector<std::string> train_flags(const std::vector<std::string>& more) const {
        const std::vector<std::string> words = recipe(tasks, "run", with({"--pattern", "2x(attention)"}, more));
        return {std::find(words.begin(), words.end(), "--threads"), words.end()};
    }
};

TEST_F(Slurm, MpiScriptTrainsInAllTasks) {
    EXPECT_EQ(run_words(batch("mpi.sbatch", program("train_mot"), train_flags({"--steps", "10"})), {}), 0) << said();
    EXPECT_EQ(count("2 processes, each: "), 1u) << said();
    EXPECT_EQ(count("done: 10 steps"), 1u) << said();
    EXPECT_EQ(count("scontrol"), 0u) << said();
}

// As Slurm does before the time limit: SIGTERM to the tasks, not to the script.
TEST_F(Slurm, TheTimeLimitSavesAndRequeues) {
    const auto endless = train_flags({"--steps", "1000000", "--save-interval", "5"});
    Process run(batch("mpi.sbatch", program("train_mot"), endless), output);
    ASSERT_TRUE(wait_for(dir / "run/latest")) << said();
    for (pid_t rank : ranks_of("run")) ::kill(rank, SIGTERM);
    EXPECT_EQ(run.wait(), 0) << said();
    EXPECT_EQ(count("interrupted after step"), 1u) << said();
    EXPECT_EQ(count("scontrol requeue 4711"), 1u) << said();
    expect_nobody_left("run");
}

TEST_F(Slurm, RequeuesEnd) {
    write_program("limit", "exit 143\n");
    const std::vector<std::string> env = {"/usr/bin/env", "MOST_REQUEUES=3"};
    EXPECT_EQ(run_words(with(env, {"SLURM_RESTART_COUNT=2"}), batch("srun.sbatch", dir / "limit", {})), 0) << said();
    EXPECT_EQ(count("scontrol requeue"), 1u) << said();
    EXPECT_EQ(run_words(with(env, {"SLURM_RESTART_COUNT=3"}), batch("srun.sbatch", dir / "limit", {})), 143) << said();
    EXPECT_EQ(count("scontrol requeue"), 0u) << said();
}

TEST_F(Slurm, BadInputIsNotRequeued) {
    EXPECT_EQ(run_words(batch("mpi.sbatch", program("train_mot"), train_flags({"--heads", "3"})), {}), 2) << said();
    EXPECT_EQ(count("scontrol"), 0u) << said();
}

// Tasks that plain srun starts meet by TCP, here in a scene of test_rendezvous, and every one has the script's flags.
TEST_F(Slurm, PlainSrunsTasksMeet) {
    const std::string other = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "test_rendezvous";
    if (!path_exists(other)) GTEST_SKIP() << "the program " << other << " is not built";
    write_program("meets", "echo \"flags: $*\"\nexec " + other +
                               " --gtest_filter=DISABLED_Scene.Talks --gtest_also_run_disabled_tests\n");
    EXPECT_EQ(run_words(batch("srun.sbatch", dir / "meets", {"--steps", "7"}), {}), 0) << said();
    for (int rank : {0, 1}) EXPECT_EQ(count(str("rank ", rank, " of 2, ", rank, " of 2 here")), 1u) << said();
    EXPECT_EQ(count("--auto-resume --threads 1 --steps 7"), 2u) << said();
    // On CPUs, plain srun is refused.
    EXPECT_EQ(run_words(batch("srun.sbatch", program("train_mot"), train_flags({"--steps", "10"})), {}), 2) << said();
    EXPECT_EQ(count("use srun --mpi=pmix"), 2u) << said();
}

// ------------------------------------------------------------------------------------------------ two hosts
class TwoHosts : public Launch {
protected:
    const std::string hosts = source_directory() + "/dev/test/two_hosts.sh";
    std::vector<std::string> two_hosts() const { return {hosts, dir.path}; }

    void SetUp() override {
        Launch::SetUp();
        if (IsSkipped()) return;
        if (run_words(two_hosts(), {"/bin/true"}) == 77) GTEST_SKIP() << said();
        write_file_atomic(dir / "hostfile", "east slots=2\nwest slots=2\n");
    }
    // Two processes on each.
    std::vector<std::string> on_both(const std::string& run_dir, const std::vector<std::string>& more) const {
        return recipe(4, run_dir, more, {"--hostfile", dir / "hostfile", "--mca", "plm_rsh_agent", dir / "agent",
                                         "--mca", "btl", "tcp,self"});
    }
};

TEST_F(TwoHosts, TakeTheSameStepsAsOneProcess) {
    const auto few = with(flags, {"--steps", "10"});
    ASSERT_EQ(start(1, "one", few), 0) << said();
    ASSERT_EQ(run_words(two_hosts(), on_both("two", few)), 0) << said();
    expect_equal_logs("two", "one", 1e-9);
}

// Open MPI's mpirun waits for a host that it cannot reach; the restart loop does not.
TEST_F(TwoHosts, ACutCableEndsTheRunWhichGoesOn) {
    const auto endless = with(flags, {"--steps", "100000", "--save-interval", "5", "--comm-timeout", "2",
                                      "--auto-resume"});
    const std::vector<std::string> loop = {source_directory() + "/scripts/run_until_done.sh", "--restarts", "0",
                                           "--patience", "6"};
    Process run(bounded(with(with(two_hosts(), loop), on_both("run", endless))), output);
    ASSERT_TRUE(wait_for(dir / "run/latest")) << said();
    write_file_atomic(dir / "cut", "");
    EXPECT_EQ(run.wait(), 128 + SIGKILL) << said();
    EXPECT_GE(count("rank 0 (east): ") + count("rank 1 (east): "), 1u) << said();
    EXPECT_GE(count(" takes more than 2 seconds (--comm-timeout)"), 1u) << said();
    expect_nobody_left("run");
    const int64_t step = std::stoll(read_file(dir / "run/latest").substr(5));
    ASSERT_EQ(start(2, "run", {"--resume", "--steps", std::to_string(step + 3)}), 0) << said();
    EXPECT_EQ(log("run", "loss").back().at("step").get<int64_t>(), step + 3);
}

}  // namespace
}  // namespace llmc::test
