// train_mot in several processes: a step is the same however its micro-batches are distributed, a run goes on with
// another number of processes, and a process that fails ends all of them.
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
    expect_equal_losses("moved", "whole", 1e-9);
}

// Each rank verifies a part of the newest checkpoint. Whoever finds the damage, all go on from the one before.
TEST_F(TrainRanks, ADamagedCheckpointIsPassedOverByAll) {
    ASSERT_EQ(start(2, "run", with(every_kind, {"--steps", "4", "--save-interval", "2"})), 0) << said();
    const std::string file = dir / "run/step-00000004/model.safetensors";
    const std::vector<SafetensorsEntry> tensors = SafetensorsFile(file).tensors();
    for (size_t i : {0, 1}) {
        std::string bytes = read_file(file);
        bytes[size_t(tensors[i].offset)] ^= 1;
        write_file_atomic(file, bytes);
        ASSERT_EQ(start(2, "run", {"--resume", "--steps", "4"}), 0) << said();
        EXPECT_NE(said().find("tensor " + tensors[i].name + " is damaged"), std::string::npos) << said();
        EXPECT_NE(said().find("using step-00000002 instead"), std::string::npos) << said();
    }
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
        const bool begins = std::string(p.steps) == "3";
        more = begins ? with(flags, with(more, {"--decay-steps", "12"})) : with({"--resume"}, more);
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
    const auto flags =
        with(every_kind, {"--shard", "parameters", "--expert-parallel", "2", "--precision", "bf16-mixed"});
    ASSERT_EQ(start(2, "whole", with(flags, {"--steps", "8"})), 0) << said();
    ASSERT_EQ(start(2, "parts", with(flags, {"--steps", "4", "--decay-steps", "8"})), 0) << said();
    ASSERT_EQ(start(2, "parts", {"--resume", "--steps", "8"}), 0) << said();
    expect_equal_losses("parts", "whole", 0);
    // And one process can use it, which divides nothing.
    ASSERT_EQ(Process({program("train_mot"), "eval", "--checkpoint", dir / "parts", "--data", data}, output).wait(), 0)
        << said();
    ASSERT_EQ(start(1, "parts", {"--resume", "--steps", "9"}), 0) << said();
}

// The whole validation split, which no number of micro-batches fills.
TEST_F(TrainRanks, EvaluationOfAWholeSplitIsTheSame) {
    const std::vector<std::string> flags{
        "--pattern", "attention ffn attention mot", "--precision", "fp64", "--steps", "10", "--eval-batches", "0"};
    ASSERT_EQ(start(1, "one", flags), 0) << said();
    ASSERT_EQ(start(3, "three", flags), 0) << said();
    expect_equal_losses("three", "one", 1e-9, "val_loss");
    for (const char* run : {"one", "three"}) EXPECT_EQ(log(run, "val_loss").back().at("val_tokens"), 999);
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

// Only the rank whose slice it is in sees it.
TEST_F(TrainRanks, AllRanksEndWhenAnUpdateIsNotFinite) {
    EXPECT_EQ(start(3, "three", with(every_kind, {"--adam-eps", "0", "--shard", "optimizer", "--steps", "3"})), 1);
    const std::string sentence = "step 1 made parameters infinite or NaN";
    EXPECT_NE(said().find(sentence), std::string::npos) << said();
    EXPECT_EQ(said().find(sentence, said().find(sentence) + 1), std::string::npos) << said();
    EXPECT_FALSE(path_exists(dir / "three/latest"));
}

TEST_F(TrainRanks, BadInputIsOneSentence) {
    EXPECT_EQ(start(5, "five", {"--steps", "2"}), 2);
    EXPECT_NE(said().find("12 micro-batches (--grad-accumulation) cannot be distributed equally over 5 processes"),
              std::string::npos)
        << said();
    const std::string text = said();
    EXPECT_EQ(text.find("cannot be distributed", text.find("cannot be distributed") + 1), std::string::npos) << text;
    EXPECT_FALSE(path_exists(dir / "five")) << "nothing is made";

    struct Refusal {
        std::vector<std::string> flags;
        const char* says;
    };
    for (const Refusal& r :
         {Refusal{{"--expert-parallel", "3"}, "--expert-parallel 3 does not divide the number of processes, 2"},
          {{"--expert-parallel", "2", "--experts", "5"}, "--expert-parallel 2 does not divide the 5 experts of"},
          {{"--expert-parallel", "2", "--pattern", "attention ffn"}, "this model has no experts"},
          {{"--group-ranks", "2"}, "--group-ranks 2 needs a model whose mixtures are all Mixtures of Tokens"},
          {{"--group-ranks", "2", "--pattern", "mot", "--micro-batch", "8", "--context", "7"}, "--context 7"},
          {{"--shard", "everything"}, "--shard"}}) {
        EXPECT_EQ(start(2, "two", with(every_kind, with(r.flags, {"--steps", "2"}))), 2) << said();
        EXPECT_NE(said().find(r.says), std::string::npos) << r.says << " is not in: " << said();
        EXPECT_FALSE(path_exists(dir / "two")) << "nothing is made";
    }
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
