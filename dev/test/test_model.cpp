// Whole models: who may see whom, generation, recomputation, and MoT at its degenerate sizes.
#include <set>

#include "dev/test/model_lab.h"

namespace llmc::test {
namespace {

constexpr int64_t rows = 8, T = 8, V = 50;

ModelConfig with_rope(ModelConfig c) {
    c.positions = Positions::rope;
    return c;
}
ModelConfig with_options(ModelConfig c) {
    c.norm = Norm::rmsnorm, c.final_norm = true, c.tied_head = true, c.ffn_activation = Hidden::swiglu,
    c.expert_activation = Hidden::silu;
    c.attention_bias = true, c.emit = Emit::experts, c.temperature = 0.7;
    return c;
}

ModelConfig without_drops(ModelConfig c) {  // which slots are free depends on all earlier rows, at every position
    c.capacity_factor = double(c.experts);
    return c;
}
ModelConfig with_moe_options(ModelConfig c) {
    c.norm = Norm::rmsnorm, c.final_norm = true, c.expert_activation = Hidden::swiglu, c.top_k = 2,
    c.drop_order = DropOrder::gate;
    c.simulate_group_size = 4, c.expert_choice_fraction = 0.5;
    return c;
}
ModelConfig with_later_moe_options(ModelConfig c) {
    c.dropless = c.renormalize_gates = true, c.top_k = 3, c.shared_experts = 1, c.router_z_loss_weight = 0.1;
    c.expert_choice_softmax = ChoiceSoftmax::experts, c.expert_choice_norm = false, c.expert_activation = Hidden::geglu;
    return c;
}

// Every kind of block and position that generates.
std::vector<std::pair<const char*, ModelConfig>> causal_models() {
    return {{"dense", tiny(dense_pattern)},
            {"dense with rope", with_rope(tiny(dense_pattern))},
            {"mot", tiny(mot_pattern)},
            {"mot with rope and other options", with_options(with_rope(tiny(mot_pattern)))},
            {"moe", without_drops(tiny(moe_pattern))},
            {"moe with rope and other options", with_moe_options(without_drops(with_rope(tiny(moe_pattern))))},
            {"dropless moe with other options", with_later_moe_options(tiny(moe_pattern))}};
}

// Rows `chosen`, positions [0, end) of logits [rows, T, V].
Vector part_of_logits(const Vector& logits, const std::set<int64_t>& chosen, int64_t end) {
    Vector part;
    for (int64_t b : chosen) part.insert(part.end(), logits.begin() + b * T * V, logits.begin() + (b * T + end) * V);
    return part;
}
const std::set<int64_t> all_rows = {0, 1, 2, 3, 4, 5, 6, 7};

// tokens with everything after position t replaced in every row.
Tokens other_future(const Tokens& tokens, int64_t t) {
    Tokens changed = tokens;
    for (int64_t b = 0; b < rows; b++)
        for (int64_t s = t + 1; s < T; s++)
            changed[size_t(b * T + s)] = (tokens[size_t(b * T + s)] + 1 + int32_t(b)) % V;
    return changed;
}

TEST(Causality, LogitsDoNotSeeTheFuture) {
    for (const auto& [what, config] : causal_models()) {
        // Dropless: later tokens change how many rows an expert has, and a library may round by that. f64: loops.
        Lab lab(config, config.dropless ? "fp64" : "fp32");
        const Tokens tokens = random_tokens(rows * T, 3);
        const Vector before = lab.logits(tokens, rows);
        for (int64_t t = 0; t + 1 < T; t++) {
            const Vector after = lab.logits(other_future(tokens, t), rows);
            EXPECT_TRUE(identical(part_of_logits(after, all_rows, t + 1), part_of_logits(before, all_rows, t + 1)))
                << what << ", tokens changed after position " << t;
            EXPECT_FALSE(identical(after, before)) << what << ": the change must be seen later";
        }
    }
}

TEST(Causality, GroupsWithinASequenceSeeTheFuture) {
    ModelConfig config = tiny(mot_pattern);
    config.group_axis = GroupAxis::sequence;
    Lab lab(config);
    const Tokens tokens = random_tokens(rows * T, 3);
    const Vector before = lab.logits(tokens, rows);
    for (int64_t t : {0, 2, 5}) {  // inside a group of positions 0-3 or 4-7
        const Vector after = lab.logits(other_future(tokens, t), rows);
        EXPECT_FALSE(identical(part_of_logits(after, all_rows, t + 1), part_of_logits(before, all_rows, t + 1)));
    }
    const Vector after = lab.logits(other_future(tokens, 3), rows);  // group 0-3 does not see group 4-7
    EXPECT_TRUE(identical(part_of_logits(after, all_rows, 4), part_of_logits(before, all_rows, 4)));
}

TEST(Causality, OneGroupDoesNotSeeAnother) {
    for (bool sequence : {false, true}) {
        ModelConfig config = tiny(mot_pattern);
        if (sequence) config.group_axis = GroupAxis::sequence;
        Lab lab(config);
        Tokens tokens = random_tokens(rows * T, 3);
        const Vector before = lab.logits(tokens, rows);
        for (int64_t i = 0; i < T; i++) tokens[size_t(5 * T + i)] = (tokens[size_t(5 * T + i)] + 1) % V;  // row 5
        const Vector after = lab.logits(tokens, rows);
        const std::set<int64_t> others =
            sequence ? std::set<int64_t>{0, 1, 2, 3, 4, 6, 7} : std::set<int64_t>{0, 1, 2, 3};
        EXPECT_TRUE(identical(part_of_logits(after, others, T), part_of_logits(before, others, T)));
        for (int64_t b = 0; b < rows; b++)
            EXPECT_EQ(bool(identical(part_of_logits(after, {b}, T), part_of_logits(before, {b}, T))),
                      others.count(b) == 1)
                << b;
    }
}

TEST(Mot, GroupOfOneAndOneExpertIsADenseFeedForward) {
    for (const char* precision : {"fp64", "fp32"}) {
        ModelConfig dense_config = tiny("attention ffn ffn"), mot_config = tiny("attention mot mot");
        dense_config.ffn_bias = false;
        mot_config.group_size = mot_config.experts = 1, mot_config.expert_size = dense_config.d_ff;
        Lab dense(dense_config, precision), mot(mot_config, precision);
        auto mot_name = [](std::string name) {
            for (const char* matrix : {"up.weight", "down.weight"})
                if (size_t at = name.rfind(std::string(".") + matrix); at != std::string::npos)
                    name.insert(at, ".experts");
            return name;
        };
        for (const auto& [name, values] : dense.parameters())
            write_tensor(mot.parameter(mot_name(name)), values, mot.ctx);

        const Tokens tokens = random_tokens(rows * T, 3), targets = random_tokens(rows * T, 4);
        const DType act = dense.model.precision.act;
        EXPECT_TRUE(close(mot.logits(tokens, rows), dense.logits(tokens, rows), tolerance(act, 24))) << precision;
        Vector dense_losses = dense.train(tokens, targets, rows, {}), mot_losses = mot.train(tokens, targets, rows, {});
        EXPECT_TRUE(close(mot_losses, dense_losses, tolerance(act, 24))) << precision;
        NamedVectors got = mot.gradients();
        for (const auto& [name, want] : dense.gradients())
            EXPECT_TRUE(close(got.at(mot_name(name)), want, tolerance(act, rows * T))) << precision << " " << name;
        for (int block : {1, 2})  // a softmax over one token is 1 whatever the controller says
            for (double g : got.at(str("blocks.", block, ".controller.weight"))) EXPECT_NEAR(g, 0, tolerance(act) * 10);
    }
}

TEST(Mot, RowsMustFillGroups) {
    Lab lab(tiny(mot_pattern));
    auto sentence = [&](int64_t n, int64_t group) -> std::string {
        try {
            lab.model.check_rows(n, group);
        } catch (const InputError& e) {
            return e.what();
        }
        return "";
    };
    EXPECT_NE(sentence(6, 0).find("a batch of 6 sequences"), std::string::npos);
    EXPECT_NE(sentence(6, 0).find("MoT groups of 4"), std::string::npos);
    EXPECT_NE(sentence(8, 3).find("MoT groups of 3"), std::string::npos);
    EXPECT_EQ(sentence(8, 0), "");
    EXPECT_EQ(sentence(6, 3), "");
    EXPECT_THROW(lab.logits(random_tokens(6 * T, 1), 6), InputError);
    EXPECT_THROW(lab.train(random_tokens(6 * T, 1), random_tokens(6 * T, 2), 6, {}), InputError);
    EXPECT_THROW(lab.extend(random_tokens(6 * T, 1), 6, {1}), InputError);
    Lab dense(tiny(dense_pattern));
    EXPECT_NO_THROW(dense.model.check_rows(7));

    ModelConfig config = tiny(mot_pattern);
    config.group_axis = GroupAxis::sequence;
    Lab sequence(config);
    EXPECT_NO_THROW(sequence.model.check_rows(7));
    EXPECT_NO_THROW(sequence.model.check_rows(7, 2));
    EXPECT_THROW(sequence.model.check_rows(7, 3), InputError);  // 8 positions
}

// A sharp controller makes the softmax one-hot: then discrete evaluation is the soft one.
TEST(Mot, DiscreteIsTheLimitOfASharpController) {
    for (Emit emit : {Emit::shared, Emit::experts}) {
        ModelConfig config = tiny("attention mot");
        config.emit = emit;
        Lab lab(config, "fp64");
        const Tokens tokens = random_tokens(rows * T, 3);
        const Vector soft = lab.logits(tokens, rows), discrete = lab.logits(tokens, rows, {.discrete = true});
        EXPECT_TRUE(different(soft, discrete, 1e-3));
        Tensor controller = lab.parameter("blocks.1.controller.weight");
        Vector values = read_tensor(controller, lab.ctx);
        for (double& v : values) v *= 1e6;
        write_tensor(controller, values, lab.ctx);
        EXPECT_TRUE(close(lab.logits(tokens, rows), discrete, 1e-12)) << emit;
    }
}

TEST(Mot, EvaluationCanUseAnotherGroupSize) {
    ModelConfig config = tiny(mot_pattern);
    Lab lab(config);
    config.group_size = 2;
    Lab other(config);  // the parameters do not depend on the group size
    const Tokens tokens = random_tokens(rows * T, 3), targets = random_tokens(rows * T, 4);
    EXPECT_TRUE(
        identical(lab.evaluate(tokens, targets, rows, {.group_size = 2}), other.evaluate(tokens, targets, rows)));
    EXPECT_FALSE(identical(lab.evaluate(tokens, targets, rows), other.evaluate(tokens, targets, rows)));
}

TEST(Generation, ExtendEqualsFullForward) {
    for (const auto& [what, config] : causal_models())
        for (const char* precision : {"fp64", "fp32", "bf16"}) {
            if (has_moe(config) && precision == std::string("bf16")) continue;  // rounding may change a choice
            Lab lab(config, precision);
            const Tokens tokens = random_tokens(rows * T, 3);
            const Vector full = lab.logits(tokens, rows);
            const DType act = lab.model.precision.act;
            // bf16: every one of about 20 stored tensors may round the other way
            const double tol = act == DType::bf16 ? 20 * roundoff(act) : tolerance(act, 50);
            for (const std::vector<int64_t>& chunks : {std::vector<int64_t>(8, 1), {3, 1, 4}, {1, 5, 2}, {8}}) {
                std::vector<Vector> got = lab.extend(tokens, rows, chunks);
                int64_t end = 0;
                for (size_t i = 0; i < chunks.size(); i++) {
                    end += chunks[i];
                    Vector want;
                    for (int64_t b = 0; b < rows; b++)
                        want.insert(want.end(), full.begin() + (b * T + end - 1) * V, full.begin() + (b * T + end) * V);
                    EXPECT_TRUE(close(got[i], want, tol)) << what << ", " << precision << ", up to position " << end;
                }
            }
        }
}

TEST(Generation, RefusesWhatItCannotDo) {
    Lab lab(tiny(dense_pattern));
    EXPECT_THROW(lab.extend(random_tokens(9, 1), 1, {5, 4}), InputError);  // past the context
    ModelConfig config = tiny(mot_pattern);
    config.group_axis = GroupAxis::sequence;
    Lab sequence(config);
    EXPECT_THROW(sequence.extend(random_tokens(8, 1), 1, {4}), InputError);
}

TEST(Training, LossesAreThoseOfEvaluationAndLogits) {
    for (const auto& [what, config] : causal_models()) {
        Lab lab(config, "fp64");
        const Tokens tokens = random_tokens(rows * T, 3);
        Tokens targets = random_tokens(rows * T, 4);
        targets[5] = targets[60] = -1;  // ignored
        const Vector logits = lab.logits(tokens, rows), losses = lab.evaluate(tokens, targets, rows);
        Vector want(size_t(rows * T));
        for (size_t n = 0; n < want.size(); n++) {
            double sum = 0;
            for (size_t v = 0; v < size_t(V); v++) sum += std::exp(logits[n * V + v]);
            if (targets[n] >= 0) want[n] = std::log(sum) - logits[n * V + size_t(targets[n])];
        }
        EXPECT_TRUE(close(losses, want, 1e-13)) << what;
        EXPECT_TRUE(close(lab.train(tokens, targets, rows, {}), want, 1e-13)) << what;
    }
}

TEST(Training, RecomputedEqualsSaved) {
    ModelConfig sequence = tiny(mot_pattern);
    sequence.group_axis = GroupAxis::sequence;
    std::vector<std::pair<const char*, ModelConfig>> models = causal_models();
    models.push_back({"groups within a sequence", sequence});
    ModelConfig dropping = tiny(moe_pattern), all = dropping;
    dropping.capacity_factor = 0.5, dropping.top_k = 2, dropping.drop_order = DropOrder::gate;
    all.expert_choice_over = Candidates::all, all.expert_choice_softmax = ChoiceSoftmax::tokens;
    models.push_back({"moe with dropped tokens", dropping});
    models.push_back({"expert choice among all tokens", all});
    for (const auto& [what, config] : models)
        for (const char* precision : {"fp32", "bf16-mixed", "fp64"}) {
            Lab lab(config, precision);
            const Tokens tokens = random_tokens(rows * T, 3), targets = random_tokens(rows * T, 4);
            const Vector losses = lab.train(tokens, targets, rows, {});
            const NamedVectors saved = lab.gradients();
            EXPECT_TRUE(identical(lab.train(tokens, targets, rows, {.recompute = true}), losses))
                << what << ", " << precision;
            EXPECT_TRUE(identical(lab.gradients(), saved)) << what << ", " << precision;
        }
}

TEST(Training, ShorterSequencesThanTheContext) {
    for (const auto& [what, config] : causal_models()) {
        Lab lab(config, "fp64");
        const Tokens tokens = random_tokens(rows * T, 3), targets = random_tokens(rows * T, 4);
        const Vector full = lab.evaluate(tokens, targets, rows);
        Tokens short_tokens, short_targets;
        Vector want;
        for (int64_t b = 0; b < rows; b++)
            for (int64_t t = 0; t < 5; t++) {
                short_tokens.push_back(tokens[size_t(b * T + t)]), short_targets.push_back(targets[size_t(b * T + t)]);
                want.push_back(full[size_t(b * T + t)]);
            }
        EXPECT_TRUE(close(lab.evaluate(short_tokens, short_targets, rows), want, 1e-12)) << what;
    }
}

}  // namespace
}  // namespace llmc::test
