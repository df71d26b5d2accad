// Samples for training: windows of a split's tokens, in an order that is computed, not stored.
//
// A window is seq_len + 1 consecutive tokens of one shard. Windows start every seq_len tokens: the last target of one
// is the first token of the next, and every token except the first of a shard is predicted once per epoch. The end of a
// shard that does not fill a window is not used. Sample s of a run is window permutation(seed, epoch, s % windows())
// with epoch s / windows(). This does not depend on the number of ranks or on earlier reads: micro-batch m of step k
// has the samples (k * K + m) * B ... + B - 1, and the position of a run is one integer.
#pragma once
#include <cstdint>
#include <vector>

#include "llmc/data/shards.h"

namespace llmc {

// A permutation of 0..n-1 that depends on (seed, epoch), computed in constant memory: a Feistel network over the next
// even number of bits, applied again until the value is below n (Black and Rogaway, "Ciphers with Arbitrary Finite
// Domains", 2002).
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

// The position of a run in its data, as saved in checkpoints. It does not depend on the number of ranks or the batch
// size.
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

    // Fills tokens[rows, seq_len] and targets[rows, seq_len] (host memory) with samples first_sample ... first_sample +
    // rows - 1, counted from the start of the run over all epochs. InputError naming the place of a token that is not
    // in the vocabulary (a damaged shard).
    void fill(int32_t* tokens, int32_t* targets, int64_t rows, int64_t first_sample) const;

    // The state after so many samples since the start of the run.
    LoaderState state_at(int64_t first_sample) const { return {first_sample / windows(), first_sample % windows()}; }

private:
    const Split& split;
    int64_t length;
    uint64_t seed;
    bool shuffle;
    std::vector<int64_t> first_window;  // [shards + 1]: windows before each shard
};

}  // namespace llmc
