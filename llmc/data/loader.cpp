#include "llmc/data/loader.h"

#include <algorithm>
#include <bit>

#include "llmc/base/errors.h"

namespace llmc {

namespace {

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection whose every output bit depends on all inputs.
uint64_t mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

}  // namespace

Permutation::Permutation(int64_t n_, uint64_t seed, int64_t epoch) : n(uint64_t(n_)) {
    // At least 4 bits a half, so that even a handful of windows is ordered by enough key material.
    half_bits = std::max(4, (int(std::bit_width(n - 1)) + 1) / 2);
    half_mask = (uint64_t(1) << half_bits) - 1;
    for (int r = 0; r < rounds; r++) keys[r] = mix(mix(mix(seed) + uint64_t(epoch)) + uint64_t(r));
}

int64_t Permutation::operator()(int64_t i) const {
    uint64_t x = uint64_t(i);
    do {  // ends: i itself lies on the cycle and is below n
        uint64_t left = x >> half_bits, right = x & half_mask;
        for (uint64_t key : keys) {
            uint64_t next = left ^ (mix(key ^ right) & half_mask);
            left = right;
            right = next;
        }
        x = left << half_bits | right;
    } while (x >= n);
    return int64_t(x);
}

Loader::Loader(const Split& data, int64_t seq_len, uint64_t order_seed, bool shuffled)
    : split(data), length(seq_len), seed(order_seed), shuffle(shuffled), first_window{0} {
    if (seq_len < 1) input_error("a sequence length of ", seq_len, " is impossible: it must be at least 1");
    if (split.shards.empty()) input_error("the data has no ", split.name, " split");
    int64_t longest = 0;
    for (const Shard& shard : split.shards) {
        longest = std::max(longest, shard.count);
        first_window.push_back(first_window.back() + std::max<int64_t>(0, (shard.count - 1) / seq_len));
    }
    if (windows() == 0)
        input_error("every shard of ", split.name, " is shorter than one sequence: the longest (of ",
                    split.shards.size(), ") has ", longest, " tokens, a sequence of ", seq_len, " needs ", seq_len + 1,
                    "; give more data or a shorter sequence");
}

void Loader::fill(int32_t* tokens, int32_t* targets, int64_t rows, int64_t first_sample) const {
    if (first_sample < 0) run_error("the loader was asked for sample ", first_sample);
    int64_t epoch = first_sample / windows();
    Permutation order(windows(), seed, epoch);
    for (int64_t row = 0; row < rows; row++, tokens += length, targets += length) {
        const int64_t sample = first_sample + row;
        if (sample / windows() != epoch) order = Permutation(windows(), seed, epoch = sample / windows());
        const int64_t index = shuffle ? order(sample % windows()) : sample % windows();
        const auto after = std::upper_bound(first_window.begin(), first_window.end(), index);
        const auto shard = size_t(after - first_window.begin()) - 1;
        const int64_t from = (index - first_window[shard]) * length;
        read_tokens(tokens, split, shard, from, length);
        read_tokens(targets, split, shard, from + 1, length);
    }
}

}  // namespace llmc
