// The fields of ModelConfig, each once: name, help text, range, and what a run that goes on may change. Flags, help
// texts, JSON, printing and the comparison on resume all loop over this list.
#pragma once
#include "llmc/base/fields.h"
#include "llmc/model/config.h"

namespace llmc {

const char* pattern_help();  // of the field "pattern"; lists the kinds of blocks

// One look for all entries.
// clang-format off
template <class Config, class F>
void for_each_layer_field(Config& c, F&& f) {
    f({.name = "pattern", .help = pattern_help()}, c.pattern);
    f({.name = "vocab_size",
       .help = "number of tokens in the vocabulary; 0: take it from the data",
       .most = 1 << 30}, c.vocab_size);
    f({.name = "d_model", .help = "width of the residual stream", .least = 1, .most = 1 << 20}, c.d_model);
    f({.name = "heads", .help = "attention heads; must divide d_model", .least = 1, .most = 1 << 16}, c.heads);
    f({.name = "d_ff", .help = "hidden size of a dense feed-forward layer; 0: 4 x d_model", .most = 1 << 24}, c.d_ff);
    f({.name = "context", .help = "sequence length in tokens", .least = 1, .most = 1 << 24}, c.context);
    f({.name = "positions", .help = "position embedding: learned table, rotary, or none"}, c.positions);
    f({.name = "norm", .help = "kind of normalisation"}, c.norm);
    f({.name = "norm_bias", .help = "layernorm has a bias"}, c.norm_bias);
    f({.name = "final_norm", .help = "add a norm between the last block and the head"}, c.final_norm);
    f({.name = "tied_head", .help = "the head uses the token embedding as its weight"}, c.tied_head);
    f({.name = "attention_bias", .help = "attention projections have biases"}, c.attention_bias);
    f({.name = "ffn_bias", .help = "dense feed-forward layers have biases (never with swiglu or geglu)"}, c.ffn_bias);
    f({.name = "ffn_activation",
       .help = "activation of dense feed-forward layers",
       .choices = {"relu", "gelu", "gelu_erf", "silu", "swiglu", "geglu"}}, c.ffn_activation);
}

template <class Config, class F>
void for_each_experts_field(Config& c, F&& f) {
    auto experts = in_group("Experts (MoT and MoE)", f);
    experts({.name = "experts",
             .help = "number of experts in a block",
             .least = 1, .most = 1 << 20}, c.experts);
    experts({.name = "expert_size",
             .help = "hidden size of one expert; 0: set by --flop-matched",
             .most = 1 << 24}, c.expert_size);
    experts({.name = "flop_matched",
             .help = "on: expert size 0 means as many FLOPs as an ungated dense layer: d_ff x group_size / experts "
                     "for MoT, d_ff / (experts per token) for MoE; off: it means d_ff / experts"}, c.flop_matched);
    experts({.name = "expansion",
             .help = "use with --granularity: parameters of all experts over those of a dense layer; also MoT's group "
                     "size",
             .most = 1 << 20}, c.expansion);
    experts({.name = "granularity",
             .help = "G: a block has G x expansion experts of hidden size d_ff / G, and a token of MoE goes to G of "
                     "them; 0: off",
             .most = 1 << 20}, c.granularity);
    experts({.name = "expert_activation", .help = "activation of experts"}, c.expert_activation);
    experts({.name = "expert_down_init",
             .help = "fan-in of the experts' down matrix counts expert_size times this many experts: one, those that "
                     "a token goes to (chosen), all; default: one for MoT, all for token choice, chosen for expert "
                     "choice"}, c.expert_down_init);
}

template <class Config, class F>
void for_each_mot_field(Config& c, F&& f) {
    auto mot = in_group("Mixture of Tokens", f);
    mot({.name = "group_size",
         .help = "number of tokens in a MoT group; must divide --micro-batch (--context with --group-axis sequence)",
         .least = 1, .most = 1 << 20}, c.group_size);
    mot({.name = "temperature",
         .help = "temperature of the softmax that makes the merge and emit weights",
         .least = 1e-6, .most = 1e6}, c.temperature);
    mot({.name = "learn_temperature",
         .help = "multiply the temperature by a learned factor: never (no); one for merge and emit together (tied); "
                 "one for each (separate)"}, c.learn_temperature);
    mot({.name = "temperature_per_expert",
         .help = "learn one temperature factor per expert"}, c.temperature_per_expert);
    mot({.name = "temperature_form",
         .help = "temperature factor as a function of the parameter p: p, or exp(p - 1); p starts at 1"},
        c.temperature_form);
    mot({.name = "temperature_start",
         .help = "number of steps before the temperature factor is trained",
         .most = 1e12}, c.temperature_start);
    mot({.name = "controllers",
         .help = "matrices that make the logits of merge and emit: one for both (shared); one each (separate); one "
                 "each plus a common base (common-base); one each, averaged with a base by a learned weight each "
                 "(weighted), or by one weight (weighted-common)"}, c.controllers);
    mot({.name = "emit",
         .help = "emit weights: the merge weights (shared); a second softmax over the group (group); a softmax over "
                 "the experts (experts); 1 for every token (raw); 1 for the token of the group with the largest merge "
                 "weight, else 0 (top)"}, c.emit);
    mot({.name = "merge_softmax", .help = "off: use the logits themselves as merge and emit weights"}, c.merge_softmax);
    mot({.name = "mixture_norm",
         .help = "apply a layernorm to the input and to the output of the experts"}, c.mixture_norm);
    mot({.name = "group_axis",
         .help = "form groups over the batch, or within a sequence (not causal: for control experiments)"},
        c.group_axis);
    mot({.name = "group_order",
         .help = "form groups of consecutive sequences, or of randomly ordered ones, shuffled anew in every layer and "
                 "micro-batch"}, c.group_order);
    mot({.name = "router", .help = "learned controller, or uniform weights 1/g (for control experiments)"}, c.router);
}

template <class Config, class F>
void for_each_moe_field(Config& c, F&& f) {
    auto moe = in_group("Mixture of Experts", f);
    moe({.name = "top_k",
         .help = "token choice: number of experts that a token goes to",
         .least = 1, .most = 1 << 20, .change = Change::transition}, c.top_k);
    moe({.name = "capacity_factor",
         .help = "token choice: an expert takes at most capacity_factor x tokens x top_k / experts tokens of a "
                 "micro-batch",
         .least = 1e-6, .most = 1e6, .change = Change::transition, .only_kind = "moe_token_choice"}, c.capacity_factor);
    moe({.name = "dropless",
         .help = "token choice: no capacity limit, so no token is dropped",
         .change = Change::transition, .only_kind = "moe_token_choice"}, c.dropless);
    moe({.name = "drop_order",
         .help = "token choice: a full expert keeps the first tokens, or those with the largest gates (not causal)",
         .change = Change::transition, .only_kind = "moe_token_choice"}, c.drop_order);
    moe({.name = "renormalize_gates",
         .help = "token choice: scale the gates of a token to sum to 1",
         .change = Change::transition, .only_kind = "moe_token_choice"}, c.renormalize_gates);
    moe({.name = "shared_experts",
         .help = "MoE: number of additional experts that process every token",
         .most = 1 << 20, .change = Change::transition}, c.shared_experts);
    moe({.name = "load_balancing_weight",
         .help = "token choice: weight of the load balancing loss",
         .most = 1e6, .change = Change::transition, .only_kind = "moe_token_choice"}, c.load_balancing_weight);
    moe({.name = "load_balancing_over",
         .help = "token choice: sum the load balancing loss over layers, or average it",
         .change = Change::transition, .only_kind = "moe_token_choice"}, c.load_balancing_over);
    moe({.name = "router_z_loss_weight",
         .help = "weight of the mean squared log-sum-exp of the router's logits, summed over layers",
         .most = 1e6, .change = Change::transition}, c.router_z_loss_weight);
    moe({.name = "balanced_routing",
         .help = "token choice: send tokens to the experts in turn and ignore the router; for timings only",
         .change = Change::transition, .only_kind = "moe_token_choice"}, c.balanced_routing);
    moe({.name = "expert_choice_fraction",
         .help = "expert choice: fraction of the candidate tokens that an expert takes; 0: top_k / experts",
         .most = 1, .change = Change::transition, .only_kind = "moe_expert_choice"}, c.expert_choice_fraction);
    moe({.name = "expert_choice_over",
         .help = "expert choice: candidate tokens are those of the batch at one position, or all (not causal: for "
                 "control experiments)",
         .change = Change::transition, .only_kind = "moe_expert_choice"}, c.expert_choice_over);
    moe({.name = "expert_choice_softmax",
         .help = "expert choice: compute gates by a softmax over the experts, or over the candidate tokens",
         .change = Change::transition, .only_kind = "moe_expert_choice"}, c.expert_choice_softmax);
    moe({.name = "expert_choice_norm",
         .help = "expert choice: apply a layernorm to the sum of the experts' outputs",
         .change = Change::transition, .only_kind = "moe_expert_choice"}, c.expert_choice_norm);
    moe({.name = "simulate_group_size",
         .help = "expert choice: number of sequences that compete for an expert; must divide --micro-batch; 0: all of "
                 "them",
         .most = 1 << 20, .change = Change::transition, .only_kind = "moe_expert_choice"}, c.simulate_group_size);
}

template <class Config, class F>
void for_each_init_field(Config& c, F&& f) {
    auto init = in_group("Initialisation", f);
    init({.name = "init",
          .help = "truncated-normal: std sqrt(scale/fan_in), cut at +-2 x scale, whatever the std; "
                  "truncated-normal-fixed: std scale/sqrt(fan_in), cut at +-2 std"}, c.init);
    init({.name = "init_scale", .help = "scale of the initialisation", .least = 1e-6, .most = 1e3}, c.init_scale);
}

// clang-format on

// Calls f(info, c.field) for every field of a ModelConfig (const or not).
template <class Config, class F>
void for_each_model_field(Config& c, F&& f) {
    for_each_layer_field(c, f);
    for_each_experts_field(c, f);
    for_each_mot_field(c, f);
    for_each_moe_field(c, f);
    for_each_init_field(c, f);
}

nlohmann::json to_json(const ModelConfig& config);
// A missing field keeps its default. InputError naming an unknown field or one of the wrong type; `where` is the file
// or run that the configuration comes from.
ModelConfig model_config_from_json(const nlohmann::json& json, const std::string& where);

}  // namespace llmc
