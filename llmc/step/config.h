// How a model is trained. Like ModelConfig: one list of fields serves flags, JSON, printing and the comparison on
// resume.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "llmc/model/config.h"

namespace llmc {

struct TrainConfig {
    int64_t micro_batch = 32, grad_accumulation = 1;
    int64_t steps = 150000;
    double lr = 1e-3;
    int64_t warmup_steps = 2500, decay_steps = 0, schedule_origin = 0;
    double final_lr_fraction = 0.1, weight_decay = 0.1;
    std::string decay = "all";  // all | matrices
    double beta1 = 0.9, beta2 = 0.999, adam_eps = 1e-8, clip = 0.5;
    int64_t max_skipped = 10;
    std::string precision = "fp32";
    bool stochastic_rounding = false;
    std::string recompute = "none";  // none | blocks
    int64_t seed = 1;
    int64_t log_interval = 10, statistics_interval = 100, eval_interval = 1000, eval_batches = 10, save_interval = 1000,
            keep = 2;
    std::string eval_group_sizes;
    bool eval_discrete = false;
    std::string shard = "none";  // none | optimizer | gradients | parameters
    int64_t expert_parallel = 1, group_ranks = 1;
};

template <class Config, class F>
void for_each_train_field(Config& c, F&& f) {
    const char* step = "Step";
    f(FieldInfo{"micro_batch", "number of sequences in a micro-batch; MoT groups form inside it", {}, 1, 1 << 24, step},
      c.micro_batch);
    f(FieldInfo{"grad_accumulation", "number of micro-batches in a step, over all processes", {}, 1, 1 << 20, step},
      c.grad_accumulation);
    f(FieldInfo{"steps", "number of steps of the whole run, counted from its beginning", {}, 0, 1e12, step}, c.steps);
    f(FieldInfo{"precision",
                "element types of parameters and activations",
                {"fp32", "bf16-mixed", "bf16", "fp64"},
                0,
                0,
                step},
      c.precision);
    f(FieldInfo{"stochastic_rounding",
                "round parameters randomly up or down, so that small updates are not lost; needs --precision bf16",
                {},
                0,
                0,
                step},
      c.stochastic_rounding);
    f(FieldInfo{"recompute",
                "blocks: save only the input of each block and recompute its forward pass during backward",
                {"none", "blocks"},
                0,
                0,
                step},
      c.recompute);
    f(FieldInfo{"seed", "random seed of the initial weights and the order of the data", {}, 0, 9e18, step}, c.seed);
    const char* optimizer = "Optimizer";
    f(FieldInfo{"lr", "peak learning rate", {}, 0, 1e3, optimizer}, c.lr);
    f(FieldInfo{"warmup_steps", "number of steps of linear warm-up", {}, 0, 1e12, optimizer}, c.warmup_steps);
    f(FieldInfo{"decay_steps", "step at which the cosine schedule ends; 0: --steps", {}, 0, 1e12, optimizer},
      c.decay_steps);
    f(FieldInfo{"schedule_origin",
                "step at which warm-up begins, and the cosine after it; set by transition --reset-schedule",
                {},
                0,
                1e12,
                optimizer},
      c.schedule_origin);
    f(FieldInfo{"final_lr_fraction",
                "learning rate at the end of the cosine schedule, as a fraction of --lr",
                {},
                0,
                1,
                optimizer},
      c.final_lr_fraction);
    f(FieldInfo{"weight_decay", "coefficient of decoupled weight decay", {}, 0, 1e3, optimizer}, c.weight_decay);
    f(FieldInfo{"decay",
                "parameters that weight decay applies to: all, or matrices and embeddings only",
                {"all", "matrices"},
                0,
                0,
                optimizer},
      c.decay);
    f(FieldInfo{"beta1", "AdamW: decay rate of the first moment", {}, 0, 0.999999, optimizer}, c.beta1);
    f(FieldInfo{"beta2", "AdamW: decay rate of the second moment", {}, 0, 0.999999, optimizer}, c.beta2);
    f(FieldInfo{"adam_eps", "AdamW: number added to the denominator", {}, 0, 1, optimizer}, c.adam_eps);
    f(FieldInfo{"clip", "clip the norm of all gradients to this; 0: no clipping", {}, 0, 1e9, optimizer}, c.clip);
    f(FieldInfo{"max_skipped",
                "stop after this many steps in a row whose loss or gradient is not finite",
                {},
                1,
                1e9,
                optimizer},
      c.max_skipped);
    const char* run = "Run";
    f(FieldInfo{"log_interval", "number of steps between lines on the console", {}, 1, 1e12, run}, c.log_interval);
    f(FieldInfo{"statistics_interval",
                "number of steps between statistics of the blocks in the log; 0: none",
                {},
                0,
                1e12,
                run},
      c.statistics_interval);
    f(FieldInfo{"eval_interval", "number of steps between validations; 0: none", {}, 0, 1e12, run}, c.eval_interval);
    f(FieldInfo{"eval_batches", "number of micro-batches in a validation, always the same ones", {}, 1, 1e9, run},
      c.eval_batches);
    f(FieldInfo{"eval_group_sizes",
                "also validate with these MoT group sizes, e.g. \"8,16,32\" (a config file needs the quotes)",
                {},
                0,
                0,
                run},
      c.eval_group_sizes);
    f(FieldInfo{"eval_discrete", "also validate with one-hot merge and emit weights", {}, 0, 1, run}, c.eval_discrete);
    f(FieldInfo{"save_interval", "number of steps between checkpoints; 0: save at the end only", {}, 0, 1e12, run},
      c.save_interval);
    f(FieldInfo{"keep", "number of checkpoints to keep; 0: all", {}, 0, 1e9, run}, c.keep);
    const char* processes = "Several processes";
    f(FieldInfo{"shard",
                "what to divide over the processes: nothing; Adam's moments; gradients too; parameters too (ZeRO-1, "
                "2, 3)",
                {"none", "optimizer", "gradients", "parameters"},
                0,
                0,
                processes},
      c.shard);
    f(FieldInfo{"expert_parallel", "number of processes that divide the experts of a block", {}, 1, 1 << 20, processes},
      c.expert_parallel);
    f(FieldInfo{"group_ranks",
                "number of processes that divide a micro-batch, so that a MoT group may span them",
                {},
                1,
                1 << 20,
                processes},
      c.group_ranks);
}

nlohmann::json to_json(const TrainConfig& config);
// As model_config_from_json.
TrainConfig train_config_from_json(const nlohmann::json& json, const std::string& where);

}  // namespace llmc
