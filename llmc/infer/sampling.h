// Choosing the next token from logits: temperature, top-k, nucleus (top-p).
#pragma once
#include <cstdint>

namespace llmc {

struct SamplingOptions {
    double temperature = 1;  // logits are divided by it; 0: always the largest logit
    int64_t top_k = 0;       // only the k largest logits; 0: all
    double top_p = 1;        // of those only the fewest that hold this much probability (Holtzman et al. 2020); 1: all
};

// InputError naming the number that is out of range.
void check_sampling(const SamplingOptions& options);

// One token id in [0, vocab) from logits [vocab]. The tokens that top-k and then top-p leave share [0, 1) in order of
// their ids, each with its renormalised probability; uniform01 in [0, 1) says which one it is. Ties at a cut, and for
// temperature 0 at the top, go to the lowest id. -inf is an impossible token. Arithmetic in double, deterministic.
// RunError if a logit is NaN or +inf, or if every one is -inf.
int sample(const float* logits, int64_t vocab, const SamplingOptions& options, double uniform01);

}  // namespace llmc
