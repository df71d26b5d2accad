// Configurations: the pattern language, what is refused and how it is said, JSON.
#include <gtest/gtest.h>

#include "dev/test/refusal.h"
#include "llmc/base/errors.h"
#include "llmc/model/model.h"
#include "llmc/model/precision.h"
#include "llmc/step/config_fields.h"

namespace llmc {
namespace {

using Words = std::vector<std::string>;
using test::refusal;

testing::AssertionResult says(const std::string& sentence, const Words& parts) {
    for (const std::string& part : parts)
        if (sentence.find(part) == std::string::npos)
            return testing::AssertionFailure() << "\"" << sentence << "\" does not contain \"" << part << "\"";
    return testing::AssertionSuccess();
}

TEST(Pattern, Parses) {
    EXPECT_EQ(parse_pattern("attention"), Words{"attention"});
    EXPECT_EQ(parse_pattern("2x(attention ffn) attention mot"),
              (Words{"attention", "ffn", "attention", "ffn", "attention", "mot"}));
    EXPECT_EQ(parse_pattern(" 2 x ( attention  2xffn )  3xmot "),
              (Words{"attention", "ffn", "ffn", "attention", "ffn", "ffn", "mot", "mot", "mot"}));
    EXPECT_EQ(parse_pattern("2x(2x(attention) ffn)"),
              (Words{"attention", "attention", "ffn", "attention", "attention", "ffn"}));
    EXPECT_EQ(parse_pattern("(attention)(ffn)mot"), (Words{"attention", "ffn", "mot"}));
    EXPECT_EQ(parse_pattern("10000xffn").size(), 10000u);
    EXPECT_EQ(parse_pattern("4x(attention ffn) 4x(attention mot)").size(), 16u);
}

TEST(Pattern, RefusesWithThePosition) {
    struct Case {
        const char* text;
        Words parts;
    };
    const std::vector<Case> cases = {
        {"", {"character 1", "no blocks"}},
        {"   ", {"character 4", "no blocks"}},
        {"()", {"character 2", "no blocks"}},
        {"attention fnn", {"character 11", "expected attention, ffn, mot, moe_token_choice, moe_expert_choice"}},
        {"Attention", {"character 1", "expected attention"}},
        {"2x(attention ffn", {"character 17", "not closed"}},
        {"attention)", {"character 10", "without its ("}},
        {"2(attention)", {"character 2", "followed by x"}},
        {"2", {"character 2", "followed by x"}},
        {"2x", {"character 3", "expected attention"}},
        {"0x(attention)", {"character 3", "between 1 and 10000"}},
        {"99999999999999999999x(attention)", {"does not parse"}},
        {"10001xffn", {"between 1 and 10000"}},
        {"200x(100x(attention))", {"more than 10000 blocks"}},
        {"attention, ffn", {"character 10", "expected attention"}},
        {"-2x(ffn)", {"character 1", "expected attention"}},
        {"mamba", {"character 1", "expected attention"}},
    };
    const std::string deep = std::string(100000, '(');
    EXPECT_TRUE(says(refusal([&] { parse_pattern(deep); }), {"character 65", "( is nested deeper than 64"}));
    EXPECT_EQ(parse_pattern(std::string(64, '(') + "ffn" + std::string(64, ')')), Words{"ffn"});
    for (const Case& c : cases) {
        std::string sentence = refusal([&] { parse_pattern(c.text); });
        EXPECT_TRUE(says(sentence, c.parts)) << c.text;
        EXPECT_TRUE(says(sentence, {std::string("--pattern \"") + c.text + "\""}));
    }
}

TEST(Resolved, FillsInSizes) {
    ModelConfig c;
    c.pattern = "attention mot";
    c.d_model = 512;
    EXPECT_EQ(resolved(c).d_ff, 2048);
    EXPECT_EQ(resolved(c).expert_size, 2048);  // g = E = 32
    c.experts = 256;
    EXPECT_EQ(resolved(c).expert_size, 256);  // the paper's 32E/8
    c.flop_matched = false;
    EXPECT_EQ(resolved(c).expert_size, 8);  // parameters of a dense layer
    c.expert_size = 77, c.d_ff = 100;
    EXPECT_EQ(resolved(c).expert_size, 77);
    EXPECT_EQ(resolved(c).d_ff, 100);
}

TEST(Resolved, RefusalsNameTheNumbers) {
    ModelConfig c;
    c.d_model = 100, c.heads = 3;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"100", "3", "--d-model", "--heads"}));
    c.heads = 4, c.positions = Positions::rope;  // head size 25
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"100", "4", "25", "even"}));
    c.positions = Positions::learned;
    EXPECT_EQ(refusal([&] { resolved(c); }), "");

    c = {};
    c.pattern = "mot";
    c.experts = 7;  // 2048 * 32 / 7
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--experts 7", "65536", "2048", "32", "--expert-size"}));
    c.flop_matched = false;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--experts 7", "2048", "--expert-size"}));
    c.pattern = "ffn";  // no MoT: nobody asks
    EXPECT_EQ(refusal([&] { resolved(c); }), "");

    c = {};
    c.pattern = "mot", c.group_axis = GroupAxis::sequence, c.group_size = 30, c.expert_size = 8;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--group-size 30", "--context 256"}));
}

TEST(Resolved, ExpertsOfSparseMixtures) {
    ModelConfig c;
    c.pattern = "attention moe_token_choice moe_expert_choice";
    EXPECT_EQ(resolved(c).expert_size, 2048);  // one expert a token
    EXPECT_EQ(resolved(c).expert_choice_fraction, 1.0 / 32);
    c.top_k = 4;
    EXPECT_EQ(resolved(c).expert_size, 512);
    EXPECT_EQ(resolved(c).expert_choice_fraction, 0.125);
    c.flop_matched = false;
    EXPECT_EQ(resolved(c).expert_size, 64);
    c.flop_matched = true, c.expert_choice_fraction = 0.25;  // eight experts a token
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"512", "256", "--expert-size"}));
    c.pattern = "moe_expert_choice";
    EXPECT_EQ(resolved(c).expert_size, 256);
    c.expert_choice_fraction = 0.3;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"2048", "9.6", "--expert-size"}));
    c.top_k = 33;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--top-k 33", "--experts 32"}));
    c.top_k = 1, c.capacity_factor = 0;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--capacity-factor", "positive"}));
    c = {};
    c.pattern = "moe_token_choice", c.renormalize_gates = true;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--renormalize-gates", "--top-k 1"}));
    c.top_k = 2;
    EXPECT_NO_THROW(resolved(c));
    c.dropless = true, c.drop_order = DropOrder::gate;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--drop-order gate", "--dropless"}));
    c.drop_order = DropOrder::position, c.balanced_routing = true;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--balanced-routing", "--renormalize-gates"}));
    c = {};
    c.pattern = "moe_expert_choice", c.dropless = true;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--dropless", "token choice"}));
    c.dropless = false, c.expert_choice_over = Candidates::all, c.simulate_group_size = 4;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--simulate-group-size 4", "--expert-choice-over all"}));
}

// Krajewski et al. 2024: d_ff 2048, G = 4, X = 32.
TEST(Resolved, GranularityGivesNumberAndSizeOfExperts) {
    ModelConfig c;
    c.pattern = "mot moe_token_choice moe_expert_choice", c.granularity = 4, c.expansion = 16;
    const ModelConfig r = resolved(c);
    EXPECT_EQ(r.experts, 64);
    EXPECT_EQ(r.expert_size, 512);
    EXPECT_EQ(r.group_size, 16);
    EXPECT_EQ(r.top_k, 4);
    EXPECT_EQ(r.expert_choice_fraction, 1.0 / 16);
    EXPECT_EQ(to_json(resolved(r)), to_json(r)) << "a saved configuration is resolved again";
    EXPECT_EQ(outputs_that_add_up(r, "mot"), 1);
    EXPECT_EQ(outputs_that_add_up(r, "moe_token_choice"), 64);
    EXPECT_EQ(outputs_that_add_up(r, "moe_expert_choice"), 4);
    for (const char* kind : {"mot", "moe_token_choice", "moe_expert_choice"}) {
        ModelConfig other = r;
        other.expert_down_init = DownInit::chosen;
        EXPECT_EQ(outputs_that_add_up(other, kind), 4) << kind;
        other.expert_down_init = DownInit::all;
        EXPECT_EQ(outputs_that_add_up(other, kind), 64) << kind;
    }

    ModelConfig shared = r;
    shared.shared_experts = 3, shared.expert_down_init = DownInit::chosen;
    EXPECT_EQ(outputs_that_add_up(shared, "moe_token_choice"), 4) << "shared experts are a sum of their own";

    c.experts = 128;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--granularity 4", "--expansion 16", "--experts 64", "128"}));
    c.experts = 64, c.top_k = 2;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--top-k 4", "2"}));
    c.top_k = 1, c.granularity = 3;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--granularity 3", "2048"}));
    c.granularity = 0;
    EXPECT_TRUE(says(refusal([&] { resolved(c); }), {"--granularity is missing"}));

    ModelConfig within;  // it is the group size that follows, 8, which has to divide the context
    within.pattern = "mot", within.group_axis = GroupAxis::sequence, within.granularity = 4, within.expansion = 8;
    within.context = 24;
    EXPECT_EQ(resolved(within).group_size, 8);
    within.context = 20;
    EXPECT_TRUE(says(refusal([&] { resolved(within); }), {"--group-size 8", "--context 20"}));
}

TEST(Resolved, WeightsOfTheLayersOwnLosses) {
    ModelConfig c;
    c.pattern = "3x(attention moe_token_choice) moe_expert_choice";
    c.load_balancing_weight = 0.06, c.router_z_loss_weight = 0.001;
    EXPECT_EQ(aux_loss_weight(c, "balance_loss"), 0.06);
    EXPECT_EQ(aux_loss_weight(c, "z_loss"), 0.001);
    EXPECT_EQ(aux_loss_weight(c, "dropped"), 0);
    c.load_balancing_over = OverLayers::mean;
    EXPECT_DOUBLE_EQ(aux_loss_weight(c, "balance_loss"), 0.02);
}

TEST(Resolved, CapacitiesAndChoices) {
    ModelConfig c;
    c.experts = 7, c.top_k = 2, c.capacity_factor = 1.75;
    EXPECT_EQ(expert_capacity(c, 27), 13);   // 13.5 is cut off
    c.capacity_factor = 100;
    EXPECT_EQ(expert_capacity(c, 27), 27);
    c.capacity_factor = 0.1;
    EXPECT_TRUE(says(refusal([&] { expert_capacity(c, 27); }), {"--capacity-factor 0.1", "27 tokens"}));
    c.expert_choice_fraction = 0.25;
    EXPECT_EQ(expert_choices(c, 10), 2);  // 2.5 and ...
    EXPECT_EQ(expert_choices(c, 14), 4);  // 3.5: half to even
    EXPECT_TRUE(says(refusal([&] { expert_choices(c, 2); }), {"--expert-choice-fraction 0.25", "2 candidates"}));
}

TEST(Resolved, ModelsCheckTheirRowsAndVocabulary) {
    Context ctx({.counting = true});
    ModelConfig c;
    c.pattern = "mot";
    Model model(c, Precision::of(PrecisionMode::fp32), true, ctx);
    EXPECT_TRUE(says(refusal([&] { model.check_rows(48); }), {"48", "32", "micro-batch"}));
    EXPECT_TRUE(says(refusal([&] { model.check_rows(64, 24); }), {"64", "24"}));
    EXPECT_EQ(refusal([&] { model.check_rows(64); }), "");
    c.pattern = "moe_expert_choice", c.simulate_group_size = 32;
    Model choice(c, Precision::of(PrecisionMode::fp32), true, ctx);
    EXPECT_TRUE(says(refusal([&] { choice.check_rows(48); }), {"48", "32", "--simulate-group-size"}));
    EXPECT_EQ(refusal([&] { choice.check_rows(64); }), "");
    c.simulate_group_size = 0;
    Model whole(c, Precision::of(PrecisionMode::fp32), true, ctx);
    EXPECT_TRUE(says(refusal([&] { whole.check_rows(16); }), {"16 candidates", "0 tokens per expert"}));
    c.vocab_size = 0;
    EXPECT_TRUE(
        says(refusal([&] { Model(c, Precision::of(PrecisionMode::fp32), true, ctx); }), {"--vocab-size", "--data"}));
}

TEST(Names, WordsAndPrecisions) {
    EXPECT_EQ(activation_of(Hidden::relu), Activation::relu);
    EXPECT_EQ(activation_of(Hidden::gelu), Activation::gelu);
    EXPECT_EQ(activation_of(Hidden::gelu_erf), Activation::gelu_erf);
    EXPECT_EQ(activation_of(Hidden::silu), Activation::silu);
    EXPECT_EQ(activation_of(Hidden::swiglu), Activation::silu);
    EXPECT_EQ(activation_of(Hidden::geglu), Activation::gelu_erf);
    EXPECT_EQ(activation_of(Hidden::linear), Activation::none);
    EXPECT_TRUE(says(refusal([] { from_word<Hidden>("tanh"); }), {"tanh", "relu, gelu"}));

    EXPECT_FALSE(Precision::of(PrecisionMode::fp32).compute_copy());
    EXPECT_TRUE(Precision::of(PrecisionMode::bf16_mixed).compute_copy());
    EXPECT_EQ(Precision::of(PrecisionMode::bf16).param, DType::bf16);
    EXPECT_EQ(Precision::of(PrecisionMode::bf16).grad, DType::f32);
    EXPECT_EQ(Precision::of(PrecisionMode::fp64).grad, DType::f64);
    EXPECT_TRUE(says(refusal([] { from_word<PrecisionMode>("fp16"); }), {"fp16", "bf16-mixed"}));
}

// The list of fields must name every field: otherwise a checkpoint would forget one. A copy through JSON keeps what was
// changed.
template <class Config, class FromJson, class ForEach>
void round_trip(FromJson from_json, ForEach for_each) {
    Config config;
    double share = 0.3;
    for_each(config, [&](const FieldInfo& info, auto& field) {
        using T = std::decay_t<decltype(field)>;
        if constexpr (std::is_same_v<T, bool>)
            field = !field;
        else if constexpr (std::is_same_v<T, std::string>)
            field = "changed";
        else if constexpr (HasWords<T>)
            field = from_word<T>(choices_of<T>(info).back());
        else
            field = T(info.least + (std::min(info.most, 1000.0) - info.least) * (share += 0.01));
    });
    const nlohmann::json json = to_json(config);
    EXPECT_EQ(to_json(from_json(json, "test")), json);
    EXPECT_NE(to_json(Config{}), json);

    for_each(config, [&](const FieldInfo& info, auto& field) {
        using T = std::decay_t<decltype(field)>;
        nlohmann::json broken = json;
        if constexpr (HasWords<T>) {
            broken[info.name] = "nonsense";
            EXPECT_TRUE(says(refusal([&] { from_json(broken, "some file"); }),
                             {"some file", info.name, "nonsense", choices_of<T>(info)[0]}));
        } else if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
            broken[info.name] = T(info.least - 1);
            EXPECT_TRUE(
                says(refusal([&] { from_json(broken, "some file"); }), {"some file", info.name, "not between"}));
        }
    });

    for (const auto& [key, value] : json.items()) {
        nlohmann::json older = json, broken = json;  // older: from before the field existed
        older.erase(key);
        nlohmann::json read = to_json(from_json(older, "test"));
        EXPECT_EQ(read.at(key), to_json(Config{}).at(key));
        read[key] = value;
        EXPECT_EQ(read, json);
        broken[key] = nlohmann::json::array();
        EXPECT_TRUE(
            says(refusal([&] { from_json(broken, "some file"); }), {"some file", "\"" + key + "\"", "wrong type"}));
    }
    nlohmann::json unknown = json;
    unknown["surprise"] = 1;
    EXPECT_TRUE(says(refusal([&] { from_json(unknown, "some file"); }), {"some file", "surprise"}));
    EXPECT_TRUE(says(refusal([&] { from_json(nlohmann::json::array(), "some file"); }), {"some file"}));
}

TEST(Json, RoundTripsAndRefuses) {
    round_trip<ModelConfig>(model_config_from_json, [](auto& c, auto&& f) { for_each_model_field(c, f); });
    round_trip<TrainConfig>(train_config_from_json, [](auto& c, auto&& f) { for_each_train_field(c, f); });
}

}  // namespace
}  // namespace llmc
