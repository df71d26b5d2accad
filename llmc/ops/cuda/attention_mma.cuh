// Products of bf16 tiles on the tensor cores for attention. A block has 4 warps and works on 64 rows (of queries, or of
// keys); each warp owns 16 of them and meets all rows of the other side. So a warp needs no results of other warps, and
// the accumulators of one product are, lane by lane, already the left operand of the next.
#pragma once
#include "llmc/ops/cuda/attention_tile.cuh"

namespace llmc {

constexpr int mma_warps = attention_tile / 16, mma_threads = mma_warps * warp_size;

// Elements from one row of a tile in shared memory to the next, for heads padded to D: 16 bytes more than the row, so
// that the 8 rows that ldmatrix reads at once lie in different banks.
template <int D>
constexpr int pitch = D + 8;

// tile [rows][pitch<D>] = rows from .. from + rows - 1 of src; zeros for rows outside [0, available) and columns from
// `size` on. All threads of the block take part. Complete after cp_async_commit(), cp_async_wait<>() and a barrier.
template <int D, int rows>
__device__ inline void load_rows(nv_bf16* tile, HeadRows<const nv_bf16> src, int64_t from, int64_t available, int size,
                                 bool packed) {
    constexpr int pack = Pack<nv_bf16>::size, packs = D / pack;
    if (packed) {
        for (int i = int(threadIdx.x); i < rows * packs; i += mma_threads) {
            const int row = i / packs, d = i % packs * pack;
            const int64_t t = from + row;
            const bool given = t >= 0 && t < available && d < size;
            cp_async16(tile + row * pitch<D> + d, given ? src[t] + d : src.data, given);
        }
    } else {
#pragma unroll 1
        for (int i = int(threadIdx.x); i < rows * D; i += mma_threads) {
            const int row = i / D, d = i % D;
            const int64_t t = from + row;
            const bool given = t >= 0 && t < available && d < size;
            tile[row * pitch<D> + d] = given ? src[t][d] : from_float<nv_bf16>(0);
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- fragments
// The left operand from 16 rows of a tile, columns d .. d + 15.
template <int D>
__device__ inline void load_left(MmaA& a, const nv_bf16* rows, int d) {
    const int lane = threadIdx.x % warp_size;
    ldmatrix_x4(a.r, rows + lane % 16 * pitch<D> + d + lane / 16 * 8);
}

// c[16,16] += a[16,16] R^T, R = 16 rows of a tile, columns d .. d + 15.
template <int D>
__device__ inline void multiply_rows(MmaC& low, MmaC& high, const MmaA& a, const nv_bf16* rows, int d) {
    const int lane = threadIdx.x % warp_size;
    uint32_t r[4];
    ldmatrix_x4(r, rows + (lane / 16 * 8 + lane % 8) * pitch<D> + d + lane / 8 % 2 * 8);
    mma_m16n8k16(low, a, MmaB{{r[0], r[1]}});
    mma_m16n8k16(high, a, MmaB{{r[2], r[3]}});
}

// sum[16,D] += weights[16,16] R[16,D], R = 16 rows of a tile.
template <int D>
__device__ inline void add_weighted_rows(MmaC (&sum)[D / 8], const MmaA& weights, const nv_bf16* rows) {
    const int lane = threadIdx.x % warp_size;
    const nv_bf16* mine = rows + lane % 16 * pitch<D> + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        uint32_t r[4];
        ldmatrix_x4_trans(r, mine + n * 16);
        mma_m16n8k16(sum[2 * n], weights, MmaB{{r[0], r[1]}});
        mma_m16n8k16(sum[2 * n + 1], weights, MmaB{{r[2], r[3]}});
    }
}

// Two neighbouring accumulators [16,8] as the left operand [16,16] of the next product.
__device__ inline MmaA as_left(const MmaC& low, const MmaC& high) {
    return {{pack_bf16(low.f[0], low.f[1]), pack_bf16(low.f[2], low.f[3]), pack_bf16(high.f[0], high.f[1]),
             pack_bf16(high.f[2], high.f[3])}};
}

// Where element e of this lane lies in an accumulator [16,8].
__device__ inline int row_in_mma(int e) { return int(threadIdx.x) % warp_size / 4 + e / 2 * 8; }
__device__ inline int column_in_mma(int e) { return int(threadIdx.x) % 4 * 2 + e % 2; }

// -------------------------------------------------------------------------------------------------------------- result
// The warp's 16 rows, each times its factor (rows lane / 4 and lane / 4 + 8), to rows from .. of dst, as far as those
// lie in [0, available). Goes through `scratch` [16][pitch<D>], which is the warp's own, so that memory is written 16
// bytes at a time.
template <int D>
__device__ inline void store_rows(HeadRows<nv_bf16> dst, int64_t from, int64_t available, int size, bool packed,
                                  nv_bf16* scratch, const MmaC (&sum)[D / 8], float factor0, float factor8) {
    const int lane = threadIdx.x % warp_size;
    __syncwarp();  // an earlier call may still be read
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        uint32_t* at = reinterpret_cast<uint32_t*>(scratch + row_in_mma(0) * pitch<D> + n * 8 + column_in_mma(0));
        at[0] = pack_bf16(sum[n].f[0] * factor0, sum[n].f[1] * factor0);
        at[8 * pitch<D> / 2] = pack_bf16(sum[n].f[2] * factor8, sum[n].f[3] * factor8);
    }
    __syncwarp();
    constexpr int pack = Pack<nv_bf16>::size, packs = D / pack;
    if (packed) {
        for (int i = lane; i < 16 * packs; i += warp_size) {
            const int row = i / packs, d = i % packs * pack;
            const int64_t t = from + row;
            if (t >= 0 && t < available && d < size) store_pack(dst[t] + d, load_pack(scratch + row * pitch<D> + d));
        }
    } else {
#pragma unroll 1
        for (int i = lane; i < 16 * D; i += warp_size) {
            const int row = i / D, d = i % D;
            const int64_t t = from + row;
            if (t >= 0 && t < available && d < size) dst[t][d] = scratch[row * pitch<D> + d];
        }
    }
}

// Calls f with the smallest padded head size that has a kernel: 32, 64 or 128. size <= 128.
template <int D>
struct PaddedSize {
    static constexpr int value = D;
};
template <class F>
void dispatch_size(int64_t size, F&& f) {
    if (size <= 32) return f(PaddedSize<32>{});
    if (size <= 64) return f(PaddedSize<64>{});
    f(PaddedSize<128>{});
}

}  // namespace llmc
