// The table of block kinds: see kinds.h for the columns. Only kind_table.cpp, and a test that adds a row, include it.
#pragma once
#include "llmc/model/blocks/kinds.h"

namespace llmc {

std::unique_ptr<Block> make_attention(const ModelConfig& config);
std::unique_ptr<Block> make_ffn(const ModelConfig& config);

// mot.cpp, mot_config.cpp
std::unique_ptr<Block> make_mot(const ModelConfig& config);
double mot_experts_of_a_token(const ModelConfig& config);
void resolve_mot(ModelConfig& config);
int64_t mot_group_size(const ModelConfig& config);
void check_mot_rows(const ModelConfig& config, int64_t rows, int64_t group_size);
std::string mot_sees_the_future(const ModelConfig& config);
std::vector<std::string> mot_warnings(const ModelConfig& config);

// moe.cpp, moe_config.cpp
std::unique_ptr<Block> make_moe_token_choice(const ModelConfig& config);
double token_choice_experts_of_a_token(const ModelConfig& config);
void resolve_token_choice(ModelConfig& config);
std::vector<std::string> token_choice_warnings(const ModelConfig& config);

std::unique_ptr<Block> make_moe_expert_choice(const ModelConfig& config);
double expert_choice_experts_of_a_token(const ModelConfig& config);
void resolve_expert_choice(ModelConfig& config);
int64_t expert_choice_rows_together(const ModelConfig& config);
void check_expert_choice_rows(const ModelConfig& config, int64_t rows, int64_t group_size);
std::string expert_choice_sees_the_future(const ModelConfig& config);
std::vector<std::string> expert_choice_warnings(const ModelConfig& config);

inline constexpr BlockKind block_kind_table[] = {
    {.name = "attention", .help = "causal self-attention", .make = make_attention},
    {.name = "ffn", .help = "dense feed-forward", .make = make_ffn},
    {.name = "mot",
     .help = "Mixture of Tokens",
     .make = make_mot,
     .experts_of_a_token = mot_experts_of_a_token,
     .mixed_tokens = mot_group_size,
     .down_init = DownInit::one,
     .group_ranks = true,
     .resolve = resolve_mot,
     .rows_together = mot_group_size,
     .check_rows = check_mot_rows,
     .sees_the_future = mot_sees_the_future,
     .warnings = mot_warnings},
    {.name = "moe_token_choice",
     .help = "sparse experts, chosen by tokens",
     .make = make_moe_token_choice,
     .experts_of_a_token = token_choice_experts_of_a_token,
     .down_init = DownInit::all,
     .shared_experts = true,
     .resolve = resolve_token_choice,
     .warnings = token_choice_warnings},
    {.name = "moe_expert_choice",
     .help = "sparse experts that choose tokens",
     .make = make_moe_expert_choice,
     .experts_of_a_token = expert_choice_experts_of_a_token,
     .down_init = DownInit::chosen,
     .shared_experts = true,
     .resolve = resolve_expert_choice,
     .rows_together = expert_choice_rows_together,
     .check_rows = check_expert_choice_rows,
     .sees_the_future = expert_choice_sees_the_future,
     .warnings = expert_choice_warnings},
};

}  // namespace llmc
