// The gradients of whole models against central finite differences in float64, for every option that changes the
// function.
#include <cmath>

#include "dev/test/model_lab.h"

namespace llmc::test {
namespace {

constexpr int64_t rows = 4, T = 8;

// dloss * the sum of all losses, as Model::train differentiates it: a block's own loss counts once per token.
double total(Lab& lab, const Tokens& tokens, const Tokens& targets, double dloss) {
    double sum = 0;
    if (!has_moe(lab.model.config)) {
        for (double loss : lab.evaluate(tokens, targets, rows)) sum += loss;
        return dloss * sum;
    }
    Lab::Measured run = lab.train_measured(tokens, targets, rows, dloss);
    for (double loss : run.losses) sum += loss;
    for (const MetricSlot& slot : lab.model.metric_slots())
        sum += slot.loss_weight * run.metrics.at(slot.name) * double(rows * T);
    return dloss * sum;
}

// True if `want`, an element's gradient, is the slope of f there. A kink of ReLU inside [-h, h] spoils one h, not all
// of them.
bool is_slope(const std::function<double(double)>& f, double want, double tol, double& nearest) {
    nearest = std::numeric_limits<double>::infinity();
    for (double h : {1e-5, 2e-6, 4e-7}) {
        const double slope = (f(h) - f(-h)) / (2 * h);
        if (std::abs(slope - want) < std::abs(nearest - want)) nearest = slope;
        // f is of size 1 and summed from a thousand rounded terms: its noise of 1e-15 becomes 1e-15 / h
        if (std::abs(slope - want) <= tol + 4e-15 / h) return true;
    }
    return false;
}

// `zero`: the one parameter whose gradient is 0.
void check_gradients(const std::string& what, const ModelConfig& config, const std::string& zero = "") {
    Lab lab(config, "fp64");
    Context& ctx = lab.ctx;
    const Tokens tokens = random_tokens(rows * T, 3);
    Tokens targets = random_tokens(rows * T, 4);
    targets[3] = -1;  // an ignored target
    const double dloss = 1.0 / double(rows * T);
    lab.train(tokens, targets, rows, {.dloss = dloss});
    for (const auto& [name, gradient] : lab.gradients()) {
        Tensor parameter = lab.parameter(name);
        const Vector values = read_tensor(parameter, ctx);
        const double scale = largest(gradient);
        EXPECT_EQ(scale <= 1e-9, name == zero) << what << ": the gradient of " << name << " is " << scale;
        Vector probes = random_integers(4, 0, parameter.numel(), Lab::hash_of_name(what + name));
        if (name == "embedding.token.weight") probes[0] = double(tokens[0]) * 16 + 3;  // a row that is used for sure
        for (double probe : probes) {
            const size_t i = size_t(probe);
            auto f = [&](double h) {
                Vector moved = values;
                moved[i] += h;
                write_tensor(parameter, moved, ctx);
                return total(lab, tokens, targets, dloss);
            };
            double slope;
            EXPECT_TRUE(is_slope(f, gradient[i], 1e-6 * scale, slope) || name == zero)
                << what << ": " << name << "[" << i << "] has gradient " << gradient[i] << ", finite differences say "
                << slope;
        }
        write_tensor(parameter, values, ctx);
    }
}

struct Option {
    const char* name;
    void (*change)(ModelConfig&);
};

TEST(Gradients, DenseModels) {
    const std::vector<Option> options = {
        {"defaults", [](ModelConfig&) {}},
        {"final norm", [](ModelConfig& c) { c.final_norm = true; }},
        {"tied head", [](ModelConfig& c) { c.tied_head = true; }},
        {"tied head and final norm", [](ModelConfig& c) { c.tied_head = c.final_norm = true; }},
        {"rmsnorm", [](ModelConfig& c) { c.norm = Norm::rmsnorm, c.final_norm = true; }},
        {"no norm bias", [](ModelConfig& c) { c.norm_bias = false, c.final_norm = true; }},
        {"rmsnorm without bias", [](ModelConfig& c) { c.norm = Norm::rmsnorm, c.norm_bias = false; }},
        {"attention bias", [](ModelConfig& c) { c.attention_bias = true; }},
        {"no ffn bias", [](ModelConfig& c) { c.ffn_bias = false; }},
        {"gelu", [](ModelConfig& c) { c.ffn_activation = Hidden::gelu; }},
        {"gelu without bias", [](ModelConfig& c) { c.ffn_activation = Hidden::gelu, c.ffn_bias = false; }},
        {"gelu_erf", [](ModelConfig& c) { c.ffn_activation = Hidden::gelu_erf; }},
        {"silu", [](ModelConfig& c) { c.ffn_activation = Hidden::silu; }},
        {"swiglu", [](ModelConfig& c) { c.ffn_activation = Hidden::swiglu; }},
        {"geglu", [](ModelConfig& c) { c.ffn_activation = Hidden::geglu; }},
        {"rope", [](ModelConfig& c) { c.positions = Positions::rope; }},
        {"rope and attention bias", [](ModelConfig& c) { c.positions = Positions::rope, c.attention_bias = true; }},
        {"no positions", [](ModelConfig& c) { c.positions = Positions::none; }},
        {"one head", [](ModelConfig& c) { c.heads = 1; }},
        {"longer context than T", [](ModelConfig& c) { c.context = 11; }},
    };
    for (const Option& option : options) {
        ModelConfig config = tiny("attention ffn");
        option.change(config);
        check_gradients(option.name, config);
    }
}

TEST(Gradients, MotModels) {
    const std::vector<Option> options = {
        {"defaults", [](ModelConfig&) {}},
        {"emit over experts", [](ModelConfig& c) { c.emit = Emit::experts; }},
        {"temperature", [](ModelConfig& c) { c.temperature = 0.6; }},
        {"emit over experts with temperature", [](ModelConfig& c) { c.emit = Emit::experts, c.temperature = 1.7; }},
        {"uniform router", [](ModelConfig& c) { c.router = Router::uniform; }},
        {"uniform router, emit over experts",
         [](ModelConfig& c) { c.router = Router::uniform, c.emit = Emit::experts; }},
        {"groups within a sequence", [](ModelConfig& c) { c.group_axis = GroupAxis::sequence; }},
        {"groups within a sequence, emit over experts",
         [](ModelConfig& c) { c.group_axis = GroupAxis::sequence, c.emit = Emit::experts; }},
        {"pairs", [](ModelConfig& c) { c.group_size = 2; }},
        {"one expert", [](ModelConfig& c) { c.experts = 1; }},
        {"silu experts", [](ModelConfig& c) { c.expert_activation = Hidden::silu; }},
        {"gelu experts", [](ModelConfig& c) { c.expert_activation = Hidden::gelu; }},
        {"gelu_erf experts", [](ModelConfig& c) { c.expert_activation = Hidden::gelu_erf; }},
        {"swiglu experts", [](ModelConfig& c) { c.expert_activation = Hidden::swiglu; }},
        {"geglu experts", [](ModelConfig& c) { c.expert_activation = Hidden::geglu; }},
        {"linear experts", [](ModelConfig& c) { c.expert_activation = Hidden::linear; }},
        {"everything at once",
         [](ModelConfig& c) {
             c.norm = Norm::rmsnorm, c.final_norm = c.tied_head = c.attention_bias = true,
             c.positions = Positions::rope;
             c.emit = Emit::experts, c.temperature = 0.8, c.group_axis = GroupAxis::sequence,
             c.expert_activation = Hidden::silu;
         }},
    };
    for (const Option& option : options) {
        ModelConfig config = tiny("attention mot");
        option.change(config);
        check_gradients(option.name, config);
    }
}

TEST(Gradients, TokenChoiceModels) {
    const std::vector<Option> options = {
        {"token choice", [](ModelConfig&) {}},
        {"two experts a token", [](ModelConfig& c) { c.top_k = 2; }},
        {"all experts", [](ModelConfig& c) { c.top_k = 6; }},
        {"tokens dropped", [](ModelConfig& c) { c.top_k = 2, c.capacity_factor = 0.5; }},
        {"tokens dropped by gate",
         [](ModelConfig& c) { c.top_k = 2, c.capacity_factor = 0.5, c.drop_order = DropOrder::gate; }},
        {"strongly balanced", [](ModelConfig& c) { c.load_balancing_weight = 3; }},
        {"one expert only", [](ModelConfig& c) { c.experts = 1, c.ffn_activation = Hidden::gelu; }},
        {"swiglu experts", [](ModelConfig& c) { c.top_k = 2, c.expert_activation = Hidden::swiglu; }},
        {"gelu experts of token choice", [](ModelConfig& c) { c.expert_activation = Hidden::gelu; }},
        {"geglu experts of token choice", [](ModelConfig& c) { c.expert_activation = Hidden::geglu; }},
        {"linear experts of token choice", [](ModelConfig& c) { c.expert_activation = Hidden::linear; }},
        {"dropless", [](ModelConfig& c) { c.dropless = true, c.expert_activation = Hidden::silu; }},
        {"dropless swiglu, two experts a token",
         [](ModelConfig& c) { c.dropless = true, c.top_k = 2, c.expert_activation = Hidden::swiglu; }},
        {"gates that sum to 1", [](ModelConfig& c) { c.top_k = 3, c.renormalize_gates = c.dropless = true; }},
        {"gates that sum to 1 with drops",
         [](ModelConfig& c) { c.top_k = 2, c.renormalize_gates = true, c.capacity_factor = 0.5; }},
        {"shared experts", [](ModelConfig& c) { c.shared_experts = 2; }},
        {"shared swiglu expert", [](ModelConfig& c) { c.shared_experts = 1, c.expert_activation = Hidden::swiglu; }},
        {"strong z-loss", [](ModelConfig& c) { c.router_z_loss_weight = 2; }},
        {"balanced routing", [](ModelConfig& c) { c.balanced_routing = true, c.top_k = 2; }},
    };
    for (const Option& option : options) {
        ModelConfig config = tiny("attention moe_token_choice");
        config.capacity_factor = 2;
        option.change(config);
        // softmax over one expert: its router has no gradient
        check_gradients(option.name, config, config.experts == 1 ? "blocks.1.router.weight" : "");
    }
    ModelConfig two = tiny("moe_token_choice attention moe_token_choice");
    check_gradients("two layers of token choice", two);
    two.load_balancing_over = OverLayers::mean, two.load_balancing_weight = 2;
    check_gradients("balanced over the mean of layers", two);
}

TEST(Gradients, ExpertChoiceModels) {
    const std::vector<Option> options = {
        {"expert choice", [](ModelConfig&) {}},
        {"half of the batch", [](ModelConfig& c) { c.expert_choice_fraction = 0.5; }},
        {"pairs of sequences", [](ModelConfig& c) { c.expert_choice_fraction = 0.5, c.simulate_group_size = 2; }},
        {"out of all tokens", [](ModelConfig& c) { c.expert_choice_over = Candidates::all; }},
        {"swiglu experts of expert choice", [](ModelConfig& c) { c.expert_activation = Hidden::swiglu; }},
        {"silu experts of expert choice", [](ModelConfig& c) { c.expert_activation = Hidden::silu; }},
        {"rmsnorm before expert choice", [](ModelConfig& c) { c.norm = Norm::rmsnorm, c.norm_bias = false; }},
        {"softmax over tokens", [](ModelConfig& c) { c.expert_choice_softmax = ChoiceSoftmax::tokens; }},
        {"softmax over the tokens of pairs",
         [](ModelConfig& c) {
             c.expert_choice_softmax = ChoiceSoftmax::tokens, c.expert_choice_fraction = 0.5, c.simulate_group_size = 2;
         }},
        {"softmax over all tokens",
         [](ModelConfig& c) {
             c.expert_choice_softmax = ChoiceSoftmax::tokens, c.expert_choice_over = Candidates::all;
         }},
        {"no output norm", [](ModelConfig& c) { c.expert_choice_norm = false; }},
        {"shared experts beside expert choice", [](ModelConfig& c) { c.shared_experts = 2; }},
        {"shared experts, no output norm",
         [](ModelConfig& c) {
             c.shared_experts = 1, c.expert_choice_norm = false, c.expert_activation = Hidden::geglu;
         }},
        {"z-loss of expert choice", [](ModelConfig& c) { c.router_z_loss_weight = 2; }},
    };
    for (const Option& option : options) {
        ModelConfig config = tiny("attention moe_expert_choice");
        config.expert_choice_fraction = 0.3;
        option.change(config);
        check_gradients(option.name, config);
    }
    check_gradients("both kinds", tiny("moe_token_choice attention moe_expert_choice"));
}

TEST(Gradients, DeeperModels) {
    check_gradients("two dense layers", tiny(dense_pattern));
    check_gradients("mot after dense", tiny(mot_pattern));
    check_gradients("mot first, ffn last", tiny("mot attention mot ffn"));
}

TEST(Gradients, ScaleWithTheWeightOfALoss) {
    Lab lab(tiny(mot_pattern), "fp64");
    const Tokens tokens = random_tokens(rows * T, 3), targets = random_tokens(rows * T, 4);
    lab.train(tokens, targets, rows, {.dloss = 1});
    NamedVectors once = lab.gradients();
    lab.train(tokens, targets, rows, {.dloss = 0.25});
    for (auto& [name, values] : once)
        for (double& v : values) v *= 0.25;
    EXPECT_TRUE(all_close(lab.gradients(), once, 1e-13));
}

}  // namespace
}  // namespace llmc::test
