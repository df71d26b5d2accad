// A model of the speed of GPUs and networks.
//
// A counted run says what a rank computes and sends (ops/context.h, comm/comm.h). A Cluster turns that into seconds,
// with one function per formula; docs/scaling.md derives them. All results are estimates: rates are those of datasheets
// times the assumed Shares, or measured.
#pragma once
#include <algorithm>

#include "llmc/comm/comm.h"
#include "llmc/model/precision.h"
#include "llmc/ops/context.h"
#include "llmc/ops/datasheets.h"

namespace llmc {

// ----------------------------------------------------------------------------------------------------- the hardware
struct Gpu {
    std::string name;
    double bf16 = 0, fp32 = 0;  // FLOP/s, dense: bf16 on tensor cores, fp32 without them (never TF32)
    double bandwidth = 0;       // of memory, bytes/s
    double memory = 0;          // size, bytes
    double link = 0;            // rate to the other GPUs of its node (NVLink), bytes/s in one direction
    int per_node = 1;           // GPUs per node

    double peak(DType act) const { return product_rate(act, bf16, fp32); }  // of matrix products, FLOP/s
};
// a100, h100, h200, b200 from NVIDIA's datasheets of SXM modules and HGX boards; for any other name all numbers are 0.
Gpu gpu_by_name(const std::string& name);

// The assumed fractions of a datasheet's rates that are reached.
struct Shares {
    double matrix = 0.75, bandwidth = 0.85, links = 0.8;
};

struct Cluster {
    Gpu gpu;
    double net = 0;                                   // network rate of one GPU, bytes/s in one direction
    double link_latency = 3e-6, net_latency = 10e-6;  // seconds of one message inside a node, and between nodes
    double message_gap = 1e-6;                        // seconds between two messages of one GPU in an all-to-all
    double host_wait = 20e-6;  // seconds for the host to read a number and start what depends on it
    bool overlaps = true;      // false: nothing is computed during a collective
    Shares shares;
    std::map<std::string, double> measured;  // seconds of ops, see read_measured
};

// ---------------------------------------------------------------------------------------------------- computation
// Whether this op uses tensor cores in bf16.
bool on_tensor_cores(const std::string& op);

// The time of an op is that of its arithmetic or of its memory traffic, whichever is longer (roofline model, Williams
// et al. 2009). With all shares 1 this is its floor.
struct OpTime {
    double compute, memory;  // seconds
    double seconds() const { return std::max(compute, memory); }
};
OpTime op_time(const std::string& op, const OpCost& cost, DType act, const Gpu& gpu, const Shares& shares);

// Seconds per FLOP of ops on tensor cores and per byte of all others, from the JSON that `roofline --measure --json` or
// `make gpu-check` wrote; of the latter, all models in this precision together. InputError if it holds none.
std::map<std::string, double> read_measured(const std::string& file, PrecisionMode precision);

// Seconds of an op: from `measured` if it is there, else from op_time with the cluster's shares.
double op_seconds(const std::string& op, const OpCost& cost, DType act, const Cluster& cluster);

// ------------------------------------------------------------------------------------------------- communication
bool is_collective(const std::string& name);  // whether this is the name of a collective

// How the ranks of a group are spread over nodes: rank r is on node r / per_node.
struct Path {
    int ranks = 1, nodes = 1;
    int per_node() const { return (ranks + nodes - 1) / nodes; }
};
Path path_of(const Ranks& group, const Cluster& cluster);

// Bytes/s of a ring through the group. NCCL's rings use the network card of every GPU of a node at the same time, so
// this is min(link, net * members of the group on a node).
double ring_rate(const Path& path, const Cluster& cluster);

// Seconds of one pass around the ring without data: W - 1 steps, of which nodes - 1 cross the network.
double ring_latency(const Path& path, const Cluster& cluster);

// Seconds of a transfer by the faster of NCCL's protocols: the normal one, or LL for little data, with a quarter of the
// latency and a quarter of the rate.
double transfer_seconds(double latency, double seconds);

// Seconds of all calls of one collective, by name as in CommCost:
//   all_gather, reduce_scatter, broadcast   a transfer of calls * ring_latency and wire / ring_rate
//   all_reduce     the faster of a ring, two passes, and a tree: calls * 2 ((members on a node - 1) link_latency +
//                  log2(nodes) net_latency) and 2 bytes / ring_rate
//   all_to_all, all_to_all_rows    all messages are sent at once: calls * (largest latency + (W - 1) message_gap)
//                  + the longer of two times: data inside the node over NVLink, data to other nodes over the GPU's card
// (Latencies of rings, trees and LL are those of NCCL's own model, src/graph/tuning.cc.)
double collective_seconds(const std::string& name, const CommCost& cost, const Path& path, const Cluster& cluster);

}  // namespace llmc
