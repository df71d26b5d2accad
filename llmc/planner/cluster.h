// How fast GPUs compute and talk to each other, on paper.
//
// Counted runs say what a rank of a run computes and sends (ops/context.h, comm/comm.h); a Cluster turns that into
// seconds, one formula a function; docs/scaling.md derives them. All of it is an estimate: rates are datasheets' times
// the assumed Shares, or measured.
#pragma once
#include <algorithm>

#include "llmc/comm/comm.h"
#include "llmc/ops/context.h"

namespace llmc {

// ----------------------------------------------------------------------------------------------------- the hardware
struct Gpu {
    std::string name;
    double bf16 = 0, fp32 = 0;  // FLOP/s: dense on tensor cores; without them (fp32 here never is TF32)
    double bandwidth = 0;       // of its memory, bytes/s
    double memory = 0;          // bytes
    double link = 0;            // to the other GPUs of its node (NVLink), bytes/s in one direction
    int per_node = 1;           // GPUs of a node

    double peak(DType act) const { return act == DType::bf16 ? bf16 : fp32; }  // of matrix products
};
// a100, h100, h200, b200 by NVIDIA's datasheets of SXM modules and HGX boards; any other name: all numbers are 0.
Gpu gpu_by_name(const std::string& name);

// The fractions of a datasheet's rates that are reached: assumptions, those of docs/cuda.md for compute.
struct Shares {
    double matrix = 0.75, bandwidth = 0.85, links = 0.8;
};

struct Cluster {
    Gpu gpu;
    double net = 0;                                   // of one GPU into the network, bytes/s in one direction
    double link_latency = 3e-6, net_latency = 10e-6;  // seconds of one message inside a node, and between nodes
    double message_gap = 1e-6;                        // between two messages that one GPU sends, all-to-all only
    double host_wait = 20e-6;  // until the host has read something and started what depends on it
    bool overlaps = true;      // false: nothing is computed while a collective is under way
    Shares shares;
    std::map<std::string, double> measured;  // seconds of ops, see read_measured
};

// ---------------------------------------------------------------------------------------------------- computation
// Ops whose arithmetic is on tensor cores in bf16.
bool on_tensor_cores(const std::string& op);

// An op takes as long as its arithmetic or its way through memory, whichever is longer (the roofline: Williams et al.
// 2009). With all shares 1 that is its floor.
struct OpTime {
    double compute, memory;  // seconds
    double seconds() const { return std::max(compute, memory); }
};
OpTime op_time(const std::string& op, const OpCost& cost, DType act, const Gpu& gpu, const Shares& shares);

// Seconds per FLOP of ops on tensor cores and per byte of all others, from the JSON that `roofline --measure --json` or
// `make gpu-check` wrote; of the latter, all models in this precision together. InputError if it holds none.
std::map<std::string, double> read_measured(const std::string& file, const std::string& precision);

// Seconds of an op: what was measured, else by op_time with the cluster's shares.
double op_seconds(const std::string& op, const OpCost& cost, DType act, const Cluster& cluster);

// ------------------------------------------------------------------------------------------------- communication
bool is_collective(const std::string& name);

// How the ranks of a group lie: rank r is on node r / per_node.
struct Path {
    int ranks = 1, nodes = 1;
    int per_node() const { return (ranks + nodes - 1) / nodes; }
};
Path path_of(const Ranks& group, const Cluster& cluster);

// Bytes/s of a ring through the group. As NCCL lays rings, each of a node's members enters and leaves the node by its
// own network card, so that a node's cards work side by side: min(link, net * members of the group on a node).
double ring_rate(const Path& path, const Cluster& cluster);

// Seconds of one pass around the ring in which nothing is sent: W - 1 steps, of which nodes - 1 cross the network.
double ring_latency(const Path& path, const Cluster& cluster);

// Seconds of a transfer by the better of NCCL's two ways: as it is, or (LL, for little data) with a quarter of the
// latency and a quarter of the rate.
double transfer_seconds(double latency, double seconds);

// Seconds of all calls of one collective, by name as in CommCost:
//   all_gather, reduce_scatter, broadcast   a transfer of calls * ring_latency and wire / ring_rate
//   all_reduce     the faster of a ring, two passes, and a tree: calls * 2 ((members on a node - 1) link_latency +
//                  log2(nodes) net_latency) and 2 bytes / ring_rate
//   all_to_all, all_to_all_rows    all messages are under way together: calls * (latency of the farthest + (W - 1)
//                  message_gap) + the longer of what stays in the node, over its link, and what leaves it, over the
//                  GPU's network card
// (Latencies of rings, trees and LL: as NCCL counts when it chooses between them, src/graph/tuning.cc.)
double collective_seconds(const std::string& name, const CommCost& cost, const Path& path, const Cluster& cluster);

}  // namespace llmc
