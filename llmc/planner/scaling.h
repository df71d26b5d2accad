// `train_mot plan`: a training step on 1 to thousands of GPUs, on paper. docs/scaling.md explains and shows it.
//
// For every number of GPUs and every --shard the real step is counted (plan.h: memory; timeline.h: order and bytes) and
// replayed on a Cluster. Nothing is allocated or sent.
#pragma once
#include "llmc/planner/exchange.h"
#include "llmc/planner/plan.h"
#include "llmc/planner/timeline.h"

namespace llmc {

struct ScalingCommand {
    std::vector<int> gpus = {1};
    std::string gpu = "h100", net = "400Gb";
    double peak_tflops = 0, bandwidth_gbs = 0, memory_gb = 0, nvlink_gbs = 0;  // 0: the datasheet's
    int gpus_per_node = 0;                                                     // 0: the usual number
    double nvlink_latency_us = 3, net_latency_us = 10, message_us = 1;
    Shares shares;
    double usable_memory = 0.95;  // of a GPU's; the rest is for CUDA and NCCL
    bool overlap = true, weak = false, exchange = false;
    std::string measured;
    double imbalance = 1.2, host_wait_us = 20;
    bool choose_experts = true;  // try every --expert-parallel
    int threads = 0;
};

// "400Gb" a GPU, in bits, or "50GB", in bytes; "3200Gb/node" is shared by a node's GPUs. Bytes/s of one GPU.
double net_of_gpu(const std::string& text, int gpus_per_node);

// The GPU by name, with the numbers that are given instead of its datasheet's. "cpu" has no datasheet.
// InputError if one is missing.
Cluster cluster_of(const ScalingCommand& command, const std::string& precision);

// A step on `gpus` GPUs, sharded in one way.
struct ScalingRow {
    int gpus = 1;
    TrainConfig train;   // with shard, expert_parallel, and the micro-batches of all GPUs
    int64_t memory = 0;  // of each GPU, bytes
    int64_t sent = 0;    // by each GPU in a step, bytes
    int64_t flops = 0;   // of each GPU in a step
    StepTime time;
    double tokens_per_second = 0, mfu = 0;
    bool fits = false;
};
// train.grad_accumulation counts micro-batches of all GPUs, as in a run, or with `weak` those of one GPU (of
// group_ranks GPUs, if these share one).
ScalingRow scaling_row(const ModelConfig& model, const TrainConfig& train, int gpus, const ScalingCommand& command,
                       const Cluster& cluster);

// The ways of sharding on so many GPUs, the fastest expert_parallel of each if they are to be chosen.
std::vector<ScalingRow> scaling_rows(const ModelConfig& model, const TrainConfig& train, int gpus,
                                     const ScalingCommand& command, const Cluster& cluster);
// The fastest that fits; -1: none does.
int best_row(const std::vector<ScalingRow>& rows);

// Prints the table, a recommendation for every number of GPUs, and the exchanges if asked for.
int run_scaling(const ModelConfig& model, const TrainConfig& train, const ScalingCommand& command);

}  // namespace llmc
