// Rotary position embedding (Su et al. 2021) of Q and K in place: pair (i, i + D/2) of a head at position p is turned
// by the angle p * 10000^(-2i/D).
//
// Memory-bound: the floor is to read and write Q and K once, 8 C bytes a token in bf16. One block takes one position
// and up to 8 sequences: it makes the cosines and sines of that position once and uses them for all heads there.
#include "llmc/ops/checks/attention.h"
#include "llmc/ops/cuda/cuda.cuh"

namespace llmc {
namespace {

constexpr int rope_threads = 256;
constexpr int rope_sequences = 8;  // of a block
constexpr int rope_pairs = 1024;   // at most that many pairs of a head by one block

template <class T>
struct Rope {  // qkv [B,T,3C], columns = C, half = D / 2
    T* qkv;
    int64_t sequences, positions, columns, heads, half, first;
    bool inverse;
};

// Angles in double: in float they would be off by 1e-4 at position 2000. In half turns, so that whole turns can be
// taken away exactly before the rest is rounded to float. turns[i] belongs to pair from + i.
__device__ inline void fill_turns(float2* turns, int64_t from, int pairs, int64_t half, int64_t position,
                                  bool inverse) {
    constexpr double log2_of_10000 = 13.287712379549449, pi = 3.141592653589793;
    for (int i = int(threadIdx.x); i < pairs; i += rope_threads) {
        const double half_turns = double(position) * exp2(-double(from + i) / double(half) * log2_of_10000) / pi;
        float sine, cosine;
        sincospif(float(half_turns - 2 * rint(half_turns / 2)), &sine, &cosine);
        turns[i] = float2{cosine, inverse ? -sine : sine};
    }
}

// (a, b) -> (a cos - b sin, b cos + a sin)
template <class T>
__device__ inline void turn(T& a, T& b, float2 by) {
    const float x = to_float(a), y = to_float(b);
    a = from_float<T>(x * by.x - y * by.y);
    b = from_float<T>(y * by.x + x * by.y);
}

// A thread turns `width` neighbouring pairs at a time, 16 bytes of each side if width is the size of a pack.
template <class T, int width>
__global__ void __launch_bounds__(rope_threads) rope_kernel(Rope<T> a) {
    SHARED(float2, turns, [rope_pairs]);
    const int64_t slices = ceil_div(a.half, rope_pairs), shares = ceil_div(a.sequences, rope_sequences);
    const int64_t from = blockIdx.x % slices * rope_pairs, b0 = blockIdx.x / slices % shares * rope_sequences;
    const int64_t t = blockIdx.x / slices / shares;
    const int pairs = int(a.half - from < rope_pairs ? a.half - from : rope_pairs), packs = pairs / width;
    fill_turns(turns, from, pairs, a.half, a.first + t, a.inverse);
    __syncthreads();
    const int64_t rows = a.sequences - b0 < rope_sequences ? a.sequences - b0 : rope_sequences;
    const int64_t items = rows * 2 * a.heads * packs;  // heads of Q, then those of K
    for (int64_t item = threadIdx.x; item < items; item += rope_threads) {
        const int i = int(item % packs) * width;
        const int64_t head = item / packs % (2 * a.heads), b = b0 + item / packs / (2 * a.heads);
        T* x = a.qkv + (b * a.positions + t) * 3 * a.columns + head * 2 * a.half + from + i;
        if constexpr (width == 1) {
            turn(x[0], x[a.half], turns[i]);
        } else {
            Pack<T> low = load_pack(x), high = load_pack(x + a.half);
#pragma unroll
            for (int e = 0; e < width; e++) turn(low[e], high[e], turns[i + e]);
            store_pack(x, low);
            store_pack(x + a.half, high);
        }
    }
}

}  // namespace

void rope(Tensor qkv, int64_t heads, int64_t first_position, bool inverse, Context& ctx) {
    const AttentionShape s = check_rope(qkv, heads);
    dispatch(qkv.dtype, [&](auto zero) {
        using T = decltype(zero);
        Op op(ctx, "rope", s.rope_flops(), 0, total_bytes({qkv, qkv}) / 3 * 2);
        if (!op.run) return;
        const Rope<T> a{ptr<T>(qkv), s.B, s.T, s.C, s.H, s.D / 2, first_position, inverse};
        const dim3 grid = grid_of(s.T * ceil_div(s.B, rope_sequences) * ceil_div(a.half, rope_pairs));
        const bool packed = a.half % Pack<T>::size == 0 && reinterpret_cast<uintptr_t>(a.qkv) % 16 == 0;
        if (packed)
            launch(ctx, rope_kernel<T, Pack<T>::size>, grid, rope_threads, 0, a);
        else
            launch(ctx, rope_kernel<T, 1>, grid, rope_threads, 0, a);
    });
}

}  // namespace llmc
