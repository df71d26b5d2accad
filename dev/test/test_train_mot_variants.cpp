// The design variants of MoT in whole models: recomputation, metrics, causality, generation, training, and what is
// refused.
#include "dev/test/mot_oracle.h"
#include "dev/test/refusal.h"
#include "dev/test/trainee.h"

namespace llmc::test {
namespace {

// --------------------------------------------------------------------------------------------------- in whole models
// Some of everything.
std::vector<ModelConfig> models() {
    auto model = [](const std::function<void(ModelConfig&)>& change) {
        ModelConfig c = tiny("attention mot mot");
        change(c);
        return c;
    };
    return {
        model([](ModelConfig& c) {
            c.emit = Emit::group, c.controllers = Controllers::separate, c.group_order = GroupOrder::random;
        }),
        model([](ModelConfig& c) {
            c.emit = Emit::experts, c.controllers = Controllers::common_base,
            c.learn_temperature = LearnTemperature::tied;
        }),
        model([](ModelConfig& c) {
            c.emit = Emit::group, c.controllers = Controllers::weighted_common, c.mixture_norm = true;
        }),
        model([](ModelConfig& c) {
            c.emit = Emit::group, c.learn_temperature = LearnTemperature::separate,
            c.temperature_form = TemperatureForm::exp;
        }),
        model(
            [](ModelConfig& c) { c.merge_softmax = false, c.mixture_norm = true, c.group_order = GroupOrder::random; }),
        model([](ModelConfig& c) {
            c.emit = Emit::top, c.learn_temperature = LearnTemperature::tied, c.temperature_per_expert = true;
        }),
        model([](ModelConfig& c) {
            c.emit = Emit::raw, c.group_order = GroupOrder::random, c.expert_activation = Hidden::geglu;
        }),
        model([](ModelConfig& c) {
            c.emit = Emit::experts, c.controllers = Controllers::weighted,
            c.learn_temperature = LearnTemperature::separate;
        }),
    };
}

TEST(MotModels, RecomputationGivesTheSameBits) {
    const Tokens tokens = random_tokens(8 * 8, 3), targets = random_tokens(8 * 8, 4);
    for (const ModelConfig& c : models())
        for (const char* precision : {"fp32", "bf16-mixed"}) {
            SCOPED_TRACE(text_of(c));
            Lab kept(c, precision), recomputed(c, precision);
            const Vector losses = kept.train(tokens, targets, 8, {});
            EXPECT_TRUE(identical(losses, recomputed.train(tokens, targets, 8, {.recompute = true})));
            EXPECT_TRUE(identical(kept.gradients(), recomputed.gradients()));
        }
}

TEST(MotModels, MetricsAreNamedAndFinite) {
    const Tokens tokens = random_tokens(8 * 8, 3);
    for (const ModelConfig& c : models()) {
        SCOPED_TRACE(text_of(c));
        Lab lab(c, "fp64");
        const auto metrics = lab.train_measured(tokens, tokens, 8).metrics;
        for (const auto& [name, value] : metrics) EXPECT_TRUE(std::isfinite(value)) << name;
        EXPECT_TRUE(metrics.count("blocks.1.merge_logits_std"));
        EXPECT_EQ(metrics.count("blocks.1.merge_entropy"), c.merge_softmax);
        EXPECT_EQ(metrics.count("blocks.2.emit_entropy"), c.emit == Emit::group || c.emit == Emit::experts);
        EXPECT_EQ(metrics.count("blocks.2.temperature"), c.learn_temperature != LearnTemperature::no);
        EXPECT_EQ(metrics.count("blocks.2.emit_temperature"), c.learn_temperature == LearnTemperature::separate);
        if (c.learn_temperature == LearnTemperature::no) continue;
        double mean = 0;
        const Vector p = read_tensor(lab.parameter("blocks.2.temperature"), lab.ctx);
        for (double v : p)
            mean += (c.temperature_form == TemperatureForm::exp ? std::exp(v - 1) : v) / double(p.size());
        EXPECT_NEAR(metrics.at("blocks.2.temperature"), mean, 1e-15);
    }
}

// What a token becomes depends on its own group only.
TEST(MotModels, RowsOfOtherGroupsStayApart) {
    for (const ModelConfig& c : models()) {
        if (c.group_order == GroupOrder::random) continue;
        SCOPED_TRACE(text_of(c));
        Lab lab(c, "fp64");
        Tokens tokens = random_tokens(8 * 8, 3);
        const Vector before = lab.logits(tokens, 8);
        for (size_t i = 32; i < 64; i++) tokens[i] = (tokens[i] + 1) % 50;  // the second group
        const Vector after = lab.logits(tokens, 8);
        for (size_t i = 0; i < before.size() / 2; i++) ASSERT_EQ(before[i], after[i]);
    }
}

// Nothing that a variant does looks at a later position, generation gives what whole sequences give.
TEST(MotModels, AreCausalAndGenerate) {
    for (ModelConfig c : models()) {
        SCOPED_TRACE(text_of(c));
        Lab lab(c, "fp64");
        Tokens tokens = random_tokens(8 * 8, 3);
        const Vector before = lab.logits(tokens, 8);
        for (size_t b = 0; b < 8; b++) tokens[b * 8 + 6] = (tokens[b * 8 + 6] + 1) % 50;
        const Vector after = lab.logits(tokens, 8);
        for (size_t b = 0; b < 8; b++)
            for (size_t i = 0; i < 6 * 50; i++) ASSERT_EQ(before[b * 400 + i], after[b * 400 + i]);
        c.group_order = GroupOrder::consecutive;
        Lab in_order(c, "fp64");
        const Vector all = in_order.logits(tokens, 8);
        const std::vector<Vector> steps = lab.extend(tokens, 8, {5, 1, 2});  // in order, whatever training does
        Vector last;
        for (size_t b = 0; b < 8; b++)
            for (size_t i = 0; i < 50; i++) last.push_back(all[b * 400 + 350 + i]);
        EXPECT_TRUE(close(steps.back(), last, 1e-12));
    }
}

// --------------------------------------------------------------------------------------------------------- in training
TEST(MotTraining, EveryMicroBatchHasItsOwnOrder) {
    ModelConfig c = tiny("mot mot");
    c.group_order = GroupOrder::random;
    const Tokens tokens = random_tokens(16 * 8, 3), targets = random_tokens(16 * 8, 4);
    auto losses_of = [&](int64_t number, int64_t micro_batches, int64_t seed = 1) {
        TrainConfig train = training(8, micro_batches);
        train.seed = seed;
        Trainee run(c, train);
        run.model.initialize(1);  // the same weights for every seed
        Vector losses;
        run.step->begin(0, number);
        for (int64_t k = 0; k < micro_batches; k++) {
            run.step->micro_batch(tokens.data(), targets.data(), k, false);
            losses.push_back(run.step->state().loss_sum);
        }
        for (size_t k = losses.size(); k-- > 1;) losses[k] -= losses[k - 1];
        return losses;
    };
    const Vector first = losses_of(0, 2), second = losses_of(1, 2);
    EXPECT_NE(first[0], first[1]);  // of the same tokens
    EXPECT_NE(first[0], second[0]);
    // a step of two micro-batches is numbers 2 n and 2 n + 1, a resumed run goes on counting
    EXPECT_EQ(losses_of(2, 1)[0], second[0]);
    EXPECT_EQ(losses_of(1, 2), second);
    EXPECT_NE(losses_of(0, 2, 2)[0], first[0]) << "another seed, another order";
    // without a number, and in evaluation, it is always the same one
    Lab lab(c);
    EXPECT_TRUE(close(lab.evaluate(tokens, targets, 16), lab.train(tokens, targets, 16, {}), 1e-6));
}

TEST(MotTraining, TemperaturesStartLateAndNeverDecay) {
    ModelConfig c = tiny("mot");
    c.emit = Emit::experts, c.learn_temperature = LearnTemperature::separate, c.temperature_start = 2,
    c.controllers = Controllers::weighted;
    c.mixture_norm = true;  // decays, and is declared after the scalars
    TrainConfig train = training(8);
    train.decay = Decay::all, train.weight_decay = 0.5;
    Trainee run(c, train);
    const Tokens tokens = random_tokens(8 * 8, 3), targets = random_tokens(8 * 8, 4);
    for (int step = 0; step < 4; step++) {
        const NamedVectors before = run.parameters();
        run(tokens, targets);
        const NamedVectors after = run.parameters();
        for (const char* name : {"blocks.0.temperature", "blocks.0.emit_temperature"}) {
            EXPECT_EQ(after.at(name)[0] == 1, step < 2) << name << " after step " << step;
            EXPECT_EQ(run.gradients().at(name)[0] == 0, step < 2) << name;
        }
        EXPECT_NE(after.at("blocks.0.controller_mix"), before.at("blocks.0.controller_mix"));
    }
    // Without gradients, what decays shrinks and what does not stays.
    fill(run.model.grads, 0, run.ctx);
    fill(run.optimizer->states()[0].all(), 0, run.ctx);
    const NamedVectors before = run.parameters();
    run.step->begin(0.1);
    run.step->update();
    const NamedVectors after = run.parameters();
    for (const auto& [name, values] : before) {
        const bool scalar = name.find("temperature") != std::string::npos || name.ends_with("_mix");
        for (size_t i = 0; i < values.size(); i++)
            EXPECT_EQ(after.at(name)[i] == values[i], scalar || values[i] == 0) << name;
    }
}

// Temperatures that are not trained yet train nothing else differently either.
TEST(MotTraining, AFrozenTemperatureIsNone) {
    ModelConfig plain = tiny(mot_pattern), frozen = plain;
    frozen.learn_temperature = LearnTemperature::tied, frozen.temperature_start = 1000;
    const Tokens tokens = random_tokens(8 * 8, 3), targets = random_tokens(8 * 8, 4);
    Trainee a(plain, training(8)), b(frozen, training(8));
    for (int step = 0; step < 3; step++) EXPECT_EQ(a(tokens, targets), b(tokens, targets));
    NamedVectors rest = b.parameters();
    EXPECT_EQ(rest["blocks.3.temperature"], Vector{1});
    rest.erase("blocks.3.temperature");
    EXPECT_TRUE(identical(rest, a.parameters()));
}

// ------------------------------------------------------------------------------------------------------------ refusals
TEST(MotRefusals, WhatContradictsOrChangesNothingIsNamed) {
    struct Case {
        std::vector<std::string> words;
        void (*change)(ModelConfig&);
    };
    const std::vector<Case> cases = {
        {{"--emit group", "--emit shared"}, [](ModelConfig& c) { c.emit = Emit::group; }},
        {{"--emit group"}, [](ModelConfig& c) { c.emit = Emit::group, c.learn_temperature = LearnTemperature::tied; }},
        {{"--controllers separate", "--emit shared"}, [](ModelConfig& c) { c.controllers = Controllers::separate; }},
        {{"--controllers common-base", "--emit raw"},
         [](ModelConfig& c) { c.controllers = Controllers::common_base, c.emit = Emit::raw; }},
        {{"--controllers weighted", "--emit top"},
         [](ModelConfig& c) { c.controllers = Controllers::weighted, c.emit = Emit::top; }},
        {{"--learn-temperature separate", "--emit shared"},
         [](ModelConfig& c) { c.learn_temperature = LearnTemperature::separate; }},
        {{"--learn-temperature separate", "--emit top"},
         [](ModelConfig& c) { c.learn_temperature = LearnTemperature::separate, c.emit = Emit::top; }},
        {{"--temperature-per-expert", "--learn-temperature"}, [](ModelConfig& c) { c.temperature_per_expert = true; }},
        {{"--temperature-form", "--learn-temperature"},
         [](ModelConfig& c) { c.temperature_form = TemperatureForm::exp; }},
        {{"--temperature-start", "--learn-temperature"}, [](ModelConfig& c) { c.temperature_start = 5; }},
        {{"--no-merge-softmax", "--emit experts"},
         [](ModelConfig& c) { c.merge_softmax = false, c.emit = Emit::experts; }},
        {{"--no-merge-softmax", "--learn-temperature"},
         [](ModelConfig& c) { c.merge_softmax = false, c.learn_temperature = LearnTemperature::tied; }},
        {{"--no-merge-softmax", "--temperature"}, [](ModelConfig& c) { c.merge_softmax = false, c.temperature = 0.5; }},
        {{"--router uniform", "--no-merge-softmax"},
         [](ModelConfig& c) { c.router = Router::uniform, c.merge_softmax = false; }},
        {{"--router uniform", "--emit"}, [](ModelConfig& c) { c.router = Router::uniform, c.emit = Emit::top; }},
        {{"--router uniform", "--learn-temperature"},
         [](ModelConfig& c) { c.router = Router::uniform, c.learn_temperature = LearnTemperature::tied; }},
        {{"--router uniform", "--controllers"},
         [](ModelConfig& c) {
             c.router = Router::uniform, c.controllers = Controllers::separate, c.emit = Emit::experts;
         }},
    };
    for (const Case& test : cases) {
        ModelConfig c = tiny(mot_pattern);
        test.change(c);
        const std::string message = refusal([&] { resolved(c); });
        for (const std::string& word : test.words)
            EXPECT_NE(message.find(word), std::string::npos) << word << ": " << message;
        c.pattern = dense_pattern;  // where there is no MoT its options mean nothing
        EXPECT_EQ(refusal([&] { resolved(c); }), "");
    }
}

TEST(MotRefusals, DiscreteWeightsNeedASoftmax) {
    ModelConfig c = tiny(mot_pattern);
    c.merge_softmax = false;
    Lab lab(c);
    const Tokens tokens = random_tokens(4 * 8, 3);
    const EvalOptions discrete{.discrete = true};
    for (const auto& ask : std::vector<std::function<void()>>{[&] { lab.logits(tokens, 4, discrete); },
                                                              [&] { lab.evaluate(tokens, tokens, 4, discrete); },
                                                              [&] { lab.extend(tokens, 4, {2}, discrete); }})
        EXPECT_NE(refusal(ask).find("--no-merge-softmax"), std::string::npos);
}

}  // namespace
}  // namespace llmc::test
