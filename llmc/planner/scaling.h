// `train_mot plan`: estimates of a training step on 1 to thousands of GPUs. docs/scaling.md explains it.
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
    double peak_tflops = 0, bandwidth_gbs = 0, memory_gb = 0, nvlink_gbs = 0;  // 0: from the datasheet
    int gpus_per_node = 0;                                                     // 0: the usual number
    double nvlink_latency_us = 3, net_latency_us = 10, message_us = 1;
    Shares shares;
    double usable_memory = 0.95;  // fraction of a GPU's memory; the rest is for CUDA and NCCL
    bool overlap = true, weak = false, exchange = false;
    std::string measured;
    double imbalance = 1.2, host_wait_us = 20;
    bool choose_experts = true;  // try every --expert-parallel
    int threads = 0;
};

// Bytes/s of one GPU from "400Gb" (gigabits), "50GB" (gigabytes) or "3200Gb/node" (divided among the GPUs of a node).
// InputError for any other form.
double net_of_gpu(const std::string& text, int gpus_per_node);

// The cluster of the command's flags, which replace the numbers of the GPU's datasheet. "cpu" has no datasheet:
// InputError if a number is missing.
Cluster cluster_of(const ScalingCommand& command, PrecisionMode precision);

// The estimate of a step on `gpus` GPUs, divided in one way.
struct ScalingRow {
    int gpus = 1;
    TrainConfig train;   // with shard, expert_parallel, and the micro-batches of all GPUs
    int64_t memory = 0;  // of each GPU, bytes
    int64_t sent = 0;    // by each GPU in a step, bytes
    double flops = 0;    // of each GPU in a step
    StepTime time;
    double tokens_per_second = 0, mfu = 0;
    bool fits = false;
};
// The estimate for train's way of dividing the model. train.grad_accumulation is the number of micro-batches of all
// GPUs, as in a run, or with `weak` of one GPU (of group_ranks GPUs, if these divide a micro-batch).
ScalingRow scaling_row(const ModelConfig& model, const TrainConfig& train, int gpus, const ScalingCommand& command,
                       const Cluster& cluster);

// One row for every --shard, with the fastest expert_parallel if command.choose_experts is set.
std::vector<ScalingRow> scaling_rows(const ModelConfig& model, const TrainConfig& train, int gpus,
                                     const ScalingCommand& command, const Cluster& cluster);
// Index of the fastest row that fits into memory; -1: none does.
int best_row(const std::vector<ScalingRow>& rows);

// Prints the table, the best row for every number of GPUs, and with command.exchange the exchanges. Returns the exit
// code.
int run_scaling(const ModelConfig& model, const TrainConfig& train, const ScalingCommand& command);

}  // namespace llmc
