// Sparse mixtures of experts in whole models: what they are in degenerate cases, who may see whom when tokens are
// dropped or chosen, what is measured, and what is refused.
#include "dev/test/model_lab.h"
#include "dev/test/trainee.h"

namespace llmc::test {
namespace {

constexpr int64_t rows = 8, V = 50;

using Renames = std::vector<std::pair<std::string, std::string>>;
std::string renamed(std::string name, const Renames& renames) {
    for (const auto& [from, to] : renames)
        if (size_t at = name.rfind(from); at != std::string::npos) return name.replace(at, from.size(), to);
    return name;
}

// Two models that should be one function: the same logits, losses and gradients for the same parameters.
void expect_same(const std::string& what, const ModelConfig& config, const ModelConfig& twin_config,
                 const Renames& renames) {
    for (const char* precision : {"fp64", "fp32"}) {
        Lab lab(config, precision), twin(twin_config, precision);
        for (const auto& [name, values] : lab.parameters())
            write_tensor(twin.parameter(renamed(name, renames)), values, twin.ctx);
        const Tokens tokens = random_tokens(rows * T, 3), targets = random_tokens(rows * T, 4);
        const double tol = tolerance(lab.model.precision.act, rows * T);
        EXPECT_TRUE(close(twin.logits(tokens, rows), lab.logits(tokens, rows), tol)) << what << " " << precision;
        const Vector losses = lab.train(tokens, targets, rows, {});
        EXPECT_TRUE(close(twin.train(tokens, targets, rows, {}), losses, tol)) << what << " " << precision;
        const NamedVectors got = twin.gradients();
        for (const auto& [name, want] : lab.gradients())
            EXPECT_TRUE(close(got.at(renamed(name, renames)), want, tol)) << what << " " << precision << " " << name;
    }
}

TEST(TokenChoice, OneExpertIsADenseFeedForward) {
    for (Hidden activation : {Hidden::relu, Hidden::gelu, Hidden::swiglu}) {
        ModelConfig dense = tiny("attention ffn ffn"), moe = tiny("attention 2xmoe_token_choice");
        dense.ffn_bias = false, dense.ffn_activation = moe.expert_activation = activation;
        moe.experts = 1, moe.expert_size = dense.d_ff;
        expect_same(name_of(activation), dense, moe,
                    {{".up.weight", ".experts.up.weight"},
                     {".down.weight", ".experts.down.weight"},
                     {".gate.weight", ".experts.gate.weight"}});
    }
}

// With groups of one token, MoT's merge weights are 1 and its emit weights a softmax over all experts.
TEST(TokenChoice, AllExpertsAreADenseMixture) {
    ModelConfig mot = tiny("attention mot attention mot"), moe = tiny("2x(attention moe_token_choice)");
    mot.group_size = 1, mot.emit = Emit::experts;
    moe.top_k = moe.experts, moe.load_balancing_weight = 0;
    expect_same("dense mixture", mot, moe, {{".controller.", ".router."}});
}

TEST(TokenChoice, OrderOfDroppingMattersOnlyIfTokensAreDropped) {
    const Tokens tokens = random_tokens(rows * T, 3);
    for (double capacity : {0.5, 6.0}) {
        ModelConfig position = tiny("attention moe_token_choice");
        position.capacity_factor = capacity;
        ModelConfig gate = position;
        gate.drop_order = DropOrder::gate;
        Lab first(position), largest(gate);
        EXPECT_EQ(bool(identical(first.logits(tokens, rows), largest.logits(tokens, rows))), capacity > 1);
    }
}

// The logits of one row up to position t, before and after the later tokens of that row alone were changed.
struct Views { Vector before, after; };
Views past_of_row(Lab& lab, int64_t row, int64_t t) {
    Tokens tokens = random_tokens(rows * T, 3);
    const Vector before = lab.logits(tokens, rows);
    for (int64_t s = t + 1; s < T; s++) {
        int32_t& token = tokens[size_t(row * T + s)];
        token = (token + 7) % V;
    }
    const Vector after = lab.logits(tokens, rows);
    auto part = [&](const Vector& v) {
        return Vector(v.begin() + row * T * V, v.begin() + (row * T + t + 1) * V);
    };
    return {part(before), part(after)};
}

// True if any row's own future moves its past by more than rounding.
bool sees_its_future(const ModelConfig& config) {
    Lab lab(config, "fp64");
    for (int64_t row = 0; row < rows; row++)
        for (int64_t t = 0; t + 1 < T; t++) {
            const Views views = past_of_row(lab, row, t);
            if (close(views.after, views.before, 1e-12)) continue;
            EXPECT_TRUE(different(views.after, views.before, 1e-12));
            return true;
        }
    return false;
}

TEST(Causality, OfDroppedAndChosenTokens) {
    ModelConfig token = tiny("attention moe_token_choice attention moe_token_choice");
    token.capacity_factor = 0.7, token.top_k = 2;
    EXPECT_FALSE(sees_its_future(token)) << "earlier positions get their slots first";
    token.drop_order = DropOrder::gate;
    EXPECT_TRUE(sees_its_future(token)) << "a later token with a larger gate takes the slot";
    token.drop_order = DropOrder::position, token.dropless = true;
    EXPECT_FALSE(sees_its_future(token));

    ModelConfig expert = tiny("attention moe_expert_choice attention moe_expert_choice");
    expert.expert_choice_fraction = 0.4;
    EXPECT_FALSE(sees_its_future(expert));
    expert.expert_choice_softmax = ChoiceSoftmax::tokens;
    EXPECT_FALSE(sees_its_future(expert)) << "over the tokens of one position";
    expert.expert_choice_over = Candidates::all;
    EXPECT_TRUE(sees_its_future(expert));
}

TEST(ExpertChoice, GroupsDoNotSeeEachOther) {
    ModelConfig config = tiny("attention moe_expert_choice");
    config.simulate_group_size = 2, config.expert_choice_fraction = 0.5;  // rows b and b + 4
    Lab lab(config, "fp64");
    Tokens tokens = random_tokens(rows * T, 3);
    const Vector before = lab.logits(tokens, rows);
    for (int64_t t = 0; t < T; t++) tokens[size_t(5 * T + t)] = (tokens[size_t(5 * T + t)] + 1) % V;
    const Vector after = lab.logits(tokens, rows);
    for (int64_t b = 0; b < rows; b++) {
        auto row = [&](const Vector& v) { return Vector(v.begin() + b * T * V, v.begin() + (b + 1) * T * V); };
        EXPECT_TRUE(b == 1 || b == 5 ? different(row(after), row(before), 1e-12)
                                     : close(row(after), row(before), 1e-12)) << b;
    }
}

TEST(Generation, TokenChoiceDropsNothing) {
    ModelConfig dropping = tiny("attention moe_token_choice"), roomy = dropping;
    dropping.capacity_factor = 0.5, roomy.capacity_factor = 6;
    Lab lab(dropping, "fp64"), other(roomy, "fp64");
    const Tokens tokens = random_tokens(rows * T, 3);
    EXPECT_FALSE(identical(lab.logits(tokens, rows), other.logits(tokens, rows)));
    EXPECT_TRUE(close(lab.extend(tokens, rows, {3, 5})[1], other.extend(tokens, rows, {8})[0], 1e-12));
    EXPECT_NO_THROW(lab.extend(random_tokens(T, 1), 1, {1}));
}

TEST(Generation, RefusesExpertsThatChooseAmongAllPositions) {
    ModelConfig config = tiny("attention moe_expert_choice");
    Lab lone(config);  // a sixth of one sequence is none
    EXPECT_THROW(lone.extend(random_tokens(T, 1), 1, {4}), InputError);
    config.expert_choice_over = Candidates::all;
    Lab lab(config);
    EXPECT_THROW(lab.extend(random_tokens(rows * T, 1), rows, {4}), InputError);
}

TEST(Metrics, AUniformRouterSendsEveryTokenToTheFirstExperts) {
    ModelConfig config = tiny("attention moe_token_choice");
    config.top_k = 2, config.capacity_factor = 1.5;
    Lab lab(config, "fp64");
    Tensor router = lab.parameter("blocks.1.router.weight");
    fill(router, 0, lab.ctx);
    std::map<std::string, double> m =
        lab.train_measured(random_tokens(rows * T, 1), random_tokens(rows * T, 2), rows).metrics;
    ASSERT_EQ(m.size(), 8u);
    EXPECT_NEAR(m.at("blocks.1.balance_loss"), 2, 1e-12);  // E * (1 + 1) * 1/E
    EXPECT_NEAR(m.at("blocks.1.dropped"), 0.5, 1e-12);     // two experts have 32 slots for 64 tokens each
    EXPECT_EQ(m.at("blocks.1.load_min"), 0);
    EXPECT_NEAR(m.at("blocks.1.load_max"), 3, 1e-12);      // 64 of 128 pairs, six experts
    EXPECT_NEAR(m.at("blocks.1.router_entropy"), 1, 1e-6);
    EXPECT_NEAR(m.at("blocks.1.router_logits_std"), 0, 1e-12);
}

TEST(LoadBalancing, EvensOutTheLoad) {
    double largest[2];
    for (int balanced : {0, 1}) {
        ModelConfig config = tiny("attention moe_token_choice");
        config.load_balancing_weight = balanced ? 1 : 0;
        Trainee run(config, training(8));
        const Tokens tokens = random_tokens(8 * T, 1), targets = random_tokens(8 * T, 2);
        for (int s = 0; s < 40; s++) run(tokens, targets, true);
        for (const MetricSlot& slot : run.model.metric_slots())
            if (slot.name == "blocks.1.load_max") largest[balanced] = run.step->metrics()[size_t(slot.first)];
    }
    EXPECT_LT(largest[1], 2);
    EXPECT_LT(largest[1], largest[0]);
}

}  // namespace
}  // namespace llmc::test
