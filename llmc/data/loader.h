// Samples for training: windows of a split's tokens, in an order that is pure arithmetic.
//
// A window is seq_len + 1 consecutive tokens of one shard; windows start every seq_len tokens, so the last target of
// one is the first token of the next and every token but the first of a shard is predicted once an epoch. A shard's
// tail that fills no window is left out. Sample s of a run is window permutation(seed, epoch, s % windows()) of epoch
// s / windows(). Nothing depends on how many ranks read or who read before: rank r of W takes its rows, micro-batch
// number m of step k being samples (k * K + m) * B ... + B, and the whole position of a run is one integer.
#pragma once
#include <cstdint>
#include <vector>

#include "llmc/data/shards.h"

namespace llmc {

// A bijection of 0..n-1 chosen by (seed, epoch), computed on the fly in constant memory: a Feistel network over the
// next even number of bits, walked along its cycle until the value is below n (Black and Rogaway, "Ciphers with
// Arbitrary Finite Domains", 2002).
class Permutation {
public:
    Permutation(int64_t n, uint64_t seed, int64_t epoch);
    int64_t operator()(int64_t i) const;

private:
    static constexpr int rounds = 6;
    uint64_t n, half_mask;
    int half_bits;
    uint64_t keys[rounds];
};

// Where a run stands in its data, as saved in checkpoints. Valid at any world size and batch size.
struct LoaderState {
    int64_t epoch = 0;   // full passes over the windows
    int64_t sample = 0;  // samples read of this epoch
};

class Loader {
public:
    // The split must outlive the loader. InputError if it has no shards or no shard holds seq_len + 1 tokens.
    Loader(const Split& split, int64_t seq_len, uint64_t seed, bool shuffle);

    int64_t windows() const { return first_window.back(); }  // samples in an epoch
    int64_t seq_len() const { return length; }

    // tokens[rows, seq_len] and targets[rows, seq_len] (host memory) of samples first_sample ... first_sample + rows -
    // 1, counted from the start of the run over all epochs. InputError if a token is not in the vocabulary (a damaged
    // shard), naming its place.
    void fill(int32_t* tokens, int32_t* targets, int64_t rows, int64_t first_sample) const;

    // Between the count of samples since the start of the run and the state.
    LoaderState state_at(int64_t first_sample) const { return {first_sample / windows(), first_sample % windows()}; }
    int64_t sample_at(LoaderState state) const;  // InputError if the state cannot be of this data

private:
    const Split& split;
    int64_t length;
    uint64_t seed;
    bool shuffle;
    std::vector<int64_t> first_window;  // [shards + 1]: windows before each shard

    const uint16_t* window(int64_t index, size_t& shard) const;
};

}  // namespace llmc
