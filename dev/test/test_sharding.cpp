// A model that several ranks share, in every way of dividing it, takes the steps of one rank.
//
// The tests called OnRanks are disabled but where Launch starts them: on two to four ranks under mpirun, each world
// size in one launch. Every rank also trains the whole model by itself, and compares.
#include "dev/golden/golden_case.h"
#include "dev/test/sanitized.h"
#include "dev/test/shared_trainee.h"
#include "llmc/step/schedule.h"

namespace llmc::test {
namespace {

std::vector<Start> starts() {
    if (backend_has_graphs()) return {{2, false}, {3, true}};
    return {{2, false}, {3, false}, {4, false}};
}
class Launch : public testing::TestWithParam<Start> {};
TEST_P(Launch, AllTestsOnRanks) {
    const char* of_two = "DISABLED_OnRanks.GoldenTrajectories";
    run_on_ranks(GetParam(), "DISABLED_OnRanks.*", GetParam().ranks == 2 ? "" : of_two);
}
INSTANTIATE_TEST_SUITE_P(, Launch, testing::ValuesIn(starts()));

// -------------------------------------------------------------------------------------------------------- trajectories
const int64_t micro_batches = backend_supports(DType::f64) ? 12 : 6;  // the emulated GPU takes its time
constexpr int64_t rows = 12, context = 12;

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
// fp64 where there is such a thing.
struct Exact {
    std::string precision;
    double tolerance, parameter_tolerance;
    int64_t steps;
};
Exact exact() {
    constexpr int64_t steps = sanitized ? 2 : 20;  // what a sanitizer looks for is there in all of them
    if (backend_supports(DType::f64)) return {"fp64", 1e-9, 1e-7, steps};
    return {"fp32", 1e-4, 1e-2, 1};  // AdamW's first update is the learning rate times the signs of gradients
}

TrainConfig recipe(const std::string& precision = exact().precision) {
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
Trajectory together(int64_t steps, SharedTrainee& run, bool measure = true) {
    Trajectory t;
    for (int64_t i = 0; i < steps; i++) {
        const StepState state = run(tokens_of(i, 1), tokens_of(i, 2), i, measure);
        t.losses.push_back(loss_of(state));
        t.norms.push_back(state.grad_norm);
        if (measure) add_metrics(t, run.step->metrics(), run.model);  // waits for all communication
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
    want.merge(read_all(whole.optimizer->state_parts(false), whole.ctx));
    std::vector<NamedTensor> parts = run.model.parameter_parts(true);
    for (const NamedTensor& t : run.optimizer->state_parts(true)) parts.push_back(t);
    int64_t elements = 0;
    for (const NamedTensor& part : parts) {
        const Vector got = read_tensor(part.tensor, run.ctx), &all = want.at(part.name);
        elements += int64_t(got.size());
        for (size_t i = 0; i < got.size(); i++)
            ASSERT_NEAR(got[i], all[size_t(part.first) + i], tolerance) << what << ", " << part.name << " " << i;
    }
    int64_t owned = 0;  // by all ranks: everything once
    for (const std::string& text : world().all_gather(std::to_string(elements))) owned += std::stoll(text);
    int64_t all = 0;
    for (const auto& [name, values] : want) all += int64_t(values.size());
    EXPECT_EQ(owned, all) << what;
}

std::string name_of(const TrainConfig& c) {
    return str(c.precision, ", --shard ", c.shard, " --expert-parallel ", c.expert_parallel, " --group-ranks ",
               c.group_ranks);
}

// One that every step reads, and this rank has.
Tensor some_parameter(SharedTrainee& run) {
    const Unit& unit = run.model.table.units.back();
    return slice_range(run.model.table, unit, run.model.params).slice(0, 1);
}

std::vector<int> divisors(int n) {
    std::vector<int> list;
    for (int d = 1; d <= n; d++)
        if (n % d == 0) list.push_back(d);
    return list;
}

TEST(DISABLED_OnRanks, EveryWayOfDividingTakesTheStepsOfOneRank) {
    const int64_t steps = exact().steps;
    bool tied = false;  // in turn, so that every mode meets both
    std::map<bool, std::pair<std::unique_ptr<Trainee>, Trajectory>> references;
    for (int expert_parallel : divisors(world().size))
        for (ShardMode shard : values_of<ShardMode>()) {
            tied = !tied;
            ModelConfig config = every_kind();
            config.tied_head = tied, config.final_norm = tied;
            config.positions = tied ? Positions::rope : Positions::learned;
            config.load_balancing_weight = 0.5, config.router_z_loss_weight = 0.1, config.top_k = 2;
            config.dropless = tied;
            TrainConfig train = recipe();
            auto& [whole, want] = references[tied];
            if (!whole) {
                whole = std::make_unique<Trainee>(config, train);
                want = alone(steps, *whole);
            }
            train.shard = shard, train.expert_parallel = expert_parallel;
            train.recompute = tied ? Recompute::blocks : Recompute::none;
            SharedTrainee run(config, train);
            expect_close(together(steps, run), want, exact().tolerance, name_of(train));
            expect_parts(run, *whole, exact().parameter_tolerance, name_of(train));
            EXPECT_EQ(run.bytes(), run.plan.total()) << name_of(train);
            for (const Model::Place& place : run.model.places)
                EXPECT_EQ(bool(place.params), train.shard != ShardMode::parameters) << name_of(train);
        }
}

// Muon needs whole matrices: every way of dividing cuts some of them, and with 12 experts there are whole ones too.
TEST(DISABLED_OnRanks, MuonTakesTheStepsOfOneRank) {
    const int64_t steps = std::min<int64_t>(exact().steps, 8);
    TrainConfig train = recipe();
    train.optimizer = OptimizerName::muon;
    Trainee whole(every_kind(), train);
    const Trajectory want = alone(steps, whole);
    for (int expert_parallel : divisors(world().size))
        for (ShardMode shard : values_of<ShardMode>()) {
            train.shard = shard, train.expert_parallel = expert_parallel;
            SharedTrainee run(every_kind(), train);
            expect_close(together(steps, run), want, exact().tolerance, name_of(train));
            expect_parts(run, whole, exact().parameter_tolerance, name_of(train));
            EXPECT_EQ(run.bytes(), run.plan.total()) << name_of(train);
        }
}

// Groups that span ranks, in every combination with divided experts and with whatever else a MoT block can do.
TEST(DISABLED_OnRanks, GroupsMaySpanRanks) {
    const int64_t steps = exact().steps;
    std::map<bool, std::pair<std::unique_ptr<Trainee>, Trajectory>> references;
    bool variant = false;
    for (int group_ranks : divisors(world().size))
        for (int expert_parallel : divisors(world().size)) {
            variant = !variant;
            ModelConfig config = mot_only();
            config.group_size = 6;  // more than the 3 or 4 rows of one of 3 or 4 ranks
            config.group_order = variant ? GroupOrder::random : GroupOrder::consecutive;
            config.mixture_norm = variant, config.emit = variant ? Emit::group : Emit::shared;
            config.learn_temperature = variant ? LearnTemperature::separate : LearnTemperature::no;
            config.tied_head = variant;
            config.expert_activation = variant ? Hidden::swiglu : Hidden::gelu;
            TrainConfig train = recipe();
            auto& [whole, want] = references[variant];
            if (!whole) {
                whole = std::make_unique<Trainee>(config, train);
                want = alone(steps, *whole);
            }
            train.group_ranks = group_ranks, train.expert_parallel = expert_parallel;
            train.shard = values_of<ShardMode>()[size_t(group_ranks + 2 * expert_parallel) % 4];
            train.recompute = expert_parallel > 1 ? Recompute::blocks : Recompute::none;
            SharedTrainee run(config, train);
            // A deviation of n elements divides by n - 1, that of several parts by n: they have 72 or more.
            expect_close(together(steps, run), want, exact().tolerance, name_of(train), group_ranks > 1 ? 0.5 / 72 : 0);
            expect_parts(run, *whole, exact().parameter_tolerance, name_of(train));
            EXPECT_EQ(run.bytes(), run.plan.total()) << name_of(train);
        }
}

TEST(DISABLED_OnRanks, SinglePrecisionAndTheSameBits) {
    const int64_t steps = exact().steps;
    for (const std::string& pattern : {dense_pattern, mot_pattern}) {
        ModelConfig config = mot_only();
        config.pattern = pattern;
        Trainee whole(config, recipe("fp32"));
        const Trajectory want = alone(steps, whole);
        for (ShardMode shard : {ShardMode::none, ShardMode::parameters}) {
            TrainConfig train = recipe("fp32");
            train.shard = shard;
            SharedTrainee run(config, train), again(config, train);
            const Trajectory got = together(steps, run);
            expect_close(got, want, 1e-5, pattern + " " + name_of(train));
            expect_identical(together(steps, again), got, pattern + " " + name_of(train));
        }
    }
}

// MPI's sums are those in the order of the ranks, NCCL may take another for every collective.
bool sums_by_rank() { return !backend_has_graphs(); }

// The same sums in the same order: cutting moments, or parameters on top of gradients, changes no bit in any precision.
TEST(DISABLED_OnRanks, WhatIsCutDoesNotChangeBits) {
    const int64_t steps = exact().steps == 20 ? 5 : 2;
    for (const char* precision : {"fp32", "bf16-mixed", "bf16"}) {
        ModelConfig config = every_kind();
        std::map<ShardMode, Trajectory> runs;
        for (ShardMode shard : values_of<ShardMode>()) {
            TrainConfig train = recipe(precision);
            train.shard = shard, train.stochastic_rounding = train.precision == PrecisionMode::bf16;
            SharedTrainee run(config, train);
            runs[shard] = together(steps, run, false);
        }
        if (sums_by_rank()) {
            expect_identical(runs[ShardMode::optimizer], runs[ShardMode::none], precision);
            expect_identical(runs[ShardMode::parameters], runs[ShardMode::gradients], precision);
        }
        // Gradients of f32 are added up in another order: losses differ by what bf16 parameters then round to, or by
        // another choice between equal tokens. SumsInAnotherOrderDifferByRounding looks closer at fp32.
        for (ShardMode shard : {ShardMode::optimizer, ShardMode::gradients, ShardMode::parameters})
            expect_close({runs[shard].losses, runs[shard].norms, {}, {}},
                         {runs[ShardMode::none].losses, runs[ShardMode::none].norms, {}, {}}, 0.1, precision);
    }
}

// In fp32, every parameter and moment stays within the rounding of its gradient's sum, however that sum is ordered.
//
// Two things would turn a rounding into more, so both are kept out. AdamW divides a gradient by its own size: with
// adam_eps = lr an update moves no further than the gradient does. And a router may have to choose between tokens that
// are equal in exact arithmetic (the same token at position 0 of two sequences). A library may round the two rows of a
// product differently, and then the last bits of the parameters decide which of them an expert takes. Models with
// routers are therefore compared after one step, in which all of them choose with the same parameters.
TEST(DISABLED_OnRanks, SumsInAnotherOrderDifferByRounding) {
    const double rounding = tolerance(DType::f32, micro_batches * rows * context);
    struct Run { ModelConfig config; int64_t steps; };
    for (const Run& run : {Run{every_kind(), 1}, {mot_only(), exact().steps == 20 ? 5 : 2}}) {
        TrainConfig train = recipe("fp32");
        train.adam_eps = train.lr;
        Trainee whole(run.config, train);
        const Trajectory want = alone(run.steps, whole);
        for (ShardMode shard : values_of<ShardMode>()) {
            train.shard = shard;
            SharedTrainee shared(run.config, train);
            const std::string what = run.config.pattern + " " + name_of(train);
            expect_close(together(run.steps, shared), want, rounding, what);
            expect_parts(shared, whole, rounding, what);
        }
    }
}

// ------------------------------------------------------------------------------------------------ golden trajectories
// Ten steps of the reference implementation, a batch of which is cut into two micro-batches.
void expect_golden_trajectory(const std::string& file, ShardMode shard) {
    const GoldenCase golden("dev/test/golden/" + file);
    TrainConfig train = golden.train;
    train.shard = shard, train.precision = from_word<PrecisionMode>(exact().precision);
    train.grad_accumulation = 2, train.micro_batch = golden.B / 2;
    SharedTrainee run(golden.model, train);
    for (const NamedTensor& part : run.model.parameter_parts(false)) {
        const std::vector<double> all = golden.floats("param." + part.name, part.shape());
        const auto first = all.begin() + part.first;
        write_tensor(part.tensor, Vector(first, first + part.tensor.numel()), run.ctx);
    }
    run.shared.spread_parameters();
    const int64_t steps = train.steps, size = golden.B * golden.T;
    const Shape batches{steps, golden.B, golden.T};
    const Tokens tokens = golden.integers("tokens", batches), targets = golden.integers("targets", batches);
    const std::vector<double> losses = golden.floats("losses", {steps}), norms = golden.floats("grad_norms", {steps});
    const Schedule schedule{train.lr, train.warmup_steps, train.decay_steps, train.final_lr_fraction};
    for (int64_t s = 0; s < steps; s++) {
        run.train.lr = learning_rate(schedule, s);
        const auto from = [&](const Tokens& all) {
            return Tokens(all.begin() + s * size, all.begin() + (s + 1) * size);
        };
        const StepState state = run(from(tokens), from(targets), s);
        EXPECT_NEAR(loss_of(state), losses[size_t(s)], 1e-5 * losses[size_t(s)]) << file << " " << shard << " " << s;
        EXPECT_NEAR(state.grad_norm, norms[size_t(s)], 1e-5 * norms[size_t(s)]) << file << " " << shard << " " << s;
    }
}

TEST(DISABLED_OnRanks, GoldenTrajectories) {
    if (world().size != 2) GTEST_SKIP() << "for two ranks";
    if (!path_exists("dev/test/golden")) GTEST_SKIP() << "run from the repository's root";
    for (ShardMode shard : values_of<ShardMode>()) {
        expect_golden_trajectory("trajectory_1_mot.safetensors", shard);
        expect_golden_trajectory("trajectory_2_dense.safetensors", shard);
    }
}

// --------------------------------------------------------------------------------------------------- failing together
// One rank computes nonsense in one step: all skip this step, and only this one.
TEST(DISABLED_OnRanks, ANanOnOneRankMakesAllSkipTheStep) {
    for (ShardMode shard : values_of<ShardMode>()) {
        TrainConfig train = recipe("fp32");
        train.shard = shard;
        SharedTrainee run(mot_only(), train);
        run(tokens_of(0, 1), tokens_of(0, 2), 0);
        const NamedVectors before = read_all(run.model.parameter_parts(true), run.ctx);
        const Tensor held = some_parameter(run);
        const Vector good = read_tensor(held, run.ctx);
        if (world().rank == world().size - 1) fill(held, NAN, run.ctx);
        const StepState bad = run(tokens_of(1, 1), tokens_of(1, 2), 1);
        EXPECT_EQ(bad.skipped, 1) << shard;
        EXPECT_EQ(bad.t, 1) << shard;
        write_tensor(held, good, run.ctx);
        run.shared.spread_parameters();
        EXPECT_TRUE(identical(read_all(run.model.parameter_parts(true), run.ctx), before)) << shard;
        const StepState next = run(tokens_of(2, 1), tokens_of(2, 2), 2);
        EXPECT_EQ(next.skipped, 1) << shard;
        EXPECT_EQ(next.skipped_in_a_row, 0) << shard;
        EXPECT_EQ(next.t, 2) << shard;
    }
}

// ------------------------------------------------------------------------------------------------- bytes on the wire
// What each rank sends in a step by the formulae, in bytes of f32: W ranks, n = micro-batches of a rank.
double wire_of(const Model& model, ShardMode shard, double n) {
    const double W = world().size, once = (W - 1) / W;
    double sent = 2 * once * 3 * 8;  // loss, tokens and squares of gradients, in f64
    for (const Unit& unit : model.table.units) {
        const double bytes = 4 * double(unit.size);
        const double uses = unit.name == "head" ? 1 : 2;  // forward and backward, which the head does at once
        switch (shard) {
            case ShardMode::none:
            case ShardMode::optimizer:
                sent += 2 * once * bytes;
                break;
            case ShardMode::gradients:
                sent += (n + 1) * once * bytes;
                break;
            case ShardMode::parameters:
                sent += n * (uses + 1) * once * bytes;
                break;
        }
    }
    return sent;
}

TEST(DISABLED_OnRanks, WhatIsSentIsWhatThePlanAndTheFormulaeSay) {
    for (ShardMode shard : values_of<ShardMode>())
        for (int expert_parallel : {1, world().size}) {
            ModelConfig config = every_kind();
            config.final_norm = true, config.dropless = expert_parallel > 1, config.top_k = 2;
            TrainConfig train = recipe("fp32");
            train.shard = shard, train.expert_parallel = expert_parallel;
            SharedTrainee run(config, train);
            const std::map<std::string, CommCost> start = run.mesh.costs();
            int64_t received = -(run.mesh.all.received + run.mesh.experts.received + run.mesh.replicas.received);
            run(tokens_of(0, 1), tokens_of(0, 2), 0);
            received += run.mesh.all.received + run.mesh.experts.received + run.mesh.replicas.received;
            int64_t wire = 0, planned = 0;
            for (auto [name, cost] : run.mesh.costs())
                wire += cost.wire - (start.count(name) ? start.at(name).wire : 0);
            for (const Plan::Traffic& traffic : run.plan.traffic)
                for (const auto& [name, cost] : traffic.costs) planned += cost.wire;
            // What dropless experts get is planned on average, with as many rows of padding as there can be.
            const double N = world().size, exchanges = 4.0 * double(micro_batches) / N;
            const double padding = exchanges * double(run.model.config.experts * (ragged_tile() - 1)) *
                                   double(run.model.config.d_model) * 4 * (N - 1) / N;
            double mean = 0;
            for (const std::string& text : world().all_gather(std::to_string(wire)))
                mean += std::stod(text) / world().size;
            if (config.dropless) {
                EXPECT_LE(mean, 1.05 * double(planned)) << name_of(train);
                EXPECT_GE(mean, 0.95 * double(planned) - padding) << name_of(train);
            } else {
                EXPECT_EQ(wire, planned) << name_of(train);
            }
            if (expert_parallel == 1) {
                EXPECT_NEAR(double(wire), wire_of(run.model, shard, double(micro_batches) / world().size), 200)
                    << name_of(train);  // whole bytes of each collective
            }
            if (backend_has_graphs()) continue;  // who received what is counted where MPI carries the bytes
            int64_t of_all = 0;
            for (const std::string& text : world().all_gather(std::to_string(received))) of_all += std::stoll(text);
            EXPECT_NEAR(double(of_all), mean * world().size, 200 * world().size) << name_of(train);
        }
}

// Mixtures are all there is to send, twice forward and twice backward: E*R*C elements, of which 1/N stay.
TEST(DISABLED_OnRanks, ExpertParallelMoTSendsMixtures) {
    TrainConfig train = recipe("fp32");
    train.expert_parallel = world().size;
    SharedTrainee run(mot_only(), train);
    const ModelConfig& c = run.model.config;
    const double mixtures = double(c.experts) * rows * context / double(c.group_size) * double(c.d_model) * 4;
    const double N = world().size, n = micro_batches / N;
    EXPECT_NEAR(double(run.plan.traffic[1].costs.at("all_to_all").wire), n * 4 * mixtures * (N - 1) / N, 4 * n);
    EXPECT_EQ(run.plan.traffic[1].costs.at("all_to_all").calls, int64_t(4 * n));
}

}  // namespace
}  // namespace llmc::test
