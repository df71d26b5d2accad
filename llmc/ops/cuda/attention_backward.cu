// Causal multi-head attention, backward (Dao et al. 2022, 2023). Nothing but lse was kept: probabilities are computed
// again, tile by tile.
//
//     p[i,j] = exp(s[i,j] - lse_i)        delta_i = <dout_i, out_i>
//     dv_j = sum_i p[i,j] dout_i          ds[i,j] = p[i,j] (<dout_i, v_j> - delta_i)
//     dq_i = sum_j ds[i,j] k_j / sqrt(D)  dk_j = sum_i ds[i,j] q_i / sqrt(D)
//
// Three launches: delta; dK and dV, where a block owns 64 keys and the queries pass by; dQ, where a block owns 64
// queries and the keys pass by. So every sum is made by one thread in one order, without atomics, at the price of
// computing s and <dout, v> twice: 14 D FLOPs a pair instead of the 10 D that are the floor. The last two are one
// kernel. With "own" for the side the block owns and "other" for the one that passes by,
//
//     dK, dV: own1 = K, own2 = V,    other1 = Q, other2 = dout    s^T = own1 other1^T    dp^T = own2 other2^T
//     dQ:     own1 = Q, own2 = dout, other1 = K, other2 = V       s   = own1 other1^T    dp   = own2 other2^T
//
// and the result is ds other1 / sqrt(D) (dK or dQ), and for keys also p other2 (dV). Memory floor: qkv, out, dout read
// and dqkv written once, 16 C bytes a token in bf16.
#include "llmc/ops/cuda/attention_fma.cuh"
#include "llmc/ops/cuda/attention_mma.cuh"

namespace llmc {
namespace {

// What both passes take; T positions, all tensors of one call.
template <class T>
struct Backward {
    Heads<T> dq, dk, dv;
    Heads<const T> q, k, v, out, dout;
    const float* lse;  // [B,H,T]
    float* delta;      // [B,H,T]
    int64_t sequences, heads, positions;
    int size;
    bool packed;
};

// delta[b,h,t] = <dout[b,t,h,:], out[b,t,h,:]>, both [B,T,C]: memory-bound. `lanes` (a power of two) neighbouring lanes
// share a head, 16 bytes at a time where alignment allows.
template <class T>
__global__ void __launch_bounds__(256) attention_delta(Backward<T> a, int lanes) {
    constexpr int pack = Pack<T>::size;
    const int64_t index = (blockIdx.x * int64_t(blockDim.x) + threadIdx.x) / lanes;  // of [B,T,H]
    const bool given = index < a.sequences * a.positions * a.heads;
    const int64_t at = (given ? index : 0) * a.size;
    float sum = 0;
    for (int d = int(threadIdx.x) % lanes * pack; given && d < a.size; d += lanes * pack) {
        if (a.packed) {
            const Pack<T> x = load_pack(a.dout.data + at + d), y = load_pack(a.out.data + at + d);
#pragma unroll
            for (int e = 0; e < pack; e++) sum += to_float(x[e]) * to_float(y[e]);
        } else {
            for (int e = d; e < d + pack && e < a.size; e++)
                sum += to_float(a.dout.data[at + e]) * to_float(a.out.data[at + e]);
        }
    }
    for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(full_mask, sum, offset);
    if (!given || int(threadIdx.x) % lanes != 0) return;
    const int64_t h = index % a.heads, t = index / a.heads % a.positions, b = index / a.heads / a.positions;
    a.delta[(b * a.heads + h) * a.positions + t] = sum;
}

// The two sides of a block: one head's own rows and the other ones, as the table above says.
template <class T>
struct Sides {
    HeadRows<const T> own1, own2, other1, other2;
    const float *lse, *delta;  // [T]
};
template <bool keys, class T>
__device__ inline Sides<T> sides_of(const Backward<T>& a, const BlockTile& block) {
    const auto of = [&](const Heads<const T>& heads) { return heads.of(block.b, block.h, a.size); };
    const int64_t at = (block.b * a.heads + block.h) * a.positions;
    if (keys) return {of(a.k), of(a.v), of(a.q), of(a.dout), a.lse + at, a.delta + at};
    return {of(a.q), of(a.dout), of(a.k), of(a.v), a.lse + at, a.delta + at};
}
// First row of the block's tile, longest work first: early keys have the most queries, late queries the most keys.
template <bool keys>
__device__ inline int64_t first_row(const BlockTile& block, int64_t tiles) {
    return (keys ? block.tile : tiles - 1 - block.tile) * attention_tile;
}
// What a query needs beside its rows: lse times log2(e), and delta. Past the last query: probability 0.
struct QueryStatistics {
    float lse, delta;
};
template <class T>
__device__ inline QueryStatistics query_statistics(const Sides<T>& x, int64_t t, int64_t positions) {
    if (t >= positions) return {INFINITY, 0};
    return {x.lse[t] * log2_of_e, x.delta[t]};
}

// ------------------------------------------------------------------------------------------------ bf16 on tensor cores
constexpr int passing = 32;  // rows of the other side in shared memory at a time: so that sums of 128 columns and the
                             // scores of a step fit into registers together

// s, dp [16 own rows, 32 other rows] -> p, ds. `lead`: position of the first own row less that of the first other row.
// scale is that of powers of two.
template <bool keys>
__device__ inline void probabilities(MmaC (&s)[passing / 8], MmaC (&dp)[passing / 8], int lead,
                                     const QueryStatistics (&own)[2], const QueryStatistics* other, float scale) {
#pragma unroll
    for (int n = 0; n < passing / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int row = lead + row_in_mma(e), column = n * 8 + column_in_mma(e);
            const QueryStatistics query = keys ? other[column] : own[e / 2];
            const float p = exp2f(fmaf(s[n].f[e], scale, -query.lse));
            const bool seen = keys ? row <= column : column <= row;
            s[n].f[e] = seen ? p : 0;
            dp[n].f[e] = seen ? p * (dp[n].f[e] - query.delta) : 0;
        }
}

// One step of one warp: its 16 own rows against 32 others. result1 += ds other1, and for keys result2 += p other2.
template <int D, bool keys>
__device__ inline void backward_step(MmaC (&result1)[D / 8], MmaC (&result2)[keys ? D / 8 : 1], const nv_bf16* own1,
                                     const nv_bf16* own2, const nv_bf16* other1, const nv_bf16* other2, int lead,
                                     const QueryStatistics (&own)[2], const QueryStatistics* other, float scale) {
    MmaC s[passing / 8] = {}, dp[passing / 8] = {};
    const auto multiply = [](MmaC(&c)[passing / 8], const nv_bf16* a, const nv_bf16* b) {
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            MmaA left;
            load_left<D>(left, a, d);
#pragma unroll
            for (int j = 0; j < passing / 16; j++)
                multiply_rows<D>(c[2 * j], c[2 * j + 1], left, b + j * 16 * pitch<D>, d);
        }
    };
    multiply(s, own1, other1);
    multiply(dp, own2, other2);
    probabilities<keys>(s, dp, lead, own, other, scale * log2_of_e);
#pragma unroll
    for (int j = 0; j < passing / 16; j++) {
        if constexpr (keys) add_weighted_rows<D>(result2, as_left(s[2 * j], s[2 * j + 1]), other2 + j * 16 * pitch<D>);
        add_weighted_rows<D>(result1, as_left(dp[2 * j], dp[2 * j + 1]), other1 + j * 16 * pitch<D>);
    }
}

// Elements of shared memory: own1, own2 [64][pitch], and twice other1, other2 [32][pitch].
template <int D>
constexpr int backward_elements = (2 * attention_tile + 4 * passing) * pitch<D>;

// A block of 4 warps owns 64 rows, each warp 16 of them.
template <int D, bool keys>
__global__ void __launch_bounds__(mma_threads, D <= 64 ? 3 : 2) backward_mma(Backward<nv_bf16> a, int64_t tiles) {
    DYN_SHARED(nv_bf16, shared);
    SHARED(QueryStatistics, statistics, [2][passing]);  // keys: those of the queries that pass by
    const BlockTile block = tile_of_block(blockIdx.x, tiles, a.heads);
    const Sides<nv_bf16> x = sides_of<keys>(a, block);
    const int64_t first = first_row<keys>(block, tiles), own0 = first + threadIdx.x / warp_size * 16;  // block, warp
    const int64_t begin = keys ? first : 0, end = keys ? a.positions : first + attention_tile;
    nv_bf16 *own1 = shared, *own2 = own1 + attention_tile * pitch<D>, *others = own2 + attention_tile * pitch<D>;
    const int64_t warp_rows = (own0 - first) * pitch<D>;
    const auto load_others = [&](int half, int64_t from) {
        nv_bf16* to = others + half * 2 * passing * pitch<D>;
        load_rows<D, passing>(to, x.other1, from, a.positions, a.size, a.packed);
        load_rows<D, passing>(to + passing * pitch<D>, x.other2, from, a.positions, a.size, a.packed);
        cp_async_commit();
    };
    const bool loads_statistics = keys && threadIdx.x < passing;
    load_rows<D, attention_tile>(own1, x.own1, first, a.positions, a.size, a.packed);
    load_rows<D, attention_tile>(own2, x.own2, first, a.positions, a.size, a.packed);
    load_others(0, begin);
    if (loads_statistics) statistics[0][threadIdx.x] = query_statistics(x, begin + threadIdx.x, a.positions);
    QueryStatistics own[2] = {};
    if (!keys)
        for (int half = 0; half < 2; half++) own[half] = query_statistics(x, own0 + row_in_mma(2 * half), a.positions);

    const float scale = 1 / sqrtf(float(a.size));
    MmaC result1[D / 8] = {}, result2[keys ? D / 8 : 1] = {};
    int half = 0;
    for (int64_t from = begin; from < end; from += passing, half ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // these rows are loaded, and no thread reads the other half any more
        const int64_t next = from + passing;
        QueryStatistics ahead = {};
        if (next < end) {
            load_others(half ^ 1, next);
            if (loads_statistics) ahead = query_statistics(x, next + threadIdx.x, a.positions);
        }
        const nv_bf16* here = others + half * 2 * passing * pitch<D>;
        if (keys ? from + passing > own0 : from < own0 + 16)  // else all of it is masked
            backward_step<D, keys>(result1, result2, own1 + warp_rows, own2 + warp_rows, here,
                                   here + passing * pitch<D>, int(own0 - from), own, statistics[half], scale);
        if (loads_statistics) statistics[half ^ 1][threadIdx.x] = ahead;
    }
    __syncthreads();  // shared memory is free for the result
    const HeadRows<nv_bf16> to = (keys ? a.dk : a.dq).of(block.b, block.h, a.size);
    store_rows<D>(to, own0, a.positions, a.size, a.packed, own1 + warp_rows, result1, scale, scale);
    if constexpr (keys)
        store_rows<D>(a.dv.of(block.b, block.h, a.size), own0, a.positions, a.size, a.packed, own1 + warp_rows, result2,
                      1, 1);
}

// ---------------------------------------------------------------------------------------------------- f32, large heads
// s, dp -> p, ds: rows own0 + 4y + i, columns other0 + x + 16 j.
template <bool keys, class T>
__device__ inline void probabilities(float (&s)[4][4], float (&dp)[4][4], const Sides<T>& x, int64_t own0,
                                     int64_t other0, int64_t positions, float scale) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int64_t row = own0 + 4 * thread_y() + i, column = other0 + thread_x() + 16 * j;
            const QueryStatistics query = query_statistics(x, keys ? column : row, positions);
            const float p = exp2f(fmaf(s[i][j], scale, -query.lse));
            const bool seen = keys ? row <= column : column <= row;
            s[i][j] = seen ? p : 0;
            dp[i][j] = seen ? p * (dp[i][j] - query.delta) : 0;
        }
}

// One block owns 64 rows and makes columns c0 .. c0 + columns - 1 of the result, c0 = columns * blockIdx.y; scores are
// computed again for every such slice.
template <class T, int columns, bool keys>
__global__ void __launch_bounds__(fma_threads, columns > 64 && keys ? 1 : 2)
    backward_fma(Backward<T> a, int64_t tiles) {
    SHARED(float, operands, [operand_floats]);
    SHARED(float, weights, [attention_tile * weight_pitch]);
    const BlockTile block = tile_of_block(blockIdx.x, tiles, a.heads);
    const Sides<T> x = sides_of<keys>(a, block);
    const int64_t own0 = first_row<keys>(block, tiles), n = a.positions;
    const int c0 = int(blockIdx.y) * columns;
    const float scale = 1 / sqrtf(float(a.size));
    float result1[4][columns / 16] = {}, result2[4][columns / 16] = {}, s[4][4], dp[4][4];
    for (int64_t from = keys ? own0 : 0; from < (keys ? n : own0 + attention_tile); from += attention_tile) {
        multiply_tiles(s, operands, x.own1, own0, n, x.other1, from, n, a.size, a.packed);
        multiply_tiles(dp, operands, x.own2, own0, n, x.other2, from, n, a.size, a.packed);
        probabilities<keys>(s, dp, x, own0, from, n, scale * log2_of_e);
        const bool diagonal = from == own0;
        const int begin = keys && diagonal ? 4 * thread_y() : 0;
        const int end = !keys && diagonal ? 4 * thread_y() + 4 : attention_tile;
        if constexpr (keys) {
            share_weights(weights, s);  // all threads are past the last tile's: multiply_tiles holds a barrier
            add_weighted_tile<columns>(result2, weights, operands, x.other2, from, n, begin, end, c0, a.size, a.packed);
            __syncthreads();
        }
        share_weights(weights, dp);
        add_weighted_tile<columns>(result1, weights, operands, x.other1, from, n, begin, end, c0, a.size, a.packed);
    }
    const float scales[4] = {scale, scale, scale, scale}, ones[4] = {1, 1, 1, 1};
    const HeadRows<T> to = (keys ? a.dk : a.dq).of(block.b, block.h, a.size);
    store_floats<columns>(to, own0, n, c0, a.size, a.packed, result1, scales);
    if constexpr (keys)
        store_floats<columns>(a.dv.of(block.b, block.h, a.size), own0, n, c0, a.size, a.packed, result2, ones);
}

// ---------------------------------------------------------------------------------------------------------------- host
template <class T>
void launch_delta(const Backward<T>& a, Context& ctx) {
    int lanes = 1;
    while (lanes < warp_size && lanes * Pack<T>::size < a.size) lanes *= 2;
    const int64_t threads = a.sequences * a.positions * a.heads * lanes;
    launch(ctx, attention_delta<T>, grid_of(ceil_div(threads, 256)), 256, 0, a, lanes);
}

// dK and dV if keys, else dQ.
template <bool keys, class T>
void launch_backward(const Backward<T>& a, Context& ctx) {
    const int64_t tiles = ceil_div(a.positions, attention_tile);
    dim3 grid = grid_of(a.sequences * a.heads * tiles);
    if constexpr (std::is_same_v<T, nv_bf16>) {
        if (a.size <= 128)
            return dispatch_size(a.size, [&](auto padded) {
                constexpr int D = decltype(padded)::value;
                constexpr int64_t smem = backward_elements<D> * int64_t(sizeof(nv_bf16));
                launch(ctx, backward_mma<D, keys>, grid, mma_threads, smem, a, tiles);
            });
    } else if (a.size <= 64) {
        return launch(ctx, backward_fma<T, 64, keys>, grid, fma_threads, 0, a, tiles);
    }
    grid.y = unsigned(ceil_div(a.size, 128));
    launch(ctx, backward_fma<T, 128, keys>, grid, fma_threads, 0, a, tiles);
}

}  // namespace

void attention_backward(Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse, int64_t heads, Context& ctx) {
    const AttentionShape s = check_attention_backward(dqkv, dout, qkv, out, lse, heads);
    dispatch(qkv.dtype, [&](auto zero) {
        using T = decltype(zero);
        Op op(ctx, "attention_backward", s.backward_flops(), s.B * s.H * s.T * int64_t(sizeof(float)),
              total_bytes({dqkv, dout, qkv, out, lse}));
        if (!op.run) return;
        T* dx = ptr<T>(dqkv);
        const T* x = ptr<const T>(qkv);
        const Backward<T> a{heads_of_qkv(dx, 0, s),
                            heads_of_qkv(dx, 1, s),
                            heads_of_qkv(dx, 2, s),
                            heads_of_qkv(x, 0, s),
                            heads_of_qkv(x, 1, s),
                            heads_of_qkv(x, 2, s),
                            heads_of(ptr<const T>(out), s.T, s),
                            heads_of(ptr<const T>(dout), s.T, s),
                            ptr<const float>(lse),
                            static_cast<float*>(op.workspace),
                            s.B,
                            s.H,
                            s.T,
                            int(s.D),
                            rows_are_packed<T>(s, dqkv, dout, qkv, out)};
        launch_delta(a, ctx);
        launch_backward<true>(a, ctx);
        launch_backward<false>(a, ctx);
    });
}

}  // namespace llmc
