// Sequences for validation: every token of a split once, in a fixed order.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "llmc/data/loader.h"

namespace llmc {

// The shards of a split are one stream of N tokens. Sequence number s predicts tokens s T + 1 ... s T + T of it from
// tokens s T ... s T + T - 1 (T = context). So all tokens but the first are predicted, each once. Sequences come in an
// order that depends on the seed alone; the last one, which may not be full, comes last.
//
// What is read beyond the end goes on at the beginning and has target -1, which does not count: it fills the last
// sequence up, and the last micro-batch or group of sequences.
class EvalSequences {
public:
    // The split must outlive this. InputError if it has fewer than two tokens, or for a context below 1.
    EvalSequences(const Split& split, int64_t context, uint64_t seed);

    // How many have the whole split, or the number given if that is less; 0 means all.
    int64_t count(int64_t at_most = 0) const {
        const int64_t all = (predicted + length - 1) / length;
        return at_most ? std::min(at_most, all) : all;
    }
    int64_t context() const { return length; }

    // tokens, targets [rows, context] (host memory): sequences first ... first + rows - 1 of the order. From number
    // `end` on all targets are -1. InputError as read_tokens.
    void fill(int32_t* tokens, int32_t* targets, int64_t rows, int64_t first, int64_t end) const;

private:
    const Split& split;
    int64_t length, predicted;         // T, N - 1
    Permutation order;                 // of the full sequences
    std::vector<int64_t> first_token;  // [shards + 1]: tokens before each shard

    void read(int32_t* out, int64_t position) const;
};

}  // namespace llmc
