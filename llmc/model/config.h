// What a model is: sizes, the pattern of its blocks, and the options of each kind of block.
//
// `for_each_model_field` lists every field once; flags, help texts, JSON, printing and the comparison on resume all
// loop over that list.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "llmc/ops/ops.h"

namespace llmc {

struct ModelConfig {
    std::string pattern = "8x(attention ffn)";
    int64_t vocab_size = 50257, d_model = 512, heads = 8, d_ff = 0, context = 256;
    std::string positions = "learned";  // learned | rope | none
    std::string norm = "layernorm";     // layernorm | rmsnorm
    bool norm_bias = true, final_norm = false, tied_head = false, attention_bias = false, ffn_bias = true;
    std::string ffn_activation = "relu";  // relu | gelu | gelu_erf | silu | swiglu | geglu
    int64_t group_size = 32, experts = 32, expert_size = 0;
    bool flop_matched = true;
    int64_t granularity = 0, expansion = 0;
    std::string expert_activation = "relu";    // relu | gelu | gelu_erf | silu | swiglu | geglu | linear
    std::string expert_down_init = "default";  // default | one | chosen | all
    double temperature = 1;
    std::string learn_temperature = "no";  // no | tied | separate
    bool temperature_per_expert = false;
    std::string temperature_form = "plain";  // plain | exp
    int64_t temperature_start = 0;
    std::string controllers = "shared";  // shared | separate | common-base | weighted | weighted-common
    std::string emit = "shared";         // shared | group | experts | raw | top
    bool merge_softmax = true, mixture_norm = false;
    std::string group_axis = "batch";         // batch | sequence
    std::string group_order = "consecutive";  // consecutive | random
    std::string router = "learned";           // learned | uniform
    int64_t top_k = 1;
    double capacity_factor = 1.25;
    bool dropless = false;
    std::string drop_order = "position";  // position | gate
    bool renormalize_gates = false;
    int64_t shared_experts = 0;
    double load_balancing_weight = 0.01;
    std::string load_balancing_over = "sum";  // sum | mean
    double router_z_loss_weight = 0;
    bool balanced_routing = false;
    double expert_choice_fraction = 0;
    std::string expert_choice_over = "batch";       // batch | all
    std::string expert_choice_softmax = "experts";  // experts | tokens
    bool expert_choice_norm = true;
    int64_t simulate_group_size = 0;
    std::string init = "truncated-normal";  // truncated-normal | truncated-normal-fixed
    double init_scale = 0.1;
};

// One field: its name in JSON (the flag is --name with dashes), its help text and its range.
struct FieldInfo {
    const char* name;
    const char* help;
    std::vector<std::string> choices = {};  // for words
    double least = 0, most = 1e18;          // for numbers
    const char* group = "Model";            // heading in the help text
};

const char* pattern_help();  // of the field "pattern"; lists the kinds of blocks

// Calls f(info, c.field) for every field of a ModelConfig (const or not).
template <class Config, class F>
void for_each_model_field(Config& c, F&& f) {
    const std::vector<std::string> plain = {"relu", "gelu", "gelu_erf", "silu"};
    std::vector<std::string> gated = plain;
    gated.insert(gated.end(), {"swiglu", "geglu"});
    std::vector<std::string> any = gated;
    any.push_back("linear");
    f(FieldInfo{"pattern", pattern_help()}, c.pattern);
    f(FieldInfo{"vocab_size", "number of tokens in the vocabulary; 0: take it from the data", {}, 0, 1 << 30},
      c.vocab_size);
    f(FieldInfo{"d_model", "width of the residual stream", {}, 1, 1 << 20}, c.d_model);
    f(FieldInfo{"heads", "attention heads; must divide d_model", {}, 1, 1 << 16}, c.heads);
    f(FieldInfo{"d_ff", "hidden size of a dense feed-forward layer; 0: 4 x d_model", {}, 0, 1 << 24}, c.d_ff);
    f(FieldInfo{"context", "sequence length in tokens", {}, 1, 1 << 24}, c.context);
    f(FieldInfo{"positions", "position embedding: learned table, rotary, or none", {"learned", "rope", "none"}},
      c.positions);
    f(FieldInfo{"norm", "kind of normalisation", {"layernorm", "rmsnorm"}}, c.norm);
    f(FieldInfo{"norm_bias", "layernorm has a bias"}, c.norm_bias);
    f(FieldInfo{"final_norm", "add a norm between the last block and the head"}, c.final_norm);
    f(FieldInfo{"tied_head", "the head uses the token embedding as its weight"}, c.tied_head);
    f(FieldInfo{"attention_bias", "attention projections have biases"}, c.attention_bias);
    f(FieldInfo{"ffn_bias", "dense feed-forward layers have biases (never with swiglu or geglu)"}, c.ffn_bias);
    f(FieldInfo{"ffn_activation", "activation of dense feed-forward layers", gated}, c.ffn_activation);
    const char* mot = "Mixture of Tokens";
    f(FieldInfo{"group_size",
                "number of tokens in a MoT group; must divide --micro-batch (--context with --group-axis sequence)",
                {},
                1,
                1 << 20,
                mot},
      c.group_size);
    f(FieldInfo{"experts", "number of experts in a block (MoT and MoE)", {}, 1, 1 << 20, mot}, c.experts);
    f(FieldInfo{"expert_size",
                "hidden size of one expert (MoT and MoE); 0: set by --flop-matched",
                {},
                0,
                1 << 24,
                mot},
      c.expert_size);
    f(FieldInfo{"flop_matched",
                "on: expert size 0 means as many FLOPs as an ungated dense layer: d_ff x group_size / experts for MoT, "
                "d_ff / (experts per token) for MoE; off: it means d_ff / experts",
                {},
                0,
                1,
                mot},
      c.flop_matched);
    f(FieldInfo{"expansion",
                "use with --granularity: parameters of all experts over those of a dense layer; also MoT's group size",
                {},
                0,
                1 << 20,
                mot},
      c.expansion);
    f(FieldInfo{"granularity",
                "G: a block has G x expansion experts of hidden size d_ff / G, and a token of MoE goes to G of them; "
                "0: off",
                {},
                0,
                1 << 20,
                mot},
      c.granularity);
    f(FieldInfo{"expert_activation", "activation of experts", any, 0, 0, mot}, c.expert_activation);
    f(FieldInfo{"expert_down_init",
                "fan-in of the experts' down matrix counts expert_size times this many experts: one, those that a "
                "token goes to (chosen), all; default: one for MoT, all for token choice, chosen for expert choice",
                {"default", "one", "chosen", "all"},
                0,
                0,
                mot},
      c.expert_down_init);
    f(FieldInfo{"temperature", "temperature of the softmax that makes the merge and emit weights", {}, 1e-6, 1e6, mot},
      c.temperature);
    f(FieldInfo{"learn_temperature",
                "multiply the temperature by a learned factor: never (no); one for merge and emit together (tied); "
                "one for each (separate)",
                {"no", "tied", "separate"},
                0,
                0,
                mot},
      c.learn_temperature);
    f(FieldInfo{"temperature_per_expert", "learn one temperature factor per expert", {}, 0, 1, mot},
      c.temperature_per_expert);
    f(FieldInfo{"temperature_form",
                "temperature factor as a function of the parameter p: p, or exp(p - 1); p starts at 1",
                {"plain", "exp"},
                0,
                0,
                mot},
      c.temperature_form);
    f(FieldInfo{"temperature_start", "number of steps before the temperature factor is trained", {}, 0, 1e12, mot},
      c.temperature_start);
    f(FieldInfo{"controllers",
                "matrices that make the logits of merge and emit: one for both (shared); one each (separate); one each "
                "plus a common base (common-base); one each, averaged with a base by a learned weight each (weighted), "
                "or by one weight (weighted-common)",
                {"shared", "separate", "common-base", "weighted", "weighted-common"},
                0,
                0,
                mot},
      c.controllers);
    f(FieldInfo{"emit",
                "emit weights: the merge weights (shared); a second softmax over the group (group); a softmax over the "
                "experts (experts); 1 for every token (raw); 1 for the token of the group with the largest merge "
                "weight, else 0 (top)",
                {"shared", "group", "experts", "raw", "top"},
                0,
                0,
                mot},
      c.emit);
    f(FieldInfo{"merge_softmax", "off: use the logits themselves as merge and emit weights", {}, 0, 1, mot},
      c.merge_softmax);
    f(FieldInfo{"mixture_norm", "apply a layernorm to the input and to the output of the experts", {}, 0, 1, mot},
      c.mixture_norm);
    f(FieldInfo{"group_axis",
                "form groups over the batch, or within a sequence (not causal: for control experiments)",
                {"batch", "sequence"},
                0,
                0,
                mot},
      c.group_axis);
    f(FieldInfo{"group_order",
                "form groups of consecutive sequences, or of randomly ordered ones, shuffled anew in every layer and "
                "micro-batch",
                {"consecutive", "random"},
                0,
                0,
                mot},
      c.group_order);
    f(FieldInfo{"router",
                "learned controller, or uniform weights 1/g (for control experiments)",
                {"learned", "uniform"},
                0,
                0,
                mot},
      c.router);
    const char* moe = "Mixture of Experts";
    f(FieldInfo{"top_k", "token choice: number of experts that a token goes to", {}, 1, 1 << 20, moe}, c.top_k);
    f(FieldInfo{"capacity_factor",
                "token choice: an expert takes at most capacity_factor x tokens x top_k / experts tokens of a "
                "micro-batch",
                {},
                1e-6,
                1e6,
                moe},
      c.capacity_factor);
    f(FieldInfo{"dropless", "token choice: no capacity limit, so no token is dropped", {}, 0, 1, moe}, c.dropless);
    f(FieldInfo{"drop_order",
                "token choice: a full expert keeps the first tokens, or those with the largest gates (not causal)",
                {"position", "gate"},
                0,
                0,
                moe},
      c.drop_order);
    f(FieldInfo{"renormalize_gates", "token choice: scale the gates of a token to sum to 1", {}, 0, 1, moe},
      c.renormalize_gates);
    f(FieldInfo{"shared_experts", "MoE: number of additional experts that process every token", {}, 0, 1 << 20, moe},
      c.shared_experts);
    f(FieldInfo{"load_balancing_weight", "token choice: weight of the load balancing loss", {}, 0, 1e6, moe},
      c.load_balancing_weight);
    f(FieldInfo{"load_balancing_over",
                "token choice: sum the load balancing loss over layers, or average it",
                {"sum", "mean"},
                0,
                0,
                moe},
      c.load_balancing_over);
    f(FieldInfo{"router_z_loss_weight",
                "weight of the mean squared log-sum-exp of the router's logits, summed over layers",
                {},
                0,
                1e6,
                moe},
      c.router_z_loss_weight);
    f(FieldInfo{"balanced_routing",
                "token choice: send tokens to the experts in turn and ignore the router; for timings only",
                {},
                0,
                1,
                moe},
      c.balanced_routing);
    f(FieldInfo{"expert_choice_fraction",
                "expert choice: fraction of the candidate tokens that an expert takes; 0: top_k / experts",
                {},
                0,
                1,
                moe},
      c.expert_choice_fraction);
    f(FieldInfo{"expert_choice_over",
                "expert choice: candidate tokens are those of the batch at one position, or all (not causal: for "
                "control experiments)",
                {"batch", "all"},
                0,
                0,
                moe},
      c.expert_choice_over);
    f(FieldInfo{"expert_choice_softmax",
                "expert choice: compute gates by a softmax over the experts, or over the candidate tokens",
                {"experts", "tokens"},
                0,
                0,
                moe},
      c.expert_choice_softmax);
    f(FieldInfo{"expert_choice_norm",
                "expert choice: apply a layernorm to the sum of the experts' outputs",
                {},
                0,
                1,
                moe},
      c.expert_choice_norm);
    f(FieldInfo{"simulate_group_size",
                "expert choice: number of sequences that compete for an expert; must divide --micro-batch; 0: all of "
                "them",
                {},
                0,
                1 << 20,
                moe},
      c.simulate_group_size);
    const char* init = "Initialisation";
    f(FieldInfo{"init",
                "truncated-normal: std sqrt(scale/fan_in), cut at +-2 x scale, whatever the std; "
                "truncated-normal-fixed: std scale/sqrt(fan_in), cut at +-2 std",
                {"truncated-normal", "truncated-normal-fixed"},
                0,
                0,
                init},
      c.init);
    f(FieldInfo{"init_scale", "scale of the initialisation", {}, 1e-6, 1e3, init}, c.init_scale);
}

nlohmann::json to_json(const ModelConfig& config);
// A missing field keeps its default. InputError naming an unknown field or one of the wrong type; `where` is the file
// or run that the configuration comes from.
ModelConfig model_config_from_json(const nlohmann::json& json, const std::string& where);

// "2x(attention ffn) attention mot" -> {"attention", "ffn", "attention", "ffn", "attention", "mot"}. InputError with
// the position of the error.
std::vector<std::string> parse_pattern(const std::string& pattern);

// Computes d_ff and expert_size where they are 0, and makes all checks that need only the configuration. InputError
// with the numbers.
ModelConfig resolved(ModelConfig config);

// InputError if discrete evaluation has no softmax to replace.
void check_discrete(const ModelConfig& config);

// Whether the pattern has a block of this kind. InputError if there is no such kind (blocks/kinds.h).
bool has_block(const ModelConfig& config, const std::string& kind);
bool has_experts(const ModelConfig& config);  // of any kind
bool mixtures_span_ranks(const ModelConfig& config);  // there are experts, all of kinds that --group-ranks can share
bool has_mot(const ModelConfig& config);
bool has_moe(const ModelConfig& config);          // token choice or expert choice
bool shuffles_groups(const ModelConfig& config);  // MoT with --group-order random
// The least common multiple of what the pattern's kinds ask for: the MoT group size, the simulated group size of expert
// choice. A batch is a multiple of it where groups are over the batch; 1: any number.
int64_t rows_together(const ModelConfig& config);
// InputError if a batch of `rows` sequences cannot be cut into groups (MoT groups of group_size; 0: the configured
// one), or leaves an expert without a token.
void check_rows(const ModelConfig& config, int64_t rows, int64_t group_size = 0);
// Why a token may see later tokens, or "" if the model is causal. A model that is not causal cannot generate.
std::string sees_the_future(const ModelConfig& config);
// Sentences that a run prints before it starts, about options that are controls only.
std::vector<std::string> warnings_of(const ModelConfig& config);

// Expert choice: number of sequences of a batch of `rows` that compete at a position; 0: all tokens compete.
int64_t competing_sequences(const ModelConfig& config, int64_t rows);

// Token choice: slots of one expert for N tokens, min(int(capacity_factor * N * top_k / experts), N). InputError if 0.
int64_t expert_capacity(const ModelConfig& config, int64_t tokens);
// Expert choice: number of tokens that an expert takes from this many candidates: the fraction of them, rounded half to
// even. InputError if 0.
int64_t expert_choices(const ModelConfig& config, int64_t candidates);

bool is_gated(const std::string& activation);  // swiglu, geglu
// The op's activation: for swiglu and geglu that of the gate; for linear `none`. InputError if the word is unknown.
Activation activation_of(const std::string& activation);

// How many experts' outputs are expected to add up in a block of this kind: the factor of Wdown's fan-in for its
// initialisation (expert_down_init).
int64_t outputs_that_add_up(const ModelConfig& config, const std::string& kind);
// Average number of experts per token, shared ones included.
double experts_of_a_token(const ModelConfig& config, const std::string& kind);
// Weight in the total loss of a block's metric of this name ("balance_loss", "z_loss"); 0 for all others.
double aux_loss_weight(const ModelConfig& config, const std::string& metric);

}  // namespace llmc
