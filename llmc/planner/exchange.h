// What a mixture layer whose experts are divided over GPUs must exchange, for MoT and for the routed mixtures that do
// the same work. docs/scaling.md derives it.
#pragma once
#include "llmc/model/config.h"
#include "llmc/planner/cluster.h"

namespace llmc {

struct Exchange {
    std::string kind;
    double rows = 0;       // [C] that a GPU sends for each of its tokens; of uneven loads, that the busiest GPU gets
    bool counted = false;  // how many rows go where is known only after an exchange of counts that the host waits for
    double bytes = 0;      // of one exchange, of one GPU
    double seconds = 0;    // of a layer's four: out and back, forward and backward; and of the counts
};

// How often the host waits for a number in a dropless layer and micro-batch: for the rows of its own experts, for those
// that come, and in forward and backward for how many go where (model/blocks/exchange.cpp).
constexpr int host_waits = 4;

struct ExchangeCase {
    int64_t tokens = 0;      // of one GPU: B * T
    int ranks = 1;           // GPUs that have all experts together, in a row
    double imbalance = 1.2;  // dropless: rows of the busiest GPU / rows of an average one
};

// GPUs that the k different experts of a token lie on, on average over all choices of k among E, E/W of them on each of
// W GPUs: W (1 - prod_{i<k} (E - E/W - i) / (E - i)). A token need not go to a GPU twice.
double distinct_ranks(int64_t experts, int ranks, int64_t k);

// Rows a token, by kind; E experts, N tokens of a GPU:
//   MoT, groups of g           E/g                       (E*R mixtures, R = N/g)
//   MoT, tokens not mixtures   W, where that is less: each GPU mixes all tokens for its own experts; only on paper
//   expert choice              E * fraction              (1/g for a MoT model)
//   token choice, top k        E*S/N = capacity_factor * k, rounded; empty slots travel too
//   dropless                   k; k * imbalance
//   dropless, once a GPU       distinct_ranks * imbalance, where k > 1; only on paper
// A MoT model is compared with k = E/g, a routed one with groups of g = E/k: as many rows of the same experts.
std::vector<Exchange> compare_exchanges(const ModelConfig& model, const ExchangeCase& of, DType act,
                                        const Cluster& cluster);

std::string describe_exchanges(const ModelConfig& model, const ExchangeCase& of, DType act, const Cluster& cluster);

}  // namespace llmc
