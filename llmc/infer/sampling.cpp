#include "llmc/infer/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "llmc/base/errors.h"

namespace llmc {

namespace {

// The lowest id of the largest logit.
int64_t checked_maximum(const float* logits, int64_t vocab) {
    int64_t best = 0;
    for (int64_t i = 0; i < vocab; i++) {
        if (std::isnan(logits[i]) || logits[i] == INFINITY)
            run_error("cannot sample: the logit of token ", i, " is ", logits[i], "; has the model diverged?");
        if (logits[i] > logits[best]) best = i;
    }
    if (vocab < 1 || logits[best] == -INFINITY) run_error("cannot sample: no token of ", vocab, " has a finite logit");
    return best;
}

}  // namespace

void check_sampling(const SamplingOptions& o) {
    if (!(o.temperature >= 0) || !std::isfinite(o.temperature))
        input_error("the temperature is ", o.temperature, ": give 0 (always the likeliest token) or more");
    if (o.top_k < 0) input_error("top-k is ", o.top_k, ": give a number of tokens, or 0 for all of them");
    if (!(o.top_p > 0 && o.top_p <= 1)) input_error("top-p is ", o.top_p, ": give a probability above 0, up to 1");
}

int sample(const float* logits, int64_t vocab, const SamplingOptions& options, double uniform01) {
    const int64_t best = checked_maximum(logits, vocab);
    if (options.temperature == 0) return int(best);

    std::vector<int> kept(static_cast<size_t>(vocab));
    std::iota(kept.begin(), kept.end(), 0);
    const auto likelier = [&](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
    if (options.top_k > 0 && options.top_k < vocab) {
        std::nth_element(kept.begin(), kept.begin() + (options.top_k - 1), kept.end(), likelier);
        kept.resize(size_t(options.top_k));
    }
    // Not normalised: relative to the likeliest token, so that nothing overflows.
    const auto probability = [&](int id) {
        return std::exp((double(logits[id]) - double(logits[best])) / options.temperature);
    };
    if (options.top_p < 1) {
        std::sort(kept.begin(), kept.end(), likelier);
        double all = 0, held = 0;
        for (int id : kept) all += probability(id);
        size_t count = 0;
        while (count < kept.size() && held < options.top_p * all) held += probability(kept[count++]);
        kept.resize(count);
    }
    std::sort(kept.begin(), kept.end());

    double total = 0, below = 0;
    for (int id : kept) total += probability(id);
    int last = int(best);  // where rounding ends up if uniform01 is a hair below 1: a token that can occur
    for (int id : kept) {
        double p = probability(id);
        if (p == 0) continue;
        last = id;
        if ((below += p) > uniform01 * total) return id;
    }
    return last;
}

}  // namespace llmc
