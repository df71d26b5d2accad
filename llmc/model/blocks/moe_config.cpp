// What a configuration says about sparse mixtures of experts: the functions of their rows in kind_table.h.
#include <algorithm>
#include <cmath>

#include "llmc/model/blocks/kind_table.h"
#include "llmc/model/config.h"

namespace llmc {

namespace {

// The pattern's word for token choice, which options of it, and of its auxiliary loss, are looked for by.
constexpr const char* token_choice = "moe_token_choice";

// What both kinds refuse and fill in.
void resolve_moe(ModelConfig& c) {
    if (c.top_k > c.experts)
        input_error("--top-k ", c.top_k, " is more than there are experts (--experts ", c.experts, ")");
    if (!(c.capacity_factor > 0)) input_error("--capacity-factor is ", c.capacity_factor, ", it must be positive");
    if (c.expert_choice_over == Candidates::all && c.simulate_group_size)
        input_error("--simulate-group-size ", c.simulate_group_size, " is about choosing among sequences at one "
                    "position, not among all tokens (--expert-choice-over all)");
    if (c.expert_choice_fraction == 0) c.expert_choice_fraction = double(c.top_k) / double(c.experts);
}

}  // namespace

bool has_moe(const ModelConfig& config) {
    return has_block(config, token_choice) || has_block(config, "moe_expert_choice");
}

double aux_loss_weight(const ModelConfig& c, const std::string& metric) {
    if (metric == "z_loss") return c.router_z_loss_weight;
    if (metric != "balance_loss") return 0;
    const std::vector<std::string> blocks = parse_pattern(c.pattern);
    const auto layers = std::count(blocks.begin(), blocks.end(), token_choice);
    return c.load_balancing_over == OverLayers::mean ? c.load_balancing_weight / double(layers)
                                                     : c.load_balancing_weight;
}

// ---------------------------------------------------------------------------------------------------- token choice

int64_t expert_capacity(const ModelConfig& c, int64_t tokens) {
    const double slots = c.capacity_factor * double(tokens) * double(c.top_k) / double(c.experts);
    if (!(slots >= 1))
        input_error("--capacity-factor ", c.capacity_factor, " gives each of the ", c.experts,
                    " experts a capacity of 0 for ", tokens, " tokens: make the factor or the micro-batch larger");
    return slots < double(tokens) ? int64_t(slots) : tokens;
}

double token_choice_experts_of_a_token(const ModelConfig& c) { return double(c.top_k); }

void resolve_token_choice(ModelConfig& c) {
    resolve_moe(c);
    if (c.balanced_routing && c.renormalize_gates)
        input_error("--renormalize-gates divides by the gates of chosen experts, but with --balanced-routing these "
                    "are any experts and their gates may all be 0");
    if (c.renormalize_gates && c.top_k == 1)
        input_error("--renormalize-gates makes the only gate of --top-k 1 a constant: the router would learn nothing");
    if (c.dropless && c.drop_order == DropOrder::gate)
        input_error("--drop-order gate orders dropped tokens, but with --dropless there are none");
}

std::vector<std::string> token_choice_warnings(const ModelConfig& c) {
    std::vector<std::string> list;
    if (c.balanced_routing) list.push_back("--balanced-routing ignores what the router says: it is for timings");
    if (c.drop_order == DropOrder::gate)
        list.push_back("--drop-order gate drops a token for a later one: the model sees its own future");
    return list;
}

// --------------------------------------------------------------------------------------------------- expert choice

int64_t competing_sequences(const ModelConfig& c, int64_t rows) {
    if (c.expert_choice_over == Candidates::all) return 0;
    return c.simulate_group_size ? c.simulate_group_size : rows;
}

int64_t expert_choices(const ModelConfig& c, int64_t candidates) {
    const double k = std::nearbyint(c.expert_choice_fraction * double(candidates));  // half to even
    if (!(k >= 1))
        input_error("--expert-choice-fraction ", c.expert_choice_fraction, " of ", candidates,
                    " candidates rounds to 0 tokens per expert: make it or the number of sequences larger");
    return k < double(candidates) ? int64_t(k) : candidates;
}

double expert_choice_experts_of_a_token(const ModelConfig& c) { return c.expert_choice_fraction * double(c.experts); }

void resolve_expert_choice(ModelConfig& c) {
    resolve_moe(c);
    if (c.router_z_loss_weight > 0 && c.expert_choice_softmax == ChoiceSoftmax::tokens)
        input_error(
            "--router-z-loss-weight needs a softmax over experts: it cannot be used with --expert-choice-softmax "
            "tokens");
    if (has_block(c, token_choice)) return;
    const char* flag = c.dropless            ? "--dropless"
                       : c.balanced_routing  ? "--balanced-routing"
                       : c.renormalize_gates ? "--renormalize-gates"
                                             : nullptr;
    if (flag) input_error(flag, " is for token choice, and the pattern has no moe_token_choice");
}

int64_t expert_choice_rows_together(const ModelConfig& c) {
    return c.expert_choice_over == Candidates::batch && c.simulate_group_size ? c.simulate_group_size : 1;
}

void check_expert_choice_rows(const ModelConfig& c, int64_t rows, int64_t) {
    const int64_t g = competing_sequences(c, rows);
    if (rows == 0 || (g && rows % g))
        input_error("a batch of ", rows, " sequences cannot be cut into groups of ", g,
                    " (--simulate-group-size): make the micro-batch a multiple of it");
    expert_choices(c, g ? g : rows * c.context);
}

std::string expert_choice_sees_the_future(const ModelConfig& c) {
    return c.expert_choice_over == Candidates::all
               ? "whose experts choose among all positions (--expert-choice-over all)"
               : "";
}

std::vector<std::string> expert_choice_warnings(const ModelConfig& c) {
    if (c.expert_choice_over != Candidates::all) return {};
    return {"--expert-choice-over all compares positions of one sequence: the model sees its own future"};
}

}  // namespace llmc
