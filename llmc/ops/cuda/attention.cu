// Causal multi-head attention, forward (Dao et al. 2022, 2023: tiles and an online softmax instead of a T x T matrix).
//
//     s[i,j] = <q_i, k_j> / sqrt(D) for j <= i,   p[i,:] = softmax(s[i,:]),   out_i = sum_j p[i,j] v_j
//
// One block = 64 queries of one head of one sequence. Keys pass by in tiles of 64: with m the largest score so far, out
// and the sum of exp(s - m) are kept relative to m and are multiplied by exp(old m - new m) when m grows.
//
// Floor: 4 D FLOPs for each of the T (T + 1) / 2 pairs of a head, which is 2 C (T + 1) a token; in memory, Q, K, V and
// out once (8 C bytes a token in bf16) as long as the K and V of a head come from the L2 cache after their first use.
// From a few hundred positions on it is arithmetic that counts: bf16 runs on the tensor cores, f32 on ordinary FMAs.
#include "llmc/ops/cuda/attention_fma.cuh"
#include "llmc/ops/cuda/attention_mma.cuh"

namespace llmc {
namespace {

// ------------------------------------------------------------------------------------------------ bf16 on tensor cores
// The state of a lane's two rows (lane / 4 and lane / 4 + 8 of the warp's 16): the largest score so far before the
// scale, and the lane's part of the sum of exp(score - max).
struct OnlineSoftmax {
    float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
};

// scores [16,64] -> exp(scores - max) in place; out is brought to the new max. scale is that of powers of two.
template <int D>
__device__ inline void online_softmax(MmaC (&s)[attention_tile / 8], MmaC (&out)[D / 8], OnlineSoftmax& soft,
                                      float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float max = soft.max[half], sum = 0;
#pragma unroll
        for (int n = 0; n < attention_tile / 8; n++) max = fmaxf(max, fmaxf(s[n].f[2 * half], s[n].f[2 * half + 1]));
        max = fmaxf(max, __shfl_xor_sync(full_mask, max, 1));  // the four lanes that share the row
        max = fmaxf(max, __shfl_xor_sync(full_mask, max, 2));
        const float factor = exp2f((soft.max[half] - max) * scale), shift = max * scale;
#pragma unroll
        for (int n = 0; n < attention_tile / 8; n++)
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; e++) {
                s[n].f[e] = exp2f(fmaf(s[n].f[e], scale, -shift));  // fmaxf drops a NaN, this does not
                sum += s[n].f[e];
            }
#pragma unroll
        for (int n = 0; n < D / 8; n++) out[n].f[2 * half] *= factor, out[n].f[2 * half + 1] *= factor;
        soft.sum[half] = soft.sum[half] * factor + sum;
        soft.max[half] = max;
    }
}

// One tile of keys. In the diagonal one a warp uses only the keys up to its last query, 16 at a time.
template <int D, bool diagonal>
__device__ inline void attend_tile(MmaC (&out)[D / 8], OnlineSoftmax& soft, const MmaA (&q)[D / 16], const nv_bf16* k,
                                   const nv_bf16* v, float scale) {
    const int warp = threadIdx.x / warp_size;
    MmaC s[attention_tile / 8] = {};
#pragma unroll
    for (int d = 0; d < D / 16; d++)
#pragma unroll
        for (int j = 0; j < attention_tile / 16; j++)
            if (!diagonal || j <= warp) multiply_rows<D>(s[2 * j], s[2 * j + 1], q[d], k + j * 16 * pitch<D>, d * 16);
    if (diagonal) {
#pragma unroll
        for (int n = 0; n < attention_tile / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (n * 8 + column_in_mma(e) > warp * 16 + row_in_mma(e)) s[n].f[e] = -INFINITY;
    }
    online_softmax<D>(s, out, soft, scale);
#pragma unroll
    for (int j = 0; j < attention_tile / 16; j++)
        if (!diagonal || j <= warp) add_weighted_rows<D>(out, as_left(s[2 * j], s[2 * j + 1]), v + j * 16 * pitch<D>);
}

// While one tile of keys and values is worked on, the next one is under way to the other half of shared memory.
// Q passes through that half first and stays in registers.
template <int D>
__global__ void __launch_bounds__(mma_threads, D <= 64 ? 3 : 2) attend_mma(Attend<nv_bf16> a, int64_t tiles) {
    DYN_SHARED(nv_bf16, shared);  // [2][K, V][64][pitch]
    constexpr int tile_elements = attention_tile * pitch<D>;
    const BlockTile block = tile_of_block(blockIdx.x, tiles, a.heads);
    const int64_t end = a.first + a.n, last = (end - 1) / attention_tile - block.tile, q0 = last * attention_tile;
    const HeadRows<const nv_bf16> k = a.k.of(block.b, block.h, a.size), v = a.v.of(block.b, block.h, a.size);
    const auto load_keys = [&](int64_t tile) {
        nv_bf16* to = shared + tile % 2 * 2 * tile_elements;
        load_rows<D, attention_tile>(to, k, tile * attention_tile, end, a.size, a.packed);
        load_rows<D, attention_tile>(to + tile_elements, v, tile * attention_tile, end, a.size, a.packed);
        cp_async_commit();
    };
    const int warp = threadIdx.x / warp_size;
    const float scale = 1 / sqrtf(float(a.size));
    load_rows<D, attention_tile>(shared + 2 * tile_elements, a.q.of(block.b, block.h, a.size), q0 - a.first, a.n,
                                 a.size, a.packed);
    load_keys(0);
    cp_async_wait<0>();
    __syncthreads();
    MmaA q[D / 16];
#pragma unroll
    for (int d = 0; d < D / 16; d++) load_left<D>(q[d], shared + 2 * tile_elements + warp * 16 * pitch<D>, d * 16);

    MmaC out[D / 8] = {};
    OnlineSoftmax soft;
    for (int64_t tile = 0; tile <= last; tile++) {
        cp_async_wait<0>();
        __syncthreads();  // this tile is loaded, and no thread reads the other half any more
        if (tile < last) load_keys(tile + 1);
        const nv_bf16* here = shared + tile % 2 * 2 * tile_elements;
        if (tile < last)
            attend_tile<D, false>(out, soft, q, here, here + tile_elements, scale * log2_of_e);
        else
            attend_tile<D, true>(out, soft, q, here, here + tile_elements, scale * log2_of_e);
    }
    __syncthreads();  // shared memory is free for the result

    float factor[2];
    const int64_t from = q0 - a.first + warp * 16;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = soft.sum[half] + __shfl_xor_sync(full_mask, soft.sum[half], 1);
        sum += __shfl_xor_sync(full_mask, sum, 2);
        factor[half] = 1 / sum;
        const int64_t t = from + row_in_mma(2 * half);
        if (a.lse && threadIdx.x % 4 == 0 && t >= 0 && t < a.n)
            a.lse[(block.b * a.heads + block.h) * a.n + t] = soft.max[half] * scale + logf(sum);
    }
    store_rows<D>(a.out.of(block.b, block.h, a.size), from, a.n, a.size, a.packed, shared + warp * 16 * pitch<D>, out,
                  factor[0], factor[1]);
}

// ---------------------------------------------------------------------------------------------------- f32, large heads
// Sums of the 16 lanes that share rows, and their maximum.
__device__ inline float sum_over_x(float x) {
    for (int offset = 8; offset > 0; offset /= 2) x += __shfl_xor_sync(full_mask, x, offset);
    return x;
}
__device__ inline float max_over_x(float x) {
    for (int offset = 8; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(full_mask, x, offset));
    return x;
}

// One block = 64 queries, and columns c0 .. c0 + columns - 1 of out, c0 = columns * blockIdx.y. A head wider than that
// has its scores computed again for every slice of the output, so that the output always fits into registers.
template <class T, int columns>
__global__ void __launch_bounds__(fma_threads, 2) attend_fma(Attend<T> a, int64_t tiles) {
    SHARED(float, operands, [operand_floats]);
    SHARED(float, weights, [attention_tile * weight_pitch]);
    const BlockTile block = tile_of_block(blockIdx.x, tiles, a.heads);
    const int64_t end = a.first + a.n, last = (end - 1) / attention_tile - block.tile, q0 = last * attention_tile;
    const int c0 = int(blockIdx.y) * columns;
    const HeadRows<const T> q = a.q.of(block.b, block.h, a.size), k = a.k.of(block.b, block.h, a.size),
                            v = a.v.of(block.b, block.h, a.size);
    const float scale = 1 / sqrtf(float(a.size));
    float out[4][columns / 16] = {}, s[4][4], max[4], sum[4];
#pragma unroll
    for (int i = 0; i < 4; i++) max[i] = -INFINITY, sum[i] = 0;
    for (int64_t tile = 0; tile <= last; tile++) {
        const int64_t k0 = tile * attention_tile;
        multiply_tiles(s, operands, q, q0 - a.first, a.n, k, k0, end, a.size, a.packed);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float new_max = max[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                s[i][j] = tile == last && thread_x() + 16 * j > 4 * thread_y() + i ? -INFINITY : s[i][j] * scale;
                new_max = fmaxf(new_max, s[i][j]);
            }
            new_max = max_over_x(new_max);
            const float factor = expf(max[i] - new_max);
            sum[i] *= factor;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                s[i][j] = expf(s[i][j] - new_max);  // fmaxf drops a NaN, this does not
                sum[i] += s[i][j];
            }
#pragma unroll
            for (int c = 0; c < columns / 16; c++) out[i][c] *= factor;
            max[i] = new_max;
        }
        share_weights(weights, s);  // all threads are past the last tile's: multiply_tiles holds a barrier
        const int keys = tile == last ? 4 * thread_y() + 4 : attention_tile;
        add_weighted_tile<columns>(out, weights, operands, v, k0, end, 0, keys, c0, a.size, a.packed);
    }
    float factor[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum[i] = sum_over_x(sum[i]);
        factor[i] = 1 / sum[i];
        const int64_t t = q0 - a.first + 4 * thread_y() + i;
        if (a.lse && c0 == 0 && thread_x() == 0 && t >= 0 && t < a.n)
            a.lse[(block.b * a.heads + block.h) * a.n + t] = max[i] + logf(sum[i]);
    }
    store_floats<columns>(a.out.of(block.b, block.h, a.size), q0 - a.first, a.n, c0, a.size, a.packed, out, factor);
}

template <class T, int columns>
void launch_fma(const Attend<T>& a, int64_t blocks, int64_t tiles, Context& ctx) {
    dim3 grid = grid_of(blocks);
    grid.y = unsigned(ceil_div(a.size, columns));
    launch(ctx, attend_fma<T, columns>, grid, fma_threads, 0, a, tiles);
}

}  // namespace

template <class T>
void attend(const Attend<T>& a, Context& ctx) {
    if (a.n == 0) return;
    const int64_t tiles = (a.first + a.n - 1) / attention_tile - a.first / attention_tile + 1;
    const int64_t blocks = a.sequences * a.heads * tiles;
    if constexpr (std::is_same_v<T, nv_bf16>) {
        if (a.size <= 128)
            return dispatch_size(a.size, [&](auto padded) {
                constexpr int D = decltype(padded)::value;
                constexpr int64_t smem = 4 * attention_tile * pitch<D> * int64_t(sizeof(nv_bf16));
                launch(ctx, attend_mma<D>, grid_of(blocks), mma_threads, smem, a, tiles);
            });
    }
    if constexpr (std::is_same_v<T, float>) {
        if (a.size <= 64) return launch_fma<T, 64>(a, blocks, tiles, ctx);
    }
    launch_fma<T, 128>(a, blocks, tiles, ctx);
}
template void attend(const Attend<float>&, Context&);
template void attend(const Attend<nv_bf16>&, Context&);

void attention_forward(Tensor out, Tensor lse, Tensor qkv, int64_t heads, Context& ctx) {
    const AttentionShape s = check_attention_forward(out, lse, qkv, heads);
    dispatch(qkv.dtype, [&](auto zero) {
        using T = decltype(zero);
        Op op(ctx, "attention_forward", s.forward_flops(), 0, total_bytes({out, lse, qkv}));
        if (!op.run) return;
        const T* x = ptr<const T>(qkv);
        attend(Attend<T>{heads_of(ptr<T>(out), s.T, s), ptr<float>(lse), heads_of_qkv(x, 0, s), heads_of_qkv(x, 1, s),
                         heads_of_qkv(x, 2, s), s.B, s.H, 0, s.T, int(s.D), rows_are_packed<T>(s, out, qkv)},
               ctx);
    });
}

}  // namespace llmc
