// One set of weights as several mixtures: configurations, tensors, and validation at other group sizes.
#include "dev/test/model_lab.h"
#include "llmc/checkpoint/convert.h"
#include "llmc/infer/evaluate.h"

using namespace llmc;
using namespace llmc::test;

namespace {

ModelConfig mot() { return resolved(tiny("2x(attention mot) ffn mot")); }

// Losses of `model`, whose parameters lie in `lab`, on 8 sequences.
Vector losses(Model& model, Lab& lab) {
    const int64_t rows = 8, T = 8, mark = lab.arena.mark();
    Tensor t = lab.tokens_on_device(random_tokens(rows * T, 1), rows);
    Tensor y = lab.tokens_on_device(random_tokens(rows * T, 2), rows);
    Tensor out = lab.arena.tensor("losses", model.stat(), {rows * T});
    model.evaluate(out, t, y, {}, lab.arena, lab.hooks);
    const Vector values = read_tensor(out, lab.ctx);
    lab.arena.release(mark);
    return values;
}

// A model of its own with the weights of another, copied by name; those the other does not have stay as they are.
std::unique_ptr<Lab> copy_of(Lab& source, const ModelConfig& config) {
    auto lab = std::make_unique<Lab>(config);
    const NamedVectors weights = source.parameters();
    for (const NamedTensor& t : lab->model.parameters()) {
        std::string name = t.name;
        for (const auto& [from, to] : {std::pair("router", "controller"), std::pair("controller", "router")})
            if (const size_t at = t.name.find(from); at != std::string::npos && !weights.contains(t.name))
                name.replace(at, std::string(from).size(), to);
        if (weights.contains(name)) write_tensor(t.tensor, weights.at(name), lab->ctx);
    }
    return lab;
}

void expect_refused(const std::function<void()>& work, const std::vector<std::string>& parts) {
    try {
        work();
        ADD_FAILURE() << "not refused: " << parts[0];
    } catch (const InputError& error) {
        for (const std::string& part : parts)
            EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
}

}  // namespace

TEST(Convert, TokenChoiceHasTheFlopsOfItsMixtureOfTokens) {
    const ModelConfig from = mot(), to = converted(from, Mixture::token_choice, 0, "RUN");
    EXPECT_EQ(to.pattern, "2x(attention moe_token_choice) ffn moe_token_choice");
    EXPECT_EQ(to.top_k, 2);  // 6 experts in groups of 4: 1.5
    EXPECT_EQ(to.expert_size, from.expert_size);
    EXPECT_EQ(to.experts, from.experts);
    EXPECT_EQ(to.capacity_factor, from.capacity_factor);

    ModelConfig few = from;
    few.group_size = 32;
    EXPECT_EQ(converted(few, Mixture::token_choice, 0, "RUN").top_k, 1);
    few.group_size = 1;
    EXPECT_EQ(converted(few, Mixture::token_choice, 0, "RUN").top_k, 6);
}

TEST(Convert, ExpertChoiceTakesOneTokenOfEveryGroup) {
    const ModelConfig to = converted(mot(), Mixture::expert_choice, 0, "RUN");
    EXPECT_EQ(to.pattern, "2x(attention moe_expert_choice) ffn moe_expert_choice");
    EXPECT_EQ(to.simulate_group_size, 4);
    EXPECT_EQ(to.expert_choice_fraction, 0.25);
    EXPECT_EQ(expert_choices(to, 4), 1);
    EXPECT_FALSE(to.expert_choice_norm);
    for (int64_t g = 1; g < 300; g++) {
        ModelConfig from = mot();
        from.group_size = g;
        EXPECT_EQ(expert_choices(converted(from, Mixture::expert_choice, 0, "RUN"), g), 1) << g;
    }
}

TEST(Convert, BackAgain) {
    for (Mixture to : {Mixture::token_choice, Mixture::expert_choice}) {
        const ModelConfig from = mot(), back = converted(converted(from, to, 0, "RUN"), Mixture::mot, 0, "RUN");
        EXPECT_EQ(back.pattern, from.pattern);
        EXPECT_EQ(back.group_size, from.group_size);
        EXPECT_EQ(converted(converted(from, to, 0, "RUN"), Mixture::mot, 3, "RUN").group_size, 3);
    }
    ModelConfig counted = mot();
    counted.pattern = "3xmot (attention 2x(mot))mot";
    EXPECT_EQ(converted(counted, Mixture::token_choice, 0, "RUN").pattern,
              "3xmoe_token_choice (attention 2x(moe_token_choice))moe_token_choice");
}

// All ways to write a count; what else stands in a pattern stays.
TEST(Convert, FindsEveryBlockOfAPattern) {
    ModelConfig c = mot();
    for (const char* text : {"1 xmot", "2  x mot", "2x mot", "2xmot", "mot2xmot", "mot 2 xmot", "2 x(ffn mot)",
                             "2xffn mot", " mot ", "2\t\nxmot"}) {
        c.pattern = text;
        std::vector<std::string> want = parse_pattern(text);
        std::replace(want.begin(), want.end(), std::string("mot"), std::string("moe_token_choice"));
        const ModelConfig to = converted(c, Mixture::token_choice, 0, "RUN");
        EXPECT_EQ(parse_pattern(to.pattern), want) << text;
        EXPECT_FALSE(has_mot(to)) << text;
        EXPECT_EQ(parse_pattern(converted(to, Mixture::mot, 0, "RUN").pattern), parse_pattern(text)) << text;
    }
}

TEST(Convert, RefusesWhatASparseMixtureCannotSay) {
    auto refused = [](auto&& change, const std::string& flag) {
        ModelConfig c = mot();
        change(c);
        expect_refused([&] { converted(c, Mixture::token_choice, 0, "RUN"); }, {flag, "RUN"});
    };
    refused([](ModelConfig& c) { c.emit = Emit::experts; }, "--emit experts");
    refused([](ModelConfig& c) { c.controllers = Controllers::separate; }, "--controllers separate");
    refused([](ModelConfig& c) { c.learn_temperature = LearnTemperature::tied; }, "--learn-temperature tied");
    refused([](ModelConfig& c) { c.mixture_norm = true; }, "--mixture-norm");
    refused([](ModelConfig& c) { c.merge_softmax = false; }, "--no-merge-softmax");
    refused([](ModelConfig& c) { c.group_axis = GroupAxis::sequence; }, "--group-axis sequence");
    refused([](ModelConfig& c) { c.router = Router::uniform; }, "--router uniform");
    refused([](ModelConfig& c) { c.pattern = "attention ffn"; }, "no Mixture-of-Tokens block");
    refused([](ModelConfig& c) { c.pattern = "mot moe_token_choice"; }, "both");
    ModelConfig shared = converted(mot(), Mixture::token_choice, 0, "RUN");
    shared.shared_experts = 1;
    expect_refused([&] { converted(shared, Mixture::mot, 0, "RUN"); }, {"--shared-experts 1"});
}

TEST(Convert, ASecondModelReadsTheParametersOfTheFirst) {
    Lab lab(mot());
    const ModelConfig sparse = converted(lab.model.config, Mixture::token_choice, 0, "RUN");
    const std::unique_ptr<Model> view = model_as(sparse, lab.model, lab.ctx);
    const std::unique_ptr<Lab> copy = copy_of(lab, sparse);
    EXPECT_TRUE(identical(losses(*view, lab), losses(copy->model, *copy)));
    EXPECT_FALSE(identical(losses(*view, lab), losses(lab.model, lab)));
    const std::unique_ptr<Model> back = model_as(converted(sparse, Mixture::mot, 0, "RUN"), *view, lab.ctx);
    EXPECT_TRUE(identical(losses(*back, lab), losses(lab.model, lab)));

    ModelConfig gated = sparse;
    gated.expert_activation = Hidden::swiglu;
    expect_refused([&] { model_as(gated, lab.model, lab.ctx); }, {"experts.gate.weight"});
    expect_refused([&] { model_as(tiny("attention ffn"), lab.model, lab.ctx); }, {"blocks.1"});
}

// With output norms, which only the sparse model has, the tensors of the two lie in different places.
TEST(Convert, ASecondModelFindsWhatLiesElsewhere) {
    ModelConfig normed = converted(mot(), Mixture::expert_choice, 0, "RUN");
    normed.expert_choice_norm = true;
    Lab lab(normed);
    ASSERT_TRUE(lab.parameters().contains("blocks.1.output_norm.weight"));
    const ModelConfig config = converted(normed, Mixture::mot, 0, "RUN");
    const std::unique_ptr<Model> view = model_as(config, lab.model, lab.ctx);
    const std::unique_ptr<Lab> copy = copy_of(lab, config);
    EXPECT_TRUE(identical(losses(*view, lab), losses(copy->model, *copy)));
    EXPECT_FALSE(identical(losses(*view, lab), losses(lab.model, lab)));
}

// x controller^T / t = x (controller / t)^T: the folded model says what the one with the temperature said.
TEST(Convert, TemperatureGoesIntoTheRouter) {
    for (const char* precision : {"fp32", "fp64"}) {
        ModelConfig hot = mot();
        hot.temperature = 0.3;
        Lab lab(hot, precision), unfolded(mot(), precision), folded(mot(), precision);
        for (Lab* l : {&unfolded, &folded})
            for (const NamedTensor& t : l->model.parameters())
                write_tensor(t.tensor, read_tensor(lab.parameter(t.name), lab.ctx), l->ctx);
        scale_routers(folded.model.parameters(), 1 / 0.3, folded.ctx);
        const Tokens tokens = random_tokens(32, 1);
        const Vector want = lab.logits(tokens, 4);
        EXPECT_TRUE(close(folded.logits(tokens, 4), want, precision == std::string("fp64") ? 1e-12 : 1e-4));
        EXPECT_TRUE(different(unfolded.logits(tokens, 4), want, 1e-2));
        for (const auto& [name, values] : folded.parameters()) {
            const bool router = name.find("controller") != std::string::npos;
            const Vector before = lab.parameters().at(name);
            for (size_t i = 0; i < values.size(); i++)
                ASSERT_NEAR(values[i], router ? before[i] / 0.3 : before[i], router ? 1e-6 * std::abs(values[i]) : 0);
        }
    }
}

TEST(Evaluations, OtherGroupSizesAndDiscrete) {
    TrainConfig train;
    train.micro_batch = 12;
    EXPECT_TRUE(extra_evaluations(mot(), train).empty());
    train.eval_group_sizes = "2,12,4", train.eval_discrete = true;
    const std::vector<ExtraEvaluation> list = extra_evaluations(mot(), train);
    ASSERT_EQ(list.size(), 4u);
    EXPECT_EQ(list[0].name, "group_2");
    EXPECT_EQ(list[1].options.group_size, 12);
    EXPECT_EQ(list[2].options.group_size, 4);
    EXPECT_FALSE(list[2].options.discrete);
    EXPECT_EQ(list[3].name, "discrete");
    train.eval_group_sizes = " 2 , 12,\t4 ";  // blanks around a number do not matter
    const std::vector<ExtraEvaluation> spaced = extra_evaluations(mot(), train);
    ASSERT_EQ(spaced.size(), 4u);
    for (size_t i = 0; i < 4; i++) EXPECT_EQ(spaced[i].name, list[i].name);
    EXPECT_TRUE(list[3].options.discrete);

    auto refused = [&](const std::string& sizes, std::vector<std::string> parts) {
        train.eval_group_sizes = sizes;
        parts.push_back("--eval-group-sizes");
        expect_refused([&] { extra_evaluations(mot(), train); }, parts);
    };
    refused("2,5", {"5 does not divide --micro-batch 12"});
    refused("24", {"24 does not divide --micro-batch 12"});
    refused("0", {"0 does not divide"});
    refused("2,,3", {"\"\" is not a number"});
    refused("2, ,3", {"\"\" is not a number"});
    refused("2,", {"\"\" is not a number"});
    refused("2 3", {"\"2 3\" is not a number"});
    refused("-2", {"\"-2\" is not a number"});
    expect_refused([&] { extra_evaluations(tiny("attention ffn"), train); }, {"--eval-group-sizes", "has none"});
    train.eval_group_sizes.clear();
    expect_refused([&] { extra_evaluations(tiny("attention ffn"), train); }, {"--eval-discrete", "has none"});
}
