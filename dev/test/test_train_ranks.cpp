// train_mot in several processes: a step is the same however its micro-batches are dealt, a run goes on with another
// number of processes, and a process that fails ends all of them.
#include "dev/test/train_ranks.h"

namespace llmc::test {
namespace {

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
    const std::vector<json> want = log("whole", "loss"), got = log("moved", "loss");
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); i++)
        EXPECT_NEAR(got[i].at("loss").get<double>(), want[i].at("loss").get<double>(), 1e-9) << i;
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
}

TEST_F(TrainRanks, DataThatOnlyOneRankReadsThroughIsRefusedByAll) {
    std::string shard = read_file(data + "/train_000000.bin");
    shard.back() = char(0xff);
    write_file_atomic(dir / "bare.bin", shard);
    EXPECT_EQ(start(2, "run", {"--data", dir / "bare.bin", "--steps", "2", "--decay-steps", "9"}), 2);
    const std::string text = said();
    const size_t at = text.find("bare.bin: token 2999 is ");
    ASSERT_NE(at, std::string::npos) << text;
    EXPECT_EQ(text.find("bare.bin: token", at + 1), std::string::npos) << text;
    EXPECT_FALSE(path_exists(dir / "run")) << "nothing is made";
}

// A rank that is killed takes the others with it, and the run goes on from its last checkpoint.
TEST_F(TrainRanks, AKilledRankEndsTheRunWhichGoesOn) {
    const auto flags = with(every_kind, {"--steps", "100000", "--save-interval", "5"});
    Process run(recipe(2, "run", flags), output);
    const std::string latest = dir / "run/latest";
    ASSERT_TRUE(wait_for(latest)) << said();
    const std::vector<pid_t> ranks = ranks_of("run");
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
