// train_mot in several processes: a step is the same however its micro-batches are dealt, a run goes on with another
// number of processes, and a process that fails ends all of them.
#include <cmath>

#include "dev/test/program_test.h"

namespace llmc::test {
namespace {

class TrainRanks : public ProgramTest {
protected:
    const std::string mpirun = path_of("mpirun");

    void SetUp() override {
        if (mpirun.empty()) GTEST_SKIP() << "no mpirun: install openmpi-bin";
        ProgramTest::SetUp();
    }

    static bool alive(pid_t id) {  // a zombie is not
        try {
            const std::string state = read_file(str("/proc/", id, "/stat"));
            return state.substr(state.rfind(')') + 2, 1) != "Z";
        } catch (const std::exception&) {
            return false;
        }
    }

    // Twelve micro-batches a step: they can be dealt to 1, 2, 3 and 4 processes.
    std::vector<std::string> recipe(int ranks, const std::string& run_dir, const std::vector<std::string>& more) const {
        std::vector<std::string> words = {mpirun, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none",
                                          "--timeout", "120", "-np", std::to_string(ranks), program("train_mot"),
                                          "--data", data, "--run-dir", dir / run_dir};
        std::istringstream flags("--threads 1 --d-model 16 --heads 2 --context 8 --experts 6 --expert-size 10 "
                                 "--group-size 4 --expert-choice-fraction 0.25 --micro-batch 4 --grad-accumulation 12 "
                                 "--init-scale 1 --lr 1e-2 --warmup-steps 2 --log-interval 1 --statistics-interval 3 "
                                 "--eval-interval 5 --eval-batches 7");
        for (std::string word; flags >> word;) words.push_back(word);
        words.insert(words.end(), more.begin(), more.end());
        return words;
    }
    int start(int ranks, const std::string& run_dir, const std::vector<std::string>& more) const {
        ::setenv("OMP_WAIT_POLICY", "passive", 0);  // there are more processes than CPUs
        return Process(recipe(ranks, run_dir, more), output).wait();
    }

    // Every number of the logs that belongs to the model. tolerance 0: the same bits.
    void expect_equal_logs(const std::string& got_dir, const std::string& want_dir, double tolerance) {
        const std::vector<json> want = log(want_dir, "step"), got = log(got_dir, "step");
        ASSERT_EQ(got.size(), want.size());
        int compared = 0;
        for (size_t i = 0; i < want.size(); i++)
            for (const auto& [key, value] : want[i].items()) {
                const bool speed = key.find("seconds") != key.npos || key.find("per_second") != key.npos ||
                                   key.find("gflops") != key.npos;
                if (speed || !value.is_number_float()) continue;
                ASSERT_TRUE(got[i].contains(key)) << key;
                const double a = got[i].at(key), b = value;
                EXPECT_LE(std::abs(a - b), tolerance * std::max(1.0, std::abs(b)))
                    << got_dir << ", record " << i << ", " << key << ": " << a << " instead of " << b;
                compared++;
            }
        EXPECT_GT(compared, 20);
    }

    // Losses of training, or of validation (key "val_loss"), alone.
    void expect_equal_losses(const std::string& got_dir, const std::string& want_dir, double tolerance,
                             const char* key = "loss") {
        const std::vector<json> want = log(want_dir, key), got = log(got_dir, key);
        ASSERT_EQ(got.size(), want.size());
        EXPECT_GT(want.size(), 1u);
        for (size_t i = 0; i < want.size(); i++)
            EXPECT_NEAR(got[i].at(key).get<double>(), want[i].at(key).get<double>(), tolerance) << key << " " << i;
    }
};

const std::vector<std::string> every_kind = {
    "--pattern", "attention ffn attention mot attention moe_token_choice attention moe_expert_choice"};
std::vector<std::string> with(std::vector<std::string> flags, const std::vector<std::string>& more) {
    flags.insert(flags.end(), more.begin(), more.end());
    return flags;
}

TEST_F(TrainRanks, EveryNumberOfProcessesTakesTheSameSteps) {
    const auto flags = with(every_kind, {"--precision", "fp64", "--steps", "20", "--top-k", "2"});
    ASSERT_EQ(start(1, "one", flags), 0) << said();
    for (int ranks : {2, 3, 4}) {
        ASSERT_EQ(start(ranks, str(ranks), flags), 0) << said();
        expect_equal_logs(str(ranks), "one", 1e-9);
    }
}

TEST_F(TrainRanks, OptionsThatDependOnTheMicroBatch) {
    const auto flags = with(every_kind, {"--precision", "fp64", "--steps", "10", "--dropless", "--tied-head",
                                         "--group-order", "random", "--learn-temperature", "tied",
                                         "--load-balancing-weight", "1", "--router-z-loss-weight", "0.1",
                                         "--recompute", "blocks", "--eval-discrete", "--eval-group-sizes", "2"});
    ASSERT_EQ(start(1, "one", flags), 0) << said();
    ASSERT_EQ(start(3, "three", flags), 0) << said();
    expect_equal_logs("three", "one", 1e-9);
}

TEST_F(TrainRanks, SinglePrecisionAndTheSameBitsTwice) {
    const auto flags = with({"--pattern", "attention ffn attention mot"}, {"--steps", "20"});
    ASSERT_EQ(start(1, "one", flags), 0) << said();
    ASSERT_EQ(start(2, "two", flags), 0) << said();
    expect_equal_logs("two", "one", 1e-5);
    ASSERT_EQ(start(2, "again", flags), 0) << said();
    expect_equal_logs("again", "two", 0);
}

TEST_F(TrainRanks, ARunGoesOnWithAnotherNumberOfProcesses) {
    const auto flags = with(every_kind, {"--precision", "fp64"});
    ASSERT_EQ(start(1, "whole", with(flags, {"--steps", "10"})), 0) << said();
    ASSERT_EQ(start(3, "moved", with(flags, {"--steps", "5", "--decay-steps", "10"})), 0) << said();
    ASSERT_EQ(start(2, "moved", {"--resume", "--steps", "10"}), 0) << said();
    expect_equal_losses("moved", "whole", 1e-9);
}

// Checkpoints do not know how many processes wrote them, nor how the model was divided.
TEST_F(TrainRanks, ARunGoesOnDividedInAnotherWay) {
    const auto flags = with(every_kind, {"--precision", "fp64", "--tied-head", "--final-norm", "--save-interval", "2"});
    ASSERT_EQ(start(1, "whole", with(flags, {"--steps", "12"})), 0) << said();
    struct Part {
        int ranks;
        const char *steps, *shard, *expert_parallel;
    };
    for (const Part& p : {Part{3, "3", "parameters", "3"}, {4, "6", "optimizer", "2"}, {1, "7", "none", "1"},
                          {2, "10", "gradients", "2"}, {4, "12", "parameters", "2"}}) {
        std::vector<std::string> more{"--steps", p.steps, "--shard", p.shard, "--expert-parallel", p.expert_parallel};
        more = std::string(p.steps) == "3" ? with(flags, with(more, {"--decay-steps", "12"})) : with({"--resume"}, more);
        ASSERT_EQ(start(p.ranks, "moved", more), 0) << said();
    }
    expect_equal_losses("moved", "whole", 1e-9);
    const SafetensorsFile want(dir / "whole/step-00000012/model.safetensors");
    const SafetensorsFile got(dir / "moved/step-00000012/model.safetensors");
    ASSERT_EQ(got.tensors().size(), want.tensors().size());
    for (const SafetensorsEntry& t : want.tensors()) {
        const std::vector<double> a = got.read<double>(t.name), b = want.read<double>(t.name);
        for (size_t i = 0; i < b.size(); i++) ASSERT_NEAR(a[i], b[i], 1e-8) << t.name << " " << i;
    }
}

TEST_F(TrainRanks, ADividedRunThatWasInterruptedHasTheSameBits) {
    const auto flags = with(every_kind, {"--shard", "parameters", "--expert-parallel", "2"});
    ASSERT_EQ(start(2, "whole", with(flags, {"--steps", "8"})), 0) << said();
    ASSERT_EQ(start(2, "parts", with(flags, {"--steps", "4", "--decay-steps", "8"})), 0) << said();
    ASSERT_EQ(start(2, "parts", {"--resume", "--steps", "8"}), 0) << said();
    expect_equal_losses("parts", "whole", 0);
}

// A group larger than what one process has of a micro-batch.
TEST_F(TrainRanks, GroupsMaySpanProcesses) {
    const std::vector<std::string> flags{"--pattern", "attention ffn attention mot", "--precision", "fp64", "--steps",
                                         "12"};
    ASSERT_EQ(start(1, "one", flags), 0) << said();
    ASSERT_EQ(start(4, "four", with(flags, {"--group-ranks", "2", "--shard", "gradients"})), 0) << said();
    expect_equal_losses("four", "one", 1e-9);
    expect_equal_losses("four", "one", 1e-9, "val_loss");
}

TEST_F(TrainRanks, AllRanksGiveUpAtTheSameStep) {
    // Weight decay of a million times a parameter makes losses infinite before long.
    const auto flags = with(every_kind, {"--lr", "1000", "--weight-decay", "1000", "--steps", "40", "--warmup-steps",
                                         "0", "--max-skipped", "3"});
    EXPECT_EQ(start(2, "two", flags), 1);
    EXPECT_NE(said().find("3 steps in a row"), std::string::npos) << said();
}

TEST_F(TrainRanks, BadInputIsOneSentence) {
    EXPECT_EQ(start(5, "five", {"--steps", "2"}), 2);
    EXPECT_NE(said().find("12 micro-batches (--grad-accumulation) cannot be dealt to 5 processes"), std::string::npos)
        << said();
    const std::string text = said();
    EXPECT_EQ(text.find("cannot be dealt", text.find("cannot be dealt") + 1), std::string::npos) << text;
    EXPECT_FALSE(path_exists(dir / "five")) << "nothing is made";

    struct Refusal {
        std::vector<std::string> flags;
        const char* says;
    };
    for (const Refusal& r :
         {Refusal{{"--expert-parallel", "3"}, "--expert-parallel 3 does not divide the number of processes, 2"},
          {{"--expert-parallel", "2", "--experts", "5"}, "--expert-parallel 2 does not divide the 5 experts of"},
          {{"--expert-parallel", "2", "--pattern", "attention ffn"}, "this model has no experts"},
          {{"--group-ranks", "2"}, "--group-ranks 2 is for models whose only mixtures are Mixtures of Tokens"},
          {{"--group-ranks", "2", "--pattern", "mot", "--micro-batch", "8", "--context", "7"}, "--context 7"},
          {{"--shard", "everything"}, "--shard"}}) {
        EXPECT_EQ(start(2, "two", with(every_kind, with(r.flags, {"--steps", "2"}))), 2) << said();
        EXPECT_NE(said().find(r.says), std::string::npos) << r.says << " is not in: " << said();
        EXPECT_FALSE(path_exists(dir / "two")) << "nothing is made";
    }
}

// A rank that is killed takes the others with it, and the run goes on from its last checkpoint.
TEST_F(TrainRanks, AKilledRankEndsTheRunWhichGoesOn) {
    const auto flags = with(every_kind, {"--steps", "100000", "--save-interval", "5"});
    Process run(recipe(2, "run", flags), output);
    const std::string latest = dir / "run/latest";
    for (int i = 0; i < 600 && !path_exists(latest); i++) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    ASSERT_TRUE(path_exists(latest)) << said();
    // The last process that has the run's directory on its command line is one of the ranks.
    std::vector<pid_t> ranks;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
        const std::string name = entry.path().filename();
        if (name.find_first_not_of("0123456789") != std::string::npos) continue;
        std::error_code gone;
        const std::string program_file = std::filesystem::read_symlink(entry.path() / "exe", gone);
        if (gone || program_file != std::filesystem::canonical(program("train_mot"))) continue;
        std::string line;
        try {
            line = read_file(entry.path() / "cmdline");
        } catch (const std::exception&) {
        }
        if (line.find(dir / "run") != std::string::npos) ranks.push_back(std::stoi(name));
    }
    ASSERT_EQ(ranks.size(), 2u);
    ::kill(ranks[0], SIGKILL);
    EXPECT_NE(run.wait(), 0);
    for (int i = 0; i < 100 && alive(ranks[1]); i++) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    EXPECT_FALSE(alive(ranks[1])) << "the other rank is still there";
    const int64_t step = std::stoll(read_file(latest).substr(5));
    ASSERT_EQ(start(4, "run", {"--resume", "--steps", std::to_string(step + 3)}), 0) << said();
    EXPECT_EQ(log("run", "loss").back().at("step").get<int64_t>(), step + 3);
}

}  // namespace
}  // namespace llmc::test
