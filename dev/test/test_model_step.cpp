// Training steps: accumulation, determinism, learning, precision, metrics, and steps that must be skipped.
#include <cmath>

#include "dev/test/trainee.h"

namespace llmc::test {
namespace {

// -------------------------------------------------------------------------------------------------------- accumulation

TEST(Accumulation, IsTheSumOverMicroBatches) {
    for (const std::string& pattern : {dense_pattern, mot_pattern})
        for (const char* precision : {"fp64", "fp32", "bf16-mixed"}) {
            Lab lab(tiny(pattern), precision);
            const Tokens tokens[2] = {random_tokens(8 * T, 1), random_tokens(8 * T, 2)};
            const Tokens targets[2] = {random_tokens(8 * T, 3), random_tokens(8 * T, 4)};
            NamedVectors parts[2], sum;
            for (int k : {0, 1}) {
                lab.train(tokens[k], targets[k], 8, {});
                parts[k] = lab.gradients();
            }
            sum = parts[0];
            for (auto& [name, values] : sum)
                for (size_t i = 0; i < values.size(); i++) values[i] += parts[1].at(name)[i];
            for (bool recompute : {false, true}) {
                lab.train(tokens[0], targets[0], 8, {.recompute = recompute});
                lab.train(tokens[1], targets[1], 8, {.accumulate = true, .recompute = recompute});
                // gradients are f32 (f64) in every precision: only the order of the sums differs
                EXPECT_TRUE(all_close(lab.gradients(), sum, tolerance(lab.model.precision.grad, 8 * T)))
                    << pattern << " " << precision;
            }
        }
}

// One micro-batch of 8 rows, 2 of 4, 4 of 2: the same step. For MoT as long as the rows of a group stay together.
TEST(Accumulation, HowAStepIsCutDoesNotMatter) {
    const Tokens tokens = random_tokens(8 * T, 1), targets = random_tokens(8 * T, 2);
    for (const std::string& pattern : {dense_pattern, mot_pattern})
        for (const char* precision : {"fp64", "fp32"}) {
            ModelConfig config = tiny(pattern);
            config.group_size = 2;
            Trainee whole(config, training(8, 1, precision));
            const double loss = whole(tokens, targets);
            const DType grad = whole.model.precision.grad;
            for (int64_t accumulation : {2, 4}) {
                Trainee cut(config, training(8 / accumulation, accumulation, precision));
                EXPECT_NEAR(cut(tokens, targets), loss, tolerance(grad, 8) * loss);
                EXPECT_TRUE(all_close(cut.gradients(), whole.gradients(), tolerance(grad, 8 * T)))
                    << pattern << " " << precision;
                // AdamW's first update is lr * sign(gradient): only parameters whose gradient is not rounding noise can
                // be compared
                if (grad == DType::f64) {
                    EXPECT_TRUE(all_close(cut.parameters(), whole.parameters(), 1e-6));
                }
            }
        }
}

TEST(Accumulation, GroupsAreMadeInsideAMicroBatch) {
    const Tokens tokens = random_tokens(8 * T, 1), targets = random_tokens(8 * T, 2);
    auto swapped = [](Tokens t) {  // rows 3 and 4 change places: they belong to different groups of 4
        std::swap_ranges(t.begin() + 3 * T, t.begin() + 4 * T, t.begin() + 4 * T);
        return t;
    };
    for (const std::string& pattern : {dense_pattern, mot_pattern}) {
        Trainee plain(tiny(pattern), training(4, 2, "fp64")), mixed(tiny(pattern), training(4, 2, "fp64"));
        const double difference = std::abs(plain(tokens, targets) - mixed(swapped(tokens), swapped(targets)));
        if (pattern == mot_pattern)
            EXPECT_GT(difference, 1e-6);
        else
            EXPECT_LT(difference, 1e-12);
    }
}

// --------------------------------------------------------------------------------------------------------- determinism

TEST(Determinism, TwoRunsAreBitEqual) {
    const Tokens tokens = random_tokens(8 * T, 1), targets = random_tokens(8 * T, 2);
    for (const char* precision : {"fp32", "bf16-mixed", "bf16"}) {
        NamedVectors first[3];
        for (int threads : {1, 2}) {
            double losses[2];
            NamedVectors parameters[2];
            for (int i : {0, 1}) {
                Trainee run(tiny(mot_pattern), training(8, 1, precision), {.threads = threads});
                for (int s = 0; s < 4; s++) losses[i] = run(tokens, targets);
                parameters[i] = run.parameters();
            }
            EXPECT_EQ(losses[0], losses[1]) << precision << ", " << threads << " threads";
            EXPECT_TRUE(identical(parameters[0], parameters[1])) << precision << ", " << threads << " threads";
            first[threads] = parameters[0];
        }
        // The number of threads is part of what results depend on; this says by how little.
        const double tol = std::string(precision) == "fp32" ? 1e-3 : 2e-2;
        EXPECT_TRUE(all_close(first[2], first[1], tol)) << precision;
    }
}

// ------------------------------------------------------------------------------------------------------------ learning

TEST(Learning, OverfitsOneBatch) {
    for (const std::string& pattern : {dense_pattern, mot_pattern}) {
        ModelConfig config = tiny(pattern);
        config.d_model = 32, config.d_ff = 64, config.expert_size = 32;
        Trainee run(config, training(8));
        const Tokens tokens = random_tokens(8 * T, 1), targets = random_tokens(8 * T, 2);
        double loss = run(tokens, targets);
        EXPECT_GT(loss, 3) << pattern;
        int steps = 1;
        for (; steps < 400 && loss >= 0.05; steps++) loss = run(tokens, targets);
        EXPECT_LT(loss, 0.05) << pattern << ", " << steps << " steps";
        EXPECT_GT(steps, 5) << pattern << ": too good to be true";
    }
}

// Text that can be learned up to a point: mostly the next token is a function of this one, sometimes it is anything.
void make_text(Tokens& tokens, Tokens& targets, int64_t rows, uint64_t seed) {
    Vector dice = random_vector(rows * (T + 1), seed), wild = random_integers(rows * (T + 1), 0, 50, seed + 1000);
    tokens.clear(), targets.clear();
    for (int64_t b = 0; b < rows; b++) {
        int32_t token = int32_t(wild[size_t(b * (T + 1))]);
        for (int64_t t = 0; t < T; t++) {
            const size_t i = size_t(b * (T + 1) + t + 1);
            tokens.push_back(token);
            token = dice[i] < 0.6 ? (token * 7 + 3) % 50 : int32_t(wild[i]);
            targets.push_back(token);
        }
    }
}

double loss_after_200_steps(const std::string& pattern, const std::string& precision) {
    Trainee run(tiny(pattern), training(16, 1, precision));
    Tokens tokens, targets;
    for (int s = 0; s < 200; s++) {
        make_text(tokens, targets, 16, uint64_t(s));
        run(tokens, targets);
    }
    double loss = 0;
    for (int i = 0; i < 8; i++) {
        make_text(tokens, targets, 16, uint64_t(9000 + i));
        loss += run.step->evaluate(tokens.data(), targets.data(), {}).mean() / 8;
    }
    EXPECT_EQ(run.step->state().skipped, 0);
    EXPECT_EQ(run.step->state().t, 200);
    return loss;
}

TEST(Learning, MixedPrecisionEndsWhereFp32Does) {
    for (const std::string& pattern : {dense_pattern, mot_pattern}) {
        const double fp32 = loss_after_200_steps(pattern, "fp32"), mixed = loss_after_200_steps(pattern, "bf16-mixed");
        EXPECT_LT(fp32, 0.8 * std::log(50)) << pattern << ": nothing was learned, so nothing is compared";
        EXPECT_NEAR(mixed, fp32, 0.01 * fp32) << pattern;
        EXPECT_LT(loss_after_200_steps(pattern, "bf16"), 0.9 * std::log(50))
            << pattern;  // runs and learns; how well is its experiment
    }
}

// ------------------------------------------------------------------------------------------------------------- metrics

TEST(Metrics, AUniformControllerHasFullEntropy) {
    for (Emit emit : {Emit::shared, Emit::experts}) {
        ModelConfig config = tiny("attention mot ffn mot");
        config.emit = emit;
        Trainee run(config, training(8, 1, "fp64"));
        const Tokens tokens = random_tokens(8 * T, 1), targets = random_tokens(8 * T, 2);
        Tensor controller = view_of(*run.model.table.find("blocks.1.controller.weight").spec,
                                    unit_range(*run.model.table.find_unit("blocks.1"), run.model.params));
        fill(controller, 0, run.ctx);
        run.model.refresh_compute_copy();
        run(tokens, targets, true);
        const std::vector<double> values = run.step->metrics();
        std::map<std::string, double> metric;
        for (const MetricSlot& slot : run.model.metric_slots()) metric[slot.name] = values.at(size_t(slot.first));
        EXPECT_EQ(metric.size(), emit == Emit::shared ? 8u : 16u);
        for (const char* weights : {"merge", "emit"}) {
            if (!metric.count(str("blocks.1.", weights, "_entropy"))) continue;
            // the reference's entropy is -sum w log(w + 1e-8), divided by log n: of n equal weights a little less than
            // 1
            const double n = std::string(weights) == "merge" ? double(config.group_size) : double(config.experts);
            EXPECT_NEAR(metric.at(str("blocks.1.", weights, "_entropy")), 1 - std::log1p(n * 1e-8) / std::log(n),
                        1e-12);
            EXPECT_NEAR(metric.at(str("blocks.1.", weights, "_entropy_std")), 0, 1e-6);
            EXPECT_NEAR(metric.at(str("blocks.1.", weights, "_logits_std")), 0, 1e-12);
            EXPECT_LT(metric.at(str("blocks.3.", weights, "_entropy")), 1);
            EXPECT_GT(metric.at(str("blocks.3.", weights, "_entropy")), 0);
            EXPECT_GT(metric.at(str("blocks.3.", weights, "_logits_std")), 0);
        }
    }
}

// ------------------------------------------------------------------------------------------------------- skipped steps

TEST(Skipping, AStepWhoseLossIsNotFiniteChangesNothing) {
    for (const char* precision : {"fp32", "bf16-mixed", "bf16"})
        for (double poison : {std::nan(""), double(INFINITY)}) {
            TrainConfig train = training(8, 1, precision);
            train.optimizer = std::isnan(poison) ? OptimizerName::muon : OptimizerName::adamw;  // both, in turn
            Trainee run(tiny(mot_pattern), train);
            Tokens tokens = random_tokens(8 * T, 1), targets = random_tokens(8 * T, 2);
            for (int32_t& token : tokens) token = token == 7 ? 8 : token;
            Tokens bad = tokens;
            bad[19] = 7;  // the token whose embedding is broken

            Tensor table = view_of(*run.model.table.find("embedding.token.weight").spec,
                                   unit_range(*run.model.table.find_unit("embedding"), run.model.params));
            Vector values = read_tensor(table, run.ctx);
            values[7 * 16 + 5] = poison;
            write_tensor(table, values, run.ctx);
            run.model.refresh_compute_copy();

            auto bits = [&] {  // of everything a step may change: a NaN equals itself here
                std::vector<std::vector<char>> all;
                std::vector<Tensor> tensors = {run.model.params, run.model.compute};
                for (const StateBuffer& state : run.optimizer->states()) tensors.push_back(state.all());
                for (const Tensor& t : tensors) {
                    all.emplace_back(size_t(t.bytes()));
                    download(all.back().data(), t, run.ctx);
                }
                return all;
            };
            run(tokens, targets);
            EXPECT_EQ(run.step->state().t, 1);
            EXPECT_EQ(run.step->state().skipped, 0);

            const auto before = bits();
            for (int i = 1; i <= 2; i++) {
                EXPECT_FALSE(std::isfinite(run(bad, targets)));
                EXPECT_EQ(run.step->state().ok, 0);
                EXPECT_EQ(run.step->state().t, 1) << "Adam's count must not advance";
                EXPECT_EQ(run.step->state().skipped, i);
                EXPECT_EQ(run.step->state().skipped_in_a_row, i);
                EXPECT_TRUE(bits() == before) << precision << ": a skipped step changed something";
            }
            EXPECT_TRUE(std::isfinite(run(tokens, targets)));
            EXPECT_EQ(run.step->state().ok, 1);
            EXPECT_EQ(run.step->state().t, 2);
            EXPECT_EQ(run.step->state().skipped, 2);
            EXPECT_EQ(run.step->state().skipped_in_a_row, 0);
            EXPECT_FALSE(bits() == before);
        }
}

// One bad micro-batch of two spoils the step; the state of before comes back from state()/set_state() as on a resume.
TEST(Skipping, OneBadMicroBatchIsEnough) {
    Trainee run(tiny(dense_pattern), training(8, 2));
    Tokens tokens = random_tokens(16 * T, 1), targets = random_tokens(16 * T, 2);
    for (int32_t& token : tokens) token = token == 7 ? 8 : token;
    tokens[3] = 7;
    Tensor table = view_of(*run.model.table.find("embedding.token.weight").spec,
                           unit_range(*run.model.table.find_unit("embedding"), run.model.params));
    fill(table.slice(7, 8), NAN, run.ctx);
    run(tokens, targets);
    EXPECT_EQ(run.step->state().skipped, 1);
    StepState saved = run.step->state();
    saved.skipped = 41;
    run.step->set_state(saved);
    run(tokens, targets);
    EXPECT_EQ(run.step->state().skipped, 42);
    EXPECT_EQ(run.step->state().t, 0);
}

}  // namespace
}  // namespace llmc::test
