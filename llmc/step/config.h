// How a model is trained. The fields are listed in config_fields.h.
#pragma once
#include <cstdint>
#include <string>

#include "llmc/model/config.h"
#include "llmc/model/precision.h"
#include "llmc/model/sharding.h"

namespace llmc {

enum class Decay { all, matrices };
template <>
inline constexpr std::array words_of<Decay> = {"all", "matrices"};

enum class OptimizerName { adamw, muon };
template <>
inline constexpr std::array words_of<OptimizerName> = {"adamw", "muon"};

enum class Recompute { none, blocks };
template <>
inline constexpr std::array words_of<Recompute> = {"none", "blocks"};

struct TrainConfig {
    int64_t micro_batch = 32, grad_accumulation = 1;
    int64_t steps = 150000;
    double lr = 1e-3;
    int64_t warmup_steps = 2500, decay_steps = 0, schedule_origin = 0;
    double final_lr_fraction = 0.1, weight_decay = 0.1;
    Decay decay = Decay::all;
    OptimizerName optimizer = OptimizerName::adamw;
    double beta1 = 0.9, beta2 = 0.999, adam_eps = 1e-8, clip = 0.5, muon_momentum = 0.95;
    int64_t max_skipped = 10;
    PrecisionMode precision = PrecisionMode::fp32;
    bool stochastic_rounding = false;
    Recompute recompute = Recompute::none;
    int64_t seed = 1;
    int64_t log_interval = 10, statistics_interval = 100, eval_interval = 1000, eval_batches = 10, save_interval = 1000,
            keep = 2;
    std::string eval_group_sizes;
    bool eval_discrete = false;
    ShardMode shard = ShardMode::none;
    int64_t expert_parallel = 1, group_ranks = 1;
};

}  // namespace llmc
