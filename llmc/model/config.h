// What a model is: sizes, the pattern of its blocks, and the options of each kind of block. What each field means is
// said in config_fields.h.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "llmc/model/options.h"

namespace llmc {

struct ModelConfig {
    std::string pattern = "8x(attention ffn)";
    int64_t vocab_size = 50257, d_model = 512, heads = 8, d_ff = 0, context = 256;
    Positions positions = Positions::learned;
    Norm norm = Norm::layernorm;
    bool norm_bias = true, final_norm = false, tied_head = false, attention_bias = false, ffn_bias = true;
    Hidden ffn_activation = Hidden::relu;
    int64_t group_size = 32, experts = 32, expert_size = 0;
    bool flop_matched = true;
    int64_t granularity = 0, expansion = 0;
    Hidden expert_activation = Hidden::relu;
    DownInit expert_down_init = DownInit::of_kind;
    double temperature = 1;
    LearnTemperature learn_temperature = LearnTemperature::no;
    bool temperature_per_expert = false;
    TemperatureForm temperature_form = TemperatureForm::plain;
    int64_t temperature_start = 0;
    Controllers controllers = Controllers::shared;
    Emit emit = Emit::shared;
    bool merge_softmax = true, mixture_norm = false;
    GroupAxis group_axis = GroupAxis::batch;
    GroupOrder group_order = GroupOrder::consecutive;
    Router router = Router::learned;
    int64_t top_k = 1;
    double capacity_factor = 1.25;
    bool dropless = false;
    DropOrder drop_order = DropOrder::position;
    bool renormalize_gates = false;
    int64_t shared_experts = 0;
    double load_balancing_weight = 0.01;
    OverLayers load_balancing_over = OverLayers::sum;
    double router_z_loss_weight = 0;
    bool balanced_routing = false;
    double expert_choice_fraction = 0;
    Candidates expert_choice_over = Candidates::batch;
    ChoiceSoftmax expert_choice_softmax = ChoiceSoftmax::experts;
    bool expert_choice_norm = true;
    int64_t simulate_group_size = 0;
    Init init = Init::truncated_normal;
    double init_scale = 0.1;
};

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

bool is_gated(Hidden hidden);  // swiglu, geglu
// The op's activation: for swiglu and geglu that of the gate; for linear `none`.
Activation activation_of(Hidden hidden);

// How many experts' outputs are expected to add up in a block of this kind: the factor of Wdown's fan-in for its
// initialisation (expert_down_init).
int64_t outputs_that_add_up(const ModelConfig& config, const std::string& kind);
// Average number of experts per token, shared ones included.
double experts_of_a_token(const ModelConfig& config, const std::string& kind);
// Weight in the total loss of a block's metric of this name ("balance_loss", "z_loss"); 0 for all others.
double aux_loss_weight(const ModelConfig& config, const std::string& metric);

}  // namespace llmc
