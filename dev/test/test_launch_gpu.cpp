// train_mot on two emulated GPUs, its processes started by mpirun, by plain srun and by torchrun: the same training,
// and the end of it if one is killed.
#include "dev/test/train_ranks.h"
#include "llmc/comm/backend.h"
#include "llmc/ops/ops.h"

namespace llmc::test {
namespace {

class LaunchGpu : public TrainRanks {
protected:
    const std::string fake_srun = source_directory() + "/dev/test/fake_srun.sh";
    const std::string job = str(::getpid());

    void SetUp() override {
        Context ctx({.counting = true});
        if (backend_description(ctx).find("emulated") == std::string::npos) GTEST_SKIP() << "for the emulated GPU";
        if (transport_needs_mpi()) GTEST_SKIP() << "this build knows one process";
        TrainRanks::SetUp();
        ::setenv("EMU_DEVICES", "2", 1);
        ::setenv("OMP_WAIT_POLICY", "passive", 0);  // there are more threads than CPUs
    }
    void TearDown() override { ::unsetenv("EMU_DEVICES"); }

    std::vector<std::string> without_mpirun(const std::string& run_dir, const std::vector<std::string>& flags) const {
        const std::vector<std::string> words = recipe(2, run_dir, flags);
        return {std::find(words.begin(), words.end(), program("train_mot")), words.end()};
    }
    std::vector<std::string> srun(const std::string& run_dir, const std::vector<std::string>& flags) const {
        return with({"/usr/bin/env", "FAKE_TASKS=2", "SLURM_JOB_ID=" + job, fake_srun, "--mpi=none"},
                    without_mpirun(run_dir, flags));
    }
    std::vector<std::string> torchrun(int rank, const std::string& run_dir,
                                      const std::vector<std::string>& flags) const {
        return with({"/usr/bin/env", str("RANK=", rank), str("LOCAL_RANK=", rank), "WORLD_SIZE=2",
                     "MASTER_ADDR=127.0.0.1", "MASTER_PORT=29500", "TORCHELASTIC_USE_AGENT_STORE=True",
                     "TORCHELASTIC_RUN_ID=" + job},
                    without_mpirun(run_dir, flags));
    }
    void start_srun(const std::string& run_dir, const std::vector<std::string>& flags) const {
        ASSERT_EQ(Process(srun(run_dir, flags), output).wait(), 0) << said();
    }
    void start_torchrun(const std::string& run_dir, const std::vector<std::string>& flags) const {
        const Process second(torchrun(1, run_dir, flags), dir / "second"), first(torchrun(0, run_dir, flags), output);
        EXPECT_EQ(first.wait(), 0) << said();
        ASSERT_EQ(second.wait(), 0) << read_file(dir / "second");
    }
    // Which of the run's processes srun called this rank.
    pid_t process_of(int rank, const std::string& run_dir) const {
        const std::string variable = str('\0', "SLURM_PROCID=", rank, '\0');
        for (pid_t id : ranks_of(run_dir))
            if (read_file(str("/proc/", id, "/environ")).find(variable) != std::string::npos) return id;
        return 0;
    }
};

TEST_F(LaunchGpu, EveryLauncherTakesTheSameSteps) {
    const auto common = with(every_kind, {"--steps", "4", "--eval-interval", "2", "--eval-batches", "4"});
    ASSERT_EQ(start(1, "one", common), 0) << said();
    // Sums of gradients; then also parts of parameters, and tokens that travel to their experts.
    for (const auto& [name, more] : {std::pair("whole", std::vector<std::string>{}),
                                     {"divided", {"--shard", "parameters", "--expert-parallel", "2"}}}) {
        SCOPED_TRACE(name);
        const std::string mpirun = str(name, "-mpirun"), srun = str(name, "-srun"), torchrun = str(name, "-torchrun");
        ASSERT_EQ(start(2, mpirun, with(common, more)), 0) << said();
        expect_equal_logs(mpirun, "one", 1e-5);
        start_srun(srun, with(common, more));
        expect_equal_logs(srun, mpirun, 0);
        start_torchrun(torchrun, with(common, more));
        expect_equal_logs(torchrun, mpirun, 0);
    }
}

TEST_F(LaunchGpu, AKilledRankEndsTheOtherWithinSeconds) {
    for (int killed : {1, 0}) {
        const std::string run_dir = str("run", killed);
        Process run(srun(run_dir, with(every_kind, {"--steps", "100000", "--save-interval", "2"})), output);
        ASSERT_TRUE(wait_for(dir / run_dir + "/latest")) << said();
        const pid_t victim = process_of(killed, run_dir), other = process_of(1 - killed, run_dir);
        ASSERT_TRUE(victim && other) << said();
        ::kill(victim, SIGKILL);
        for (int i = 0; i < 100 && alive(other); i++) std::this_thread::sleep_for(std::chrono::milliseconds(100));
        EXPECT_FALSE(alive(other)) << "after ten seconds the other rank is still there: " << said();
        if (alive(other)) ::kill(other, SIGKILL);
        EXPECT_EQ(run.wait(), 128 + SIGKILL) << said();
        EXPECT_NE(said().find(str("rank ", 1 - killed, " (")), std::string::npos) << said();
        EXPECT_NE(said().find(str("): rank ", killed, " (")), std::string::npos) << said();
        EXPECT_NE(said().find(") is gone: "), std::string::npos) << said();
    }
}

}  // namespace
}  // namespace llmc::test
