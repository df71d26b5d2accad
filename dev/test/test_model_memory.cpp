// The memory plan is what a run takes, to the byte; and nobody above ops/ looks at device memory.
#include "dev/test/child.h"
#include "dev/test/trainee.h"

namespace llmc::test {
namespace {

// -------------------------------------------------------------------------------------------------------------- memory

TEST(Memory, ArenaAndWorkspaceAreThePlans) {
    for (const std::string& pattern : {dense_pattern, mot_pattern, moe_pattern})
        for (const char* precision : {"fp32", "bf16-mixed", "bf16", "fp64"})
            for (Recompute recompute : values_of<Recompute>()) {
                TrainConfig train = training(8, 2, precision);
                train.recompute = recompute;
                ModelConfig config = tiny(pattern);
                config.final_norm = true;
                Trainee run(config, train, {.threads = 2});
                const Tokens tokens = random_tokens(16 * T, 1), targets = random_tokens(16 * T, 2);
                for (int s = 0; s < 3; s++) {
                    run(tokens, targets, true);  // a workspace or an arena that had to grow would throw
                    run.step->evaluate(tokens.data(), targets.data(), {});
                }
                EXPECT_EQ(run.arena.peak(), run.plan.activation_bytes)
                    << pattern << " " << precision << " " << recompute;
                EXPECT_EQ(run.arena.bytes(), run.plan.activation_bytes);
                EXPECT_EQ(run.ctx.workspace_needed, run.plan.workspace_bytes)
                    << pattern << " " << precision << " " << recompute;
                EXPECT_EQ(run.model.buffers.bytes(),
                          run.plan.parameter_bytes + run.plan.copy_bytes + run.plan.gradient_bytes);
                EXPECT_EQ(run.optimizer->bytes(), run.plan.optimizer_bytes);
            }
}

TEST(Memory, OneByteLessIsNotEnough) {
    const ModelConfig config = tiny(mot_pattern);
    const TrainConfig train = training(8);
    const Plan plan = make_plan(config, train, true, 1);
    const Tokens tokens = random_tokens(8 * T, 1), targets = random_tokens(8 * T, 2);
    for (bool arena_short : {true, false}) {
        Session session(config, train, World::alone(), {.threads = 1});
        session.allocate(true, plan.activation_bytes - (arena_short ? 1 : 0),
                         plan.workspace_bytes - (arena_short ? 0 : 1));
        session.initialize();
        Step& step = *session.step;
        step.begin(1e-3);
        EXPECT_TRUE(refuses(
            [&] {
                step.micro_batch(tokens.data(), targets.data(), 0, true);
                step.update();
                step.evaluate(tokens.data(), targets.data(), {});
            },
            arena_short ? "arena activations is full" : "workspace"));
    }
}

TEST(Memory, RecomputingNeedsLess) {
    ModelConfig config = tiny("12x(attention ffn)");  // so many that what both need, workspace too, does not matter
    TrainConfig train = training(8);
    const int64_t saved = make_plan(config, train, true, 1).activation_bytes;
    train.recompute = Recompute::blocks;
    EXPECT_LT(make_plan(config, train, true, 1).activation_bytes, saved / 2);
}

// --------------------------------------------------------------------------------------------------------------- guard

TEST(Guard, TrainingTouchesTensorsOnlyInsideOps) {
    const Tokens tokens = random_tokens(8 * T, 1), targets = random_tokens(8 * T, 2);
    for (const char* precision : {"fp32", "bf16-mixed"}) {
        ModelConfig config = tiny(mot_pattern + " " + moe_pattern);
        config.final_norm = true, config.expert_choice_fraction = 0.5;
        Trainee open(config, training(4, 2, precision)),
            guarded(config, training(4, 2, precision), {.threads = 1, .guard = true});
        for (int s = 0; s < 2; s++) EXPECT_EQ(guarded(tokens, targets, true), open(tokens, targets, true));
        EXPECT_EQ(guarded.step->evaluate(tokens.data(), targets.data(), {.discrete = true}).sum,
                  open.step->evaluate(tokens.data(), targets.data(), {.discrete = true}).sum);
        EXPECT_TRUE(identical(guarded.step->metrics(), open.step->metrics()));
        EXPECT_TRUE(identical(guarded.parameters(), open.parameters()));
    }
}

TEST(Guard, EvaluationAndGenerationToo) {
    ModelConfig config = tiny(mot_pattern);
    config.pattern += " " + moe_pattern;
    config.positions = Positions::rope, config.norm = Norm::rmsnorm, config.emit = Emit::experts,
    config.tied_head = true;
    Lab open(config), guarded(config, "fp32", {.threads = 1, .guard = true});
    const Tokens tokens = random_tokens(8 * T, 1), targets = random_tokens(8 * T, 2);
    EXPECT_TRUE(identical(guarded.logits(tokens, 8), open.logits(tokens, 8)));
    EXPECT_TRUE(identical(guarded.train(tokens, targets, 8, {.recompute = true}), open.train(tokens, targets, 8, {})));
    EXPECT_TRUE(identical(guarded.gradients(), open.gradients()));
    EXPECT_TRUE(identical(guarded.extend(tokens, 8, {3, 5})[1], open.extend(tokens, 8, {3, 5})[1]));
}

TEST(GuardDeathTest, ReadingATensorOutsideAnOpCrashes) {
    testing::FLAGS_gtest_death_test_style = "threadsafe";
    Trainee guarded(tiny(mot_pattern), training(4), {.threads = 1, .guard = true});
    const volatile char* parameters = static_cast<const char*>(guarded.model.params.data);
    EXPECT_BAD_ACCESS({ (void)*parameters; });
}

}  // namespace
}  // namespace llmc::test
