// The fields of TrainConfig, each once, like those of ModelConfig (model/config_fields.h).
#pragma once
#include <map>

#include "llmc/model/config_fields.h"
#include "llmc/step/config.h"

namespace llmc {

// One look for all entries.
// clang-format off
template <class Config, class F>
void for_each_step_field(Config& c, F&& f) {
    auto step = in_group("Step", f);
    step({.name = "micro_batch",
          .help = "number of sequences in a micro-batch; MoT groups form inside it",
          .least = 1, .most = 1 << 24, .change = Change::transition}, c.micro_batch);
    step({.name = "grad_accumulation",
          .help = "number of micro-batches in a step, over all processes",
          .least = 1, .most = 1 << 20, .change = Change::transition}, c.grad_accumulation);
    step({.name = "steps",
          .help = "number of steps of the whole run, counted from its beginning",
          .most = 1e12, .change = Change::always}, c.steps);
    step({.name = "precision", .help = "element types of parameters and activations"}, c.precision);
    step({.name = "stochastic_rounding",
          .help = "round parameters randomly up or down, so that small updates are not lost; needs --precision bf16",
          .change = Change::transition}, c.stochastic_rounding);
    step({.name = "recompute",
          .help = "blocks: save only the input of each block and recompute its forward pass during backward",
          .change = Change::always}, c.recompute);
    step({.name = "seed",
          .help = "random seed of the initial weights and the order of the data",
          .most = 9e18}, c.seed);
}

template <class Config, class F>
void for_each_optimizer_field(Config& c, F&& f) {
    auto optimizer = in_group("Optimizer", f);
    optimizer({.name = "lr", .help = "peak learning rate", .most = 1e3, .change = Change::extension}, c.lr);
    optimizer({.name = "warmup_steps",
               .help = "number of steps of linear warm-up",
               .most = 1e12, .change = Change::extension}, c.warmup_steps);
    optimizer({.name = "decay_steps",
               .help = "step at which the cosine schedule ends; 0: --steps",
               .most = 1e12, .change = Change::extension}, c.decay_steps);
    optimizer({.name = "schedule_origin",
               .help = "step at which warm-up begins, and the cosine after it; set by transition --reset-schedule",
               .most = 1e12}, c.schedule_origin);
    optimizer({.name = "final_lr_fraction",
               .help = "learning rate at the end of the cosine schedule, as a fraction of --lr",
               .most = 1, .change = Change::extension}, c.final_lr_fraction);
    optimizer({.name = "weight_decay",
               .help = "coefficient of decoupled weight decay",
               .most = 1e3, .change = Change::transition}, c.weight_decay);
    optimizer({.name = "decay",
               .help = "parameters that weight decay applies to: all, or matrices and embeddings only",
               .change = Change::transition}, c.decay);
    optimizer({.name = "optimizer",
               .help = "adamw; or muon: Muon for the weight matrices of hidden layers, and AdamW for the rest"},
              c.optimizer);
    optimizer({.name = "muon_momentum",
               .help = "Muon: decay rate of the momentum",
               .most = 0.999999, .change = Change::transition}, c.muon_momentum);
    optimizer({.name = "beta1",
               .help = "AdamW: decay rate of the first moment",
               .most = 0.999999, .change = Change::transition}, c.beta1);
    optimizer({.name = "beta2",
               .help = "AdamW: decay rate of the second moment",
               .most = 0.999999, .change = Change::transition}, c.beta2);
    optimizer({.name = "adam_eps",
               .help = "AdamW: number added to the denominator",
               .most = 1, .change = Change::transition}, c.adam_eps);
    optimizer({.name = "clip",
               .help = "clip the norm of all gradients to this; 0: no clipping",
               .most = 1e9, .change = Change::transition}, c.clip);
    optimizer({.name = "max_skipped",
               .help = "stop after this many steps in a row whose loss or gradient is not finite",
               .least = 1, .most = 1e9, .change = Change::always}, c.max_skipped);
}

template <class Config, class F>
void for_each_run_field(Config& c, F&& f) {
    auto run = in_group("Run", f);
    run({.name = "log_interval",
         .help = "number of steps between lines on the console",
         .least = 1, .most = 1e12, .change = Change::always}, c.log_interval);
    run({.name = "statistics_interval",
         .help = "number of steps between statistics of the blocks in the log; 0: none",
         .most = 1e12, .change = Change::always}, c.statistics_interval);
    run({.name = "eval_interval",
         .help = "number of steps between validations; 0: none",
         .most = 1e12, .change = Change::always}, c.eval_interval);
    run({.name = "eval_batches",
         .help = "number of micro-batches in a validation, always the same ones; 0: all of the split",
         .most = 1e9, .change = Change::always}, c.eval_batches);
    run({.name = "eval_group_sizes",
         .help = "also validate with these MoT group sizes, e.g. \"8,16,32\"",
         .change = Change::always}, c.eval_group_sizes);
    run({.name = "eval_discrete",
         .help = "also validate with one-hot merge and emit weights",
         .change = Change::always}, c.eval_discrete);
    run({.name = "save_interval",
         .help = "number of steps between checkpoints; 0: save at the end only",
         .most = 1e12, .change = Change::always}, c.save_interval);
    run({.name = "keep",
         .help = "number of checkpoints to keep; 0: all",
         .most = 1e9, .change = Change::always}, c.keep);
}

template <class Config, class F>
void for_each_processes_field(Config& c, F&& f) {
    auto processes = in_group("Several processes", f);
    processes({.name = "shard",
               .help = "what to divide over the processes: nothing; the optimizer's state; gradients too; parameters "
                       "too (ZeRO-1, 2, 3)",
               .change = Change::always}, c.shard);
    processes({.name = "expert_parallel",
               .help = "number of processes that divide the experts of a block",
               .least = 1, .most = 1 << 20, .change = Change::always}, c.expert_parallel);
    processes({.name = "group_ranks",
               .help = "number of processes that divide a micro-batch, so that a MoT group may span them",
               .least = 1, .most = 1 << 20, .change = Change::always}, c.group_ranks);
}

// clang-format on

// Calls f(info, c.field) for every field of a TrainConfig (const or not).
template <class Config, class F>
void for_each_train_field(Config& c, F&& f) {
    for_each_step_field(c, f);
    for_each_optimizer_field(c, f);
    for_each_run_field(c, f);
    for_each_processes_field(c, f);
}

// The fields of both configurations by name; no name is in both.
const std::map<std::string, FieldInfo>& all_fields();

nlohmann::json to_json(const TrainConfig& config);
// As model_config_from_json.
TrainConfig train_config_from_json(const nlohmann::json& json, const std::string& where);

}  // namespace llmc
