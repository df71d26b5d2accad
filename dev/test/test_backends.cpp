// This build's train_mot against the CPU build's (build/cpu/train_mot, made before): the same model, data and seed must
// give the same losses. Built for every backend but the CPU.
#include <cmath>
#include <cstdlib>

#include "dev/test/model_lab.h"
#include "dev/test/program_test.h"

using namespace llmc;
using namespace llmc::test;

namespace {

class Backends : public ProgramTest {
protected:
    const std::string cpu_build = program("../cpu/train_mot");

    void SetUp() override {
        if (!path_exists(cpu_build))
            GTEST_SKIP() << "build/cpu/train_mot is not there to compare with: run `make BACKEND=cpu` first";
        vocabulary = 512;
        ProgramTest::SetUp();
    }
    void TearDown() override {
        for (const char* name : {"EMU_LAZY", "EMU_GUARD", "EMU_DEVICES", "EMU_MEMORY", "CUDA_VISIBLE_DEVICES"})
            unsetenv(name);
    }

    // d 64, 2 layers, vocabulary 512, context 32, batch 8, groups of 4, 10 steps.
    std::vector<std::string> recipe(const std::string& run_dir, std::vector<std::string> more = {}) const {
        std::vector<std::string> words = {
            "train_mot", "--data", data, "--run-dir", dir / run_dir, "--pattern", "attention ffn attention mot"};
        std::istringstream numbers(
            "--d-model 64 --heads 2 --context 32 --group-size 4 --experts 8 --micro-batch 8 "
            "--init-scale 1 --lr 1e-3 --warmup-steps 2 --log-interval 1 --statistics-interval 5 --eval-interval 10 "
            "--eval-batches 1 --steps 10 --seed 3");
        for (std::string word; numbers >> word;) words.push_back(word);
        words.insert(words.end(), more.begin(), more.end());
        return words;
    }
    int run_cpu(std::vector<std::string> words) {
        words[0] = cpu_build;
        return Process(words, output).wait();
    }

    // Every number of the two logs that belongs to the model: losses, gradient norms, statistics, validation.
    void expect_equal_logs(const std::string& a, const std::string& b, double tolerance) {
        int compared = 0;
        const std::vector<json> left = log(a, "step"), right = log(b, "step");
        ASSERT_EQ(left.size(), right.size());
        for (size_t i = 0; i < left.size(); i++)
            for (const auto& [key, value] : left[i].items()) {
                const bool speed = key == "seconds" || key == "tokens_per_second" || key.find("gflops") != key.npos;
                if (speed) continue;
                EXPECT_FALSE(value.is_null()) << key << " was not finite";
                if (!value.is_number_float()) continue;
                ASSERT_TRUE(right[i].contains(key)) << key;
                const double want = value, got = right[i].at(key);
                EXPECT_LE(std::abs(got - want), tolerance * std::max(1.0, std::abs(want)))
                    << "record " << i << ", " << key << ": " << got << " instead of " << want;
                compared++;
            }
        EXPECT_GT(compared, 30);
    }

    // Recorded, run late, and with memory that the host cannot read.
    void expect_a_graph_changes_no_bit(std::vector<std::string> flags) {
        ASSERT_EQ(run(recipe("plain", flags)), 0) << said();
        flags.push_back("--cuda-graph");
        setenv("EMU_LAZY", "1", 1);
        setenv("EMU_GUARD", "1", 1);
        ASSERT_EQ(run(recipe("graph", flags)), 0) << said();
        expect_equal_logs("plain", "graph", 0);
    }
};

}  // namespace

TEST_F(Backends, TenStepsHaveTheLossesOfTheCpu) {
    ASSERT_EQ(run_cpu(recipe("cpu")), 0) << said();
    ASSERT_EQ(run(recipe("here")), 0) << said();
    expect_equal_logs("cpu", "here", 1e-4);
    const std::vector<json> losses = log("here", "loss");
    EXPECT_LT(losses.back().at("loss").get<double>(), losses.front().at("loss").get<double>());
}

TEST_F(Backends, TenStepsOfSparseExpertsHaveTheLossesOfTheCpu) {
    const std::string pattern = "attention moe_token_choice attention moe_expert_choice";
    const std::vector<std::vector<std::string>> models = {
        {"--top-k", "2", "--capacity-factor", "1"},
        {"--dropless", "--top-k", "2", "--renormalize-gates", "--shared-experts", "1", "--expert-activation", "geglu",
         "--router-z-loss-weight", "0.01", "--expert-size", "24", "--no-expert-choice-norm"},
        {"--expert-choice-softmax", "tokens", "--simulate-group-size", "4", "--expert-choice-fraction", "0.25",
         "--expert-size", "24", "--dropless", "--expert-activation", "linear", "--load-balancing-over", "mean"}};
    for (size_t i = 0; i < models.size(); i++) {
        std::vector<std::string> sparse = models[i];
        sparse.insert(sparse.begin(), {"--pattern", pattern});
        ASSERT_EQ(run_cpu(recipe(str("cpu", i), sparse)), 0) << said();
        ASSERT_EQ(run(recipe(str("here", i), sparse)), 0) << said();
        expect_equal_logs(str("cpu", i), str("here", i), 1e-4);
    }
}

TEST_F(Backends, TenStepsOfMotVariantsHaveTheLossesOfTheCpu) {
    const std::vector<std::vector<std::string>> models = {
        {"--group-order", "random", "--emit", "group", "--controllers", "weighted", "--learn-temperature", "separate",
         "--temperature-form", "exp", "--temperature-start", "3"},
        {"--no-merge-softmax", "--mixture-norm", "--group-order", "random", "--grad-accumulation", "2",
         "--expert-activation", "silu"},  // smooth: gradients through norms of small mixtures are large
        {"--emit", "top", "--learn-temperature", "tied", "--temperature-per-expert"},
        {"--emit", "experts", "--controllers", "common-base", "--recompute", "blocks"}};
    for (size_t i = 0; i < models.size(); i++) {
        ASSERT_EQ(run_cpu(recipe(str("cpu", i), models[i])), 0) << said();
        ASSERT_EQ(run(recipe(str("here", i), models[i])), 0) << said();
        expect_equal_logs(str("cpu", i), str("here", i), 1e-4);
    }
}

TEST_F(Backends, MixedPrecisionStaysNearTheCpu) {
    // Both round activations to bf16, at different places: losses near 6 differ by some of the 2^-9 of one rounding.
    ASSERT_EQ(run_cpu(recipe("cpu", {"--precision", "bf16-mixed"})), 0) << said();
    ASSERT_EQ(run(recipe("here", {"--precision", "bf16-mixed"})), 0) << said();
    const std::vector<json> cpu = log("cpu", "loss"), here = log("here", "loss");
    ASSERT_EQ(cpu.size(), here.size());
    for (size_t i = 0; i < cpu.size(); i++)
        EXPECT_NEAR(cpu[i].at("loss").get<double>(), here[i].at("loss").get<double>(), 0x1p-9 * 6) << "step " << i + 1;
}

TEST_F(Backends, GraphsGuardAndLateExecutionChangeNoBit) {
    const std::vector<std::string> accumulate = {"--grad-accumulation", "2", "--micro-batch", "4"};
    ASSERT_EQ(run(recipe("plain", accumulate)), 0) << said();
    auto with_graph = accumulate;
    with_graph.push_back("--cuda-graph");
    ASSERT_EQ(run(recipe("graph", with_graph)), 0) << said();
    expect_equal_logs("plain", "graph", 0);
    // Only the emulator reads these; on a GPU the run is repeated as it is.
    setenv("EMU_LAZY", "1", 1);   // work runs when somebody waits for it, and not before
    setenv("EMU_GUARD", "1", 1);  // the host cannot read device memory
    ASSERT_EQ(run(recipe("late", with_graph)), 0) << said();
    expect_equal_logs("plain", "late", 0);
}

TEST_F(Backends, GraphsOfDroplessExpertsNeedNoHost) {
    const std::vector<std::string> dropless = {"--pattern", "attention moe_token_choice", "--dropless", "--top-k", "2"};
    expect_a_graph_changes_no_bit(dropless);
}

// Orders and starts of temperatures change from step to step: a graph must read them from the device.
TEST_F(Backends, GraphsOfMotVariantsChangeNoBit) {
    const std::vector<std::string> variant = {"--group-order",       "random", "--learn-temperature", "tied",
                                              "--temperature-start", "4",      "--grad-accumulation", "2",
                                              "--micro-batch",       "8"};
    expect_a_graph_changes_no_bit(variant);
}

TEST_F(Backends, WithoutADeviceOneSentenceSaysSo) {
    setenv("EMU_DEVICES", "0", 1);
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    EXPECT_EQ(run(recipe("none")), 2);
    EXPECT_NE(said().find("BACKEND=cpu"), std::string::npos) << said();
    EXPECT_EQ(run(recipe("none", {"--dry-run"})), 0) << said();
    EXPECT_EQ(run({"train_mot", "info", "--vocab-size", "512", "--pattern", "attention mot"}), 0) << said();
    EXPECT_EQ(run({"train_mot", "--version"}), 0) << said();
}

TEST_F(Backends, WhatDoesNotFitTheDeviceIsRefusedBeforeTheFirstStep) {
    setenv("EMU_MEMORY", "1000000", 1);  // a GPU is tried with a model that no GPU holds
    const std::vector<std::string> huge = {"--d-model", "65536", "--context", "2048", "--micro-batch", "512"};
    EXPECT_EQ(run(recipe("large", huge)), 2);
    EXPECT_NE(said().find("activations"), std::string::npos) << said();
    EXPECT_NE(said().find("--micro-batch"), std::string::npos) << said();
}

TEST_F(Backends, DoublePrecisionIsForTheCpu) {
    EXPECT_EQ(run(recipe("double", {"--precision", "fp64"})), 2);
    EXPECT_NE(said().find("--precision fp64"), std::string::npos) << said();
}

// ----------------------------------------------------------------------------------------------------------- launches

namespace {

struct Launches {
    int64_t forward, both;  // kernels and library calls of the forward pass alone, and of forward and backward
};

// With the paper's settings: ReLU experts, no attention biases.
Launches launches_of(const std::string& pattern) {
    ModelConfig config;
    config.pattern = pattern, config.d_model = 32, config.heads = 2, config.vocab_size = 64, config.context = 8;
    config.group_size = 4, config.experts = 4;
    Lab lab(resolved(config), "bf16-mixed");
    const Tokens tokens(32, 1);
    const int64_t start = lab.ctx.launches;
    lab.evaluate(tokens, tokens, 4);
    const int64_t forward = lab.ctx.launches - start;
    lab.train(tokens, tokens, 4, {});
    return {forward, lab.ctx.launches - start - forward};
}

// What one more block of a kind adds: its norm and residual addition belong to it.
Launches launches_of_block(const std::string& kind) {
    const Launches two = launches_of(kind + " " + kind), one = launches_of(kind);
    return {two.forward - one.forward, two.both - one.both};
}

}  // namespace

TEST(Launches, AreFewPerBlock) {
    struct Case {
        const char* kind;
        int64_t forward, both;
    };
    for (const Case& c : {Case{"attention", 4, 14}, Case{"ffn", 4, 16}, Case{"mot", 8, 24},
                          Case{"moe_token_choice", 12, 31}, Case{"moe_expert_choice", 11, 31}}) {
        const Launches launches = launches_of_block(c.kind);
        EXPECT_EQ(launches.forward, c.forward) << c.kind;
        EXPECT_EQ(launches.both, c.both) << c.kind;
    }
}
