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
    f(FieldInfo{"micro_batch", "sequences in a micro-batch; MoT groups are cut from it", {}, 1, 1 << 24, step},
      c.micro_batch);
    f(FieldInfo{"grad_accumulation", "micro-batches in a step", {}, 1, 1 << 20, step}, c.grad_accumulation);
    f(FieldInfo{"steps", "steps of the whole run", {}, 0, 1e12, step}, c.steps);
    f(FieldInfo{"precision", "element types", {"fp32", "bf16-mixed", "bf16", "fp64"}, 0, 0, step}, c.precision);
    f(FieldInfo{"stochastic_rounding", "of the parameters, with --precision bf16: small updates are not lost", {}, 0, 0,
                step},
      c.stochastic_rounding);
    f(FieldInfo{"recompute",
                "blocks: keep only block inputs and run each block's forward again in backward",
                {"none", "blocks"},
                0,
                0,
                step},
      c.recompute);
    f(FieldInfo{"seed", "of initial weights and data order", {}, 0, 9e18, step}, c.seed);
    const char* optimizer = "Optimizer";
    f(FieldInfo{"lr", "largest learning rate", {}, 0, 1e3, optimizer}, c.lr);
    f(FieldInfo{"warmup_steps", "linear warm-up", {}, 0, 1e12, optimizer}, c.warmup_steps);
    f(FieldInfo{"decay_steps", "step at which the cosine ends; 0: --steps", {}, 0, 1e12, optimizer}, c.decay_steps);
    f(FieldInfo{"schedule_origin",
                "step at which warm-up and cosine begin; a transition with --reset-schedule sets it",
                {},
                0,
                1e12,
                optimizer},
      c.schedule_origin);
    f(FieldInfo{"final_lr_fraction", "learning rate at the cosine's end, as a fraction of --lr", {}, 0, 1, optimizer},
      c.final_lr_fraction);
    f(FieldInfo{"weight_decay", "decoupled weight decay", {}, 0, 1e3, optimizer}, c.weight_decay);
    f(FieldInfo{"decay",
                "what decays: all parameters, or matrices and embeddings only",
                {"all", "matrices"},
                0,
                0,
                optimizer},
      c.decay);
    f(FieldInfo{"beta1", "AdamW", {}, 0, 0.999999, optimizer}, c.beta1);
    f(FieldInfo{"beta2", "AdamW", {}, 0, 0.999999, optimizer}, c.beta2);
    f(FieldInfo{"adam_eps", "AdamW", {}, 0, 1, optimizer}, c.adam_eps);
    f(FieldInfo{"clip", "largest gradient norm; 0: no clipping", {}, 0, 1e9, optimizer}, c.clip);
    f(FieldInfo{"max_skipped",
                "stop after this many steps in a row whose loss or gradient is not finite",
                {},
                1,
                1e9,
                optimizer},
      c.max_skipped);
    const char* run = "Run";
    f(FieldInfo{"log_interval", "steps between console lines", {}, 1, 1e12, run}, c.log_interval);
    f(FieldInfo{"statistics_interval", "steps between MoT statistics; 0: never", {}, 0, 1e12, run},
      c.statistics_interval);
    f(FieldInfo{"eval_interval", "steps between validations; 0: never", {}, 0, 1e12, run}, c.eval_interval);
    f(FieldInfo{"eval_batches", "micro-batches of a validation: always the same ones", {}, 1, 1e9, run},
      c.eval_batches);
    f(FieldInfo{"eval_group_sizes",
                "every validation also at these MoT group sizes, e.g. \"8,16,32\" (in a config file with the quotes)",
                {},
                0,
                0,
                run},
      c.eval_group_sizes);
    f(FieldInfo{"eval_discrete", "every validation also with one-hot merge and emit weights", {}, 0, 1, run},
      c.eval_discrete);
    f(FieldInfo{"save_interval", "steps between checkpoints; 0: only at the end", {}, 0, 1e12, run}, c.save_interval);
    f(FieldInfo{"keep", "checkpoints to keep; 0: all", {}, 0, 1e9, run}, c.keep);
    const char* processes = "Several processes";
    f(FieldInfo{"shard",
                "what is divided over the processes: Adam's moments, gradients too, parameters too",
                {"none", "optimizer", "gradients", "parameters"},
                0,
                0,
                processes},
      c.shard);
    f(FieldInfo{"expert_parallel", "processes that share the experts of a block", {}, 1, 1 << 20, processes},
      c.expert_parallel);
    f(FieldInfo{"group_ranks", "processes that share a micro-batch, and so the tokens of a MoT group", {}, 1, 1 << 20,
                processes},
      c.group_ranks);
}

nlohmann::json to_json(const TrainConfig& config);
TrainConfig train_config_from_json(const nlohmann::json& json, const std::string& where);

}  // namespace llmc
