// All-to-all traffic of a mixture layer with divided experts, for MoT and for the routed mixtures that do the same
// work. docs/scaling.md derives it.
#pragma once
#include "llmc/model/config.h"
#include "llmc/planner/cluster.h"

namespace llmc {

struct Exchange {
    std::string kind;
    double rows = 0;       // rows [C] per token that a GPU sends; with uneven loads, that the busiest GPU receives
    bool counted = false;  // sizes are known only after an exchange of counts, which the host waits for
    double bytes = 0;      // of one exchange of one GPU
    double seconds = 0;    // of a layer's four exchanges (to experts and back, forward and backward) and of the counts
};

// How often the host waits for a number per dropless layer and micro-batch: for the numbers of its own rows, for those
// of the rows that arrive, and once in forward and in backward to read both (model/blocks/exchange.cpp).
constexpr int host_waits = 4;

struct ExchangeCase {
    int64_t tokens = 0;      // of one GPU: B * T
    int ranks = 1;           // consecutive GPUs that have all experts together
    double imbalance = 1.2;  // dropless: rows of the busiest GPU / rows of an average one
};

// Number of GPUs that have the k different experts of a token, on average over all choices of k among E experts, with
// E/W on each of W GPUs: W (1 - prod_{i<k} (E - E/W - i) / (E - i)). A token is sent to each of them once at most.
double distinct_ranks(int64_t experts, int ranks, int64_t k);

// Rows per token of every kind; E experts, N tokens of a GPU:
//   MoT, groups of g           E/g                       (E*R mixtures, R = N/g)
//   MoT, tokens not mixtures   W, if that is less: each GPU mixes all tokens for its experts (on paper only)
//   expert choice              E * fraction              (1/g for a MoT model)
//   token choice, top k        E*S/N = capacity_factor * k, rounded; empty slots are sent too
//   dropless                   k; k * imbalance
//   dropless, once a GPU       distinct_ranks * imbalance, if k > 1 (on paper only)
// A MoT model is compared with k = E/g, a routed one with groups of g = E/k, so that experts do the same work.
std::vector<Exchange> compare_exchanges(const ModelConfig& model, const ExchangeCase& of, DType act,
                                        const Cluster& cluster);

// The table of these for people.
std::string describe_exchanges(const ModelConfig& model, const ExchangeCase& of, DType act, const Cluster& cluster);

}  // namespace llmc
