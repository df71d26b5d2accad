// Flags of `train_mot plan`.
#pragma once
#include <CLI/CLI.hpp>

#include "llmc/base/fields.h"
#include "llmc/planner/scaling.h"

namespace llmc {

inline CLI::App* add_plan_command(CLI::App& app, ScalingCommand& command) {
    CLI::App* plan = app.add_subcommand(
        "plan", "a step on many GPUs on paper: memory, bytes sent, speed and the best --shard; see docs/scaling.md");
    plan->fallthrough();
    auto number = [&](const char* flag, auto& field, const char* help, const CLI::Validator& check) {
        plan->add_option(flag, field, help)->capture_default_str()->check(check)->check(refuse_nan);
    };
    plan->add_option("--gpus", command.gpus, "how many; several numbers for a table, e.g. 1,8,64,512,4096")
        ->capture_default_str()
        ->delimiter(',')
        ->take_all()
        ->check(CLI::Range(1, 65536));
    plan->add_option("--gpu", command.gpu,
                     "h100, a100, h200, b200 by their datasheets; cpu: numbers from the flags "
                     "below, and nothing overlaps")
        ->capture_default_str()
        ->check(CLI::IsMember({"a100", "h100", "h200", "b200", "cpu"}));
    const CLI::Range rate(0.0, 1e9), share(0.01, 1.0);
    number("--net", command.net, "network of a GPU, each way: 400Gb, 50GB; of a node: 3200Gb/node", CLI::Validator());
    number("--peak-tflops", command.peak_tflops, "peak of matrix products; 0: the datasheet's", rate);
    number("--bandwidth-gbs", command.bandwidth_gbs, "bandwidth of the memory, GB/s; 0: the datasheet's", rate);
    number("--memory-gb", command.memory_gb, "size of the memory, GB; 0: the datasheet's", rate);
    number("--nvlink-gbs", command.nvlink_gbs, "to the GPUs of the node, GB/s each way; 0: the datasheet's", rate);
    number("--gpus-per-node", command.gpus_per_node, "0: 8, of cpu 1", CLI::Range(0, 65536));
    number("--nvlink-latency-us", command.nvlink_latency_us, "of a message inside a node", rate);
    number("--net-latency-us", command.net_latency_us, "of a message over the network", rate);
    number("--message-us", command.message_us, "all-to-all: between two messages of a GPU", rate);
    number("--matrix-share", command.shares.matrix, "fraction of the peak that matrix products reach", share);
    number("--bandwidth-share", command.shares.bandwidth, "fraction of the memory's bandwidth that is reached", share);
    number("--link-share", command.shares.links, "fraction of the links' bandwidth that is reached", share);
    number("--usable-memory", command.usable_memory, "fraction of the memory that a run may use", share);
    plan->add_option("--measured", command.measured,
                     "seconds of ops from this report of make gpu-check, or of roofline --measure --json")
        ->check(CLI::ExistingFile);
    plan->add_flag("--weak", command.weak, "--grad-accumulation counts the micro-batches of one GPU, not of all");
    plan->add_flag("--overlap,!--no-overlap", command.overlap, "off: nothing is computed beside communication");
    plan->add_flag("--exchange", command.exchange, "also compare what MoT and routed experts exchange");
    number("--imbalance", command.imbalance, "with --exchange: rows of the busiest GPU over those of an average one",
           CLI::Range(1.0, 1e6));
    number("--host-wait-us", command.host_wait_us, "dropless experts: until the host has read a number and goes on",
           rate);
    return plan;
}

}  // namespace llmc
