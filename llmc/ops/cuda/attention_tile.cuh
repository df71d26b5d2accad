// What the attention kernels share: where a head's rows lie, which tile a block works on, and the arguments.
//
// Queries and keys are cut into tiles of 64 positions, aligned to multiples of 64 whatever position a call starts at.
// So only the diagonal tile (queries and keys at the same positions) needs a mask, a tile of keys after the queries is
// never touched, and a query's result has the same bits whatever other queries stand beside it.
#pragma once
#include "llmc/ops/checks/attention.h"
#include "llmc/ops/cuda/cuda.cuh"

namespace llmc {

constexpr int attention_tile = 64;

// One head of one sequence: `size` elements of row t at data + t * stride.
template <class T>
struct HeadRows {
    T* data;
    int64_t stride;
    __device__ T* operator[](int64_t t) const { return data + t * stride; }
};

// All heads of all sequences inside a tensor: out [B,T,C], a third of qkv [B,T,3C], or a cache [B,context,C].
template <class T>
struct Heads {
    T* data = nullptr;
    int64_t sequence = 0, row = 0;  // elements from one sequence, from one position to the next
    __device__ HeadRows<T> of(int64_t b, int64_t h, int size) const { return {data + b * sequence + h * size, row}; }
};

// Part 0, 1 or 2 (Q, K or V) of qkv [B,T,3C], and all of x [B,positions,C].
template <class T>
Heads<T> heads_of_qkv(T* qkv, int part, const AttentionShape& s) {
    return {qkv + part * s.C, s.T * 3 * s.C, 3 * s.C};
}
template <class T>
Heads<T> heads_of(T* x, int64_t positions, const AttentionShape& s) {
    return {x, positions * s.C, s.C};
}

// Rows of all these tensors can be read and written 16 bytes at a time.
template <class T, class... Tensors>
bool rows_are_packed(const AttentionShape& s, const Tensors&... tensors) {
    const bool aligned = ((reinterpret_cast<uintptr_t>(tensors.data) % 16 == 0) && ...);
    return aligned && s.D % Pack<T>::size == 0;  // then C and 3C are multiples of it, too
}

// Queries at positions first .. first + n - 1 (rows 0 .. n-1 of q and out) attend to the keys at all positions up to
// their own (row = position). lse [B,H,n] is filled if given. Bits of a query's result depend on nothing else.
template <class T>
struct Attend {
    Heads<T> out;
    float* lse;
    Heads<const T> q, k, v;
    int64_t sequences, heads, first, n;
    int size;  // of a head
    bool packed;
};
template <class T>
void attend(const Attend<T>& args, Context& ctx);

// What one block works on. Blocks of one head follow each other, because they share keys and values in the L2 cache;
// those with the longest loop come first, so that the last to finish are short ones.
struct BlockTile {
    int64_t b, h;
    int64_t tile;  // 0: the one with the longest loop
};
__device__ inline BlockTile tile_of_block(int64_t block, int64_t tiles, int64_t heads) {
    const int64_t head = block / tiles;
    return {head / heads, head % heads, block % tiles};
}

// log2(e): exponentials are powers of two, exp(x) = 2^(x log2(e)), because that is the instruction the GPU has.
constexpr float log2_of_e = 1.4426950408889634f;

}  // namespace llmc
