// Samples the next token from logits: temperature, top-k, nucleus (top-p).
#pragma once
#include <cstdint>

namespace llmc {

struct SamplingOptions {
    double temperature = 1;  // logits are divided by it; 0: always the largest logit
    int64_t top_k = 0;       // only the k largest logits; 0: all
    double top_p = 1;        // of those, the fewest whose probabilities sum to this (Holtzman et al. 2020); 1: all
};

// InputError naming the number that is out of range.
void check_sampling(const SamplingOptions& options);

// Returns a token id in [0, vocab), given logits [vocab]. The tokens that top-k and then top-p keep divide [0, 1) in
// the order of their ids, each with its renormalised probability; uniform01 in [0, 1) selects one. Ties at a limit, and
// at the maximum for temperature 0, go to the lowest id. A token with logit -inf is impossible. Computed in double,
// deterministic. RunError if a logit is NaN or +inf, or if all are -inf.
int sample(const float* logits, int64_t vocab, const SamplingOptions& options, double uniform01);

}  // namespace llmc
