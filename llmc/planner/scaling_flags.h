// Flags of `train_mot plan`.
#pragma once
#include <CLI/CLI.hpp>

#include "llmc/base/flags.h"
#include "llmc/planner/scaling.h"

namespace llmc {

inline CLI::App* add_plan_command(CLI::App& app, ScalingCommand& command) {
    CLI::App* plan = app.add_subcommand(
        "plan", "estimate memory, traffic and speed of a step on many GPUs, and the best --shard; see docs/scaling.md");
    plan->fallthrough();
    auto number = [&](const char* flag, auto& field, const char* help, const CLI::Validator& check) {
        plan->add_option(flag, field, help)->capture_default_str()->transform(check);
    };
    plan->add_option("--gpus", command.gpus, "number of GPUs; several numbers for a table, e.g. 1,8,64,512,4096")
        ->capture_default_str()
        ->delimiter(',')
        ->take_all()
        ->transform(whole_number(1, 65536));
    plan->add_option("--gpu", command.gpu,
                     "a100, h100, h200 or b200: use NVIDIA's datasheet; cpu: use the flags below, and "
                     "assume no overlap of communication and computation")
        ->capture_default_str()
        ->check(CLI::IsMember({"a100", "h100", "h200", "b200", "cpu"}));
    const CLI::Validator rate = real_number(0, 1e9), share = real_number(0.01, 1);
    plan->add_option("--net", command.net, "network rate each way, of a GPU (400Gb, 50GB) or of a node (3200Gb/node)")
        ->capture_default_str();
    number("--peak-tflops", command.peak_tflops, "peak rate of matrix products, TFLOP/s; 0: from the datasheet", rate);
    number("--bandwidth-gbs", command.bandwidth_gbs, "memory bandwidth, GB/s; 0: from the datasheet", rate);
    number("--memory-gb", command.memory_gb, "memory size, GB; 0: from the datasheet", rate);
    number("--nvlink-gbs", command.nvlink_gbs, "NVLink rate of a GPU, GB/s each way; 0: from the datasheet", rate);
    number("--gpus-per-node", command.gpus_per_node, "GPUs in a node; 0: 8, or 1 with --gpu cpu",
           whole_number(0, 65536));
    number("--nvlink-latency-us", command.nvlink_latency_us, "latency of a message inside a node, in microseconds",
           rate);
    number("--net-latency-us", command.net_latency_us, "latency of a message over the network, in microseconds", rate);
    number("--message-us", command.message_us, "all-to-all: time between two messages of a GPU, in microseconds", rate);
    number("--matrix-share", command.shares.matrix, "fraction of the peak that matrix products reach", share);
    number("--bandwidth-share", command.shares.bandwidth, "fraction of the memory bandwidth that ops reach", share);
    number("--link-share", command.shares.links, "fraction of the link rate that collectives reach", share);
    number("--usable-memory", command.usable_memory, "fraction of the memory that a run may use", share);
    plan->add_option("--measured", command.measured,
                     "take times of ops from this report of make gpu-check or roofline --measure --json")
        ->check(CLI::ExistingFile);
    plan->add_flag("--weak", command.weak, "--grad-accumulation counts the micro-batches of one GPU, not of all");
    plan->add_flag("--overlap,!--no-overlap", command.overlap,
                   "off: assume no overlap of communication and computation");
    plan->add_flag("--exchange", command.exchange, "also compare the all-to-all traffic of MoT and routed experts");
    number("--imbalance", command.imbalance, "with --exchange: rows of the busiest GPU divided by the average",
           real_number(1, 1e6));
    number("--host-wait-us", command.host_wait_us,
           "dropless experts: time for the host to read a number from the GPU, in us", rate);
    return plan;
}

}  // namespace llmc
