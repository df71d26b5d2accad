// A model that several ranks share, in every way of dividing it, takes the steps of one rank.
//
// The tests called OnRanks run on two to four ranks under mpirun, each world size in one launch; every rank also trains
// the whole model by itself, and compares.
#include "dev/test/shared_trainee.h"

namespace llmc::test {
namespace {

class Launch : public testing::TestWithParam<int> {};
TEST_P(Launch, AllTestsOnRanks) {
    if (under_mpirun()) GTEST_SKIP() << "this is one of them";
    if (path_of("mpirun").empty()) GTEST_SKIP() << "no mpirun: install openmpi-bin";
    RankedRun run(GetParam(), "OnRanks.*");
    EXPECT_EQ(run.wait(), 0) << run.said();
    const std::string text = run.said();
    size_t passed = 0;
    for (size_t at = 0; (at = text.find("[  PASSED  ]", at)) != std::string::npos; at++) passed++;
    EXPECT_EQ(passed, size_t(GetParam())) << text;
}
INSTANTIATE_TEST_SUITE_P(, Launch, testing::Values(2, 3, 4));

// -------------------------------------------------------------------------------------------------------- trajectories
constexpr int64_t micro_batches = 12, rows = 12, context = 12;
const char* const all_shards[] = {"none", "optimizer", "gradients", "parameters"};

// Every kind of block; 12 of everything that ranks divide.
ModelConfig every_kind() {
    ModelConfig c = tiny("attention ffn mot moe_token_choice moe_expert_choice");
    c.context = context, c.experts = 12, c.expert_size = 5, c.group_size = 4, c.expert_choice_fraction = 0.25;
    return c;
}
ModelConfig mot_only() {
    ModelConfig c = every_kind();
    c.pattern = "attention ffn attention mot";
    return c;
}
TrainConfig recipe(const std::string& precision = "fp64") {
    TrainConfig c = training(rows, micro_batches, precision);
    c.lr = 1e-2, c.clip = 0.5;
    return c;
}
Tokens tokens_of(int64_t step, uint64_t stream) {
    return random_tokens(micro_batches * rows * context, stream * 1000 + uint64_t(step));
}

struct Trajectory {
    Vector losses, norms;
    std::vector<Vector> metrics, deviations;  // what blocks measure; standard deviations apart from the rest
};
void add_metrics(Trajectory& t, const Vector& values, const Model& model) {
    t.metrics.emplace_back(), t.deviations.emplace_back();
    for (const MetricSlot& slot : model.metric_slots())
        (slot.name.ends_with("_std") ? t.deviations : t.metrics).back().push_back(values[size_t(slot.first)]);
}
double loss_of(const StepState& state) { return state.loss_sum / state.loss_count; }

Trajectory alone(int64_t steps, Trainee& run) {
    Trajectory t;
    for (int64_t i = 0; i < steps; i++) {
        t.losses.push_back(run(tokens_of(i, 1), tokens_of(i, 2), true, i));
        t.norms.push_back(run.step->state().grad_norm);
        add_metrics(t, run.step->metrics(), run.model);
    }
    return t;
}
Trajectory together(int64_t steps, SharedTrainee& run) {
    Trajectory t;
    for (int64_t i = 0; i < steps; i++) {
        const StepState state = run(tokens_of(i, 1), tokens_of(i, 2), i, true);
        t.losses.push_back(loss_of(state));
        t.norms.push_back(state.grad_norm);
        add_metrics(t, run.step->metrics(), run.model);
    }
    return t;
}

void expect_close(const Trajectory& got, const Trajectory& want, double tolerance, const std::string& what,
                  double deviation_tolerance = 0) {
    auto compare = [&](const std::vector<Vector>& a, const std::vector<Vector>& b, size_t i, double allowed) {
        for (size_t m = 0; i < b.size() && m < b[i].size(); m++)
            EXPECT_NEAR(a[i][m], b[i][m], allowed * std::max(1.0, std::abs(b[i][m])))
                << what << ", metric " << m << " of step " << i;
    };
    for (size_t i = 0; i < want.losses.size(); i++) {
        ASSERT_NEAR(got.losses[i], want.losses[i], tolerance) << what << ", loss of step " << i;
        ASSERT_NEAR(got.norms[i], want.norms[i], tolerance * std::max(1.0, want.norms[i])) << what << ", step " << i;
        compare(got.metrics, want.metrics, i, tolerance);
        compare(got.deviations, want.deviations, i, std::max(tolerance, deviation_tolerance));
    }
}
void expect_identical(const Trajectory& got, const Trajectory& want, const std::string& what) {
    EXPECT_TRUE(identical(got.losses, want.losses)) << what;
    EXPECT_TRUE(identical(got.norms, want.norms)) << what;
}

// What lies on this rank of every parameter and moment, against the whole tensors.
void expect_parts(SharedTrainee& run, Trainee& whole, double tolerance, const std::string& what) {
    NamedVectors want = read_all(whole.model.parameters(), whole.ctx);
    want.merge(read_all(whole.model.optimizer(), whole.ctx));
    std::vector<NamedTensor> parts = run.model.parameter_parts(true);
    for (const NamedTensor& t : run.model.optimizer_parts(true)) parts.push_back(t);
    int64_t elements = 0;
    for (const NamedTensor& part : parts) {
        const Vector got = read_tensor(part.tensor, run.ctx), &all = want.at(part.name);
        elements += int64_t(got.size());
        for (size_t i = 0; i < got.size(); i++)
            ASSERT_NEAR(got[i], all[size_t(part.first) + i], tolerance) << what << ", " << part.name << " " << i;
    }
    int64_t owned = 0;  // by all ranks: everything once
    for (const std::string& text : world().all_gather(std::to_string(elements))) owned += std::stoll(text);
    EXPECT_EQ(owned, 3 * whole.model.table.count()) << what;
}

std::string name_of(const TrainConfig& c) {
    return str(c.precision, ", --shard ", c.shard, " --expert-parallel ", c.expert_parallel, " --group-ranks ",
               c.group_ranks);
}

std::vector<int> divisors(int n) {
    std::vector<int> list;
    for (int d = 1; d <= n; d++)
        if (n % d == 0) list.push_back(d);
    return list;
}

TEST(OnRanks, EveryWayOfDividingTakesTheStepsOfOneRank) {
    if (!under_mpirun()) GTEST_SKIP() << "for several ranks: see Launch";
    constexpr int64_t steps = 20;
    bool tied = false;  // in turn, so that every mode meets both
    std::map<bool, std::pair<std::unique_ptr<Trainee>, Trajectory>> references;
    for (int expert_parallel : divisors(world().size))
        for (const char* shard : all_shards) {
            tied = !tied;
            ModelConfig config = every_kind();
            config.tied_head = tied, config.final_norm = tied, config.positions = tied ? "rope" : "learned";
            config.load_balancing_weight = 0.5, config.router_z_loss_weight = 0.1, config.top_k = 2;
            TrainConfig train = recipe();
            auto& [whole, want] = references[tied];
            if (!whole) {
                whole = std::make_unique<Trainee>(config, train);
                want = alone(steps, *whole);
            }
            train.shard = shard, train.expert_parallel = expert_parallel;
            train.recompute = tied ? "blocks" : "none";
            SharedTrainee run(config, train);
            expect_close(together(steps, run), want, 1e-9, name_of(train));
            expect_parts(run, *whole, 1e-7, name_of(train));
            EXPECT_EQ(run.bytes(), run.plan.total()) << name_of(train);
            for (const Model::Place& place : run.model.places)
                EXPECT_EQ(bool(place.params), train.shard != "parameters") << name_of(train);
        }
}

// Groups that span ranks, in every combination with divided experts and with whatever else a MoT block can do.
TEST(OnRanks, GroupsMaySpanRanks) {
    if (!under_mpirun()) GTEST_SKIP() << "for several ranks: see Launch";
    constexpr int64_t steps = 20;
    std::map<bool, std::pair<std::unique_ptr<Trainee>, Trajectory>> references;
    bool variant = false;
    for (int group_ranks : divisors(world().size))
        for (int expert_parallel : divisors(world().size)) {
            variant = !variant;
            ModelConfig config = mot_only();
            config.group_size = 6;  // more than the 3 or 4 rows of one of 3 or 4 ranks
            config.group_order = variant ? "random" : "fixed", config.mixture_norm = variant;
            config.learn_temperature = variant ? "separate" : "no", config.emit = variant ? "group" : "shared";
            config.tied_head = variant;
            config.expert_activation = variant ? "swiglu" : "gelu";
            TrainConfig train = recipe();
            auto& [whole, want] = references[variant];
            if (!whole) {
                whole = std::make_unique<Trainee>(config, train);
                want = alone(steps, *whole);
            }
            train.group_ranks = group_ranks, train.expert_parallel = expert_parallel;
            train.shard = all_shards[(group_ranks + 2 * expert_parallel) % 4];
            train.recompute = expert_parallel > 1 ? "blocks" : "none";
            SharedTrainee run(config, train);
            // A deviation of n elements divides by n - 1, that of several parts by n: they have 72 or more.
            expect_close(together(steps, run), want, 1e-9, name_of(train), group_ranks > 1 ? 0.5 / 72 : 0);
            expect_parts(run, *whole, 1e-7, name_of(train));
            EXPECT_EQ(run.bytes(), run.plan.total()) << name_of(train);
        }
}

TEST(OnRanks, SinglePrecisionAndTheSameBits) {
    if (!under_mpirun()) GTEST_SKIP() << "for several ranks: see Launch";
    constexpr int64_t steps = 20;
    for (const std::string& pattern : {dense_pattern, mot_pattern}) {
        ModelConfig config = mot_only();
        config.pattern = pattern;
        Trainee whole(config, recipe("fp32"));
        const Trajectory want = alone(steps, whole);
        for (const char* shard : {"none", "parameters"}) {
            TrainConfig train = recipe("fp32");
            train.shard = shard;
            SharedTrainee run(config, train), again(config, train);
            const Trajectory got = together(steps, run);
            expect_close(got, want, 1e-5, pattern + " " + name_of(train));
            expect_identical(together(steps, again), got, pattern + " " + name_of(train));
        }
    }
}

// The same sums in the same order: cutting moments, or parameters on top of gradients, changes no bit in any precision.
TEST(OnRanks, WhatIsCutDoesNotChangeBits) {
    if (!under_mpirun()) GTEST_SKIP() << "for several ranks: see Launch";
    constexpr int64_t steps = 5;
    for (const char* precision : {"fp32", "bf16-mixed", "bf16"}) {
        ModelConfig config = every_kind();
        std::map<std::string, Trajectory> runs;
        for (const char* shard : all_shards) {
            TrainConfig train = recipe(precision);
            train.shard = shard, train.stochastic_rounding = train.precision == "bf16";
            SharedTrainee run(config, train);
            runs[shard] = together(steps, run);
        }
        expect_identical(runs["optimizer"], runs["none"], precision);
        expect_identical(runs["parameters"], runs["gradients"], precision);
        // Gradients of f32 are added up in another order: losses differ by what bf16 parameters then round to.
        expect_close({runs["gradients"].losses, runs["gradients"].norms, {}, {}},
                     {runs["none"].losses, runs["none"].norms, {}, {}}, std::string(precision) == "fp32" ? 1e-4 : 0.1, precision);
    }
}

}  // namespace
}  // namespace llmc::test
