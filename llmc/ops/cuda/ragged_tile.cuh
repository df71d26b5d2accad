// The products inside one block that matmul_ragged.cu is made of: one of 128 x 128 results by 256 threads, from tiles
// of both operands in shared memory that reach `k_step` elements into the sum. bf16 on tensor cores, f32 on ordinary
// multiply-adds.
//
// An operand is read as it lies in memory: along k (a row of memory is a piece of the sum), or across (a row of memory
// is one k and many rows or columns of the result). So there are no transposing copies, and loads are 16 bytes wide.
#pragma once
#include "llmc/ops/cuda/cuda.cuh"
#include "llmc/ops/cuda/ragged.h"

namespace llmc {

constexpr int ragged_side = ragged_rows_per_tile, ragged_threads = 256;
static_assert(ragged_side == 128);

// Elements of the sum that a tile holds, and from one of its rows to the next: 16 bytes more than a row, so that the
// same columns of eight neighbouring rows lie in different banks.
template <class T>
constexpr int k_step = 64 / int(sizeof(T));
template <class T, bool along_k>
constexpr int ragged_pitch = (along_k ? k_step<T> : ragged_side) + Pack<T>::size;
template <class T>
constexpr int operand_elements = ragged_side* ragged_pitch<T, true>;  // the larger one of both ways
constexpr int result_pitch = ragged_side + 4;

// One operand of one result tile: sides first .. of the tile, as many as there are; rows of memory `ld` apart.
template <class T>
struct RaggedOperand {
    const T* data;
    int64_t ld, first, sides;  // `sides` in all
    bool packed;               // data and ld allow 16-byte accesses
};

// tile = elements k0 .. k0 + k_step - 1 of the sum, of 128 sides; zeros where the operand ends. All threads take part.
// Complete after cp_async_commit(), cp_async_wait<>() and a barrier.
template <bool along_k, class T>
__device__ inline void load_operand(T* tile, const RaggedOperand<T>& x, int64_t k0, int64_t k_end) {
    constexpr int pitch = ragged_pitch<T, along_k>, columns = pitch - Pack<T>::size;
    constexpr int rows = along_k ? ragged_side : k_step<T>, packs = columns / Pack<T>::size;
    const int64_t row0 = along_k ? x.first : k0, column0 = along_k ? k0 : x.first;
    const int64_t row_end = along_k ? x.sides : k_end, column_end = along_k ? k_end : x.sides;
    if (x.packed) {
#pragma unroll
        for (int i = 0; i < rows * packs / ragged_threads; i++) {
            const int at = i * ragged_threads + int(threadIdx.x), row = at / packs, column = at % packs * Pack<T>::size;
            const bool given = row0 + row < row_end && column0 + column < column_end;
            cp_async16(tile + row * pitch + column, given ? x.data + (row0 + row) * x.ld + column0 + column : x.data,
                       given);
        }
    } else {
#pragma unroll 1
        for (int at = int(threadIdx.x); at < rows * columns; at += ragged_threads) {
            const int row = at / columns, column = at % columns;
            const bool given = row0 + row < row_end && column0 + column < column_end;
            tile[row * pitch + column] = given ? x.data[(row0 + row) * x.ld + column0 + column] : from_float<T>(0);
        }
    }
}

// This thread's part of a result tile.
template <class T>
struct RaggedSums;

// Eight warps, two by four; each owns 64 rows and 32 columns.
template <>
struct RaggedSums<nv_bf16> {
    MmaC sum[4][4] = {};

    // Sides m .. m + 15, elements k .. k + 15 of the sum.
    template <bool along_k>
    static __device__ void load_left(MmaA& a, const nv_bf16* tile, int m, int k) {
        constexpr int pitch = ragged_pitch<nv_bf16, along_k>;
        const int lane = threadIdx.x % warp_size;
        if constexpr (along_k)
            ldmatrix_x4(a.r, tile + (m + lane % 16) * pitch + k + lane / 16 * 8);
        else
            ldmatrix_x4_trans(a.r, tile + (k + lane / 16 * 8 + lane % 8) * pitch + m + lane / 8 % 2 * 8);
    }
    // Two right operands: sides n .. n + 7 and n + 8 .. n + 15.
    template <bool along_k>
    static __device__ void load_right(uint32_t (&b)[4], const nv_bf16* tile, int n, int k) {
        constexpr int pitch = ragged_pitch<nv_bf16, along_k>;
        const int lane = threadIdx.x % warp_size;
        if constexpr (along_k)
            ldmatrix_x4(b, tile + (n + lane / 16 * 8 + lane % 8) * pitch + k + lane / 8 % 2 * 8);
        else
            ldmatrix_x4_trans(b, tile + (k + lane % 16) * pitch + n + lane / 16 * 8);
    }

    template <bool a_along_k, bool b_along_k>
    __device__ void add_product(const nv_bf16* a, const nv_bf16* b) {
        const int warp = threadIdx.x / warp_size, m = warp / 4 * 64, n = warp % 4 * 32;
#pragma unroll
        for (int k = 0; k < k_step<nv_bf16>; k += 16) {
            uint32_t right[2][4];
#pragma unroll
            for (int j = 0; j < 2; j++) load_right<b_along_k>(right[j], b, n + 16 * j, k);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                MmaA left;
                load_left<a_along_k>(left, a, m + 16 * i, k);
#pragma unroll
                for (int j = 0; j < 4; j++)
                    mma_m16n8k16(sum[i][j], left, MmaB{{right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]}});
            }
        }
    }

    // To results [128][result_pitch].
    template <bool a_along_k, bool b_along_k>
    __device__ void write(float* results) const {
        const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
        float* mine = results + (warp / 4 * 64 + lane / 4) * result_pitch + warp % 4 * 32 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) mine[(16 * i + e / 2 * 8) * result_pitch + 8 * j + e % 2] = sum[i][j].f[e];
    }
};

// 16 x 16 threads with eight rows and eight columns each. Which ones depends on how the operand lies: every sixteenth
// side if it lies along k, else two times four neighbours, so that shared memory is read 16 bytes at a time.
template <>
struct RaggedSums<float> {
    float sum[8][8] = {};

    template <bool along_k>
    static __device__ int side(int thread, int i) {
        return along_k ? thread + 16 * i : 4 * thread + i % 4 + i / 4 * 64;
    }
    template <bool along_k>
    static __device__ void load_sides(float (&x)[8][4], const float* tile, int thread, int k) {
        constexpr int pitch = ragged_pitch<float, along_k>;
        if constexpr (along_k) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const Pack<float> p = load_pack(tile + side<true>(thread, i) * pitch + k);
#pragma unroll
                for (int q = 0; q < 4; q++) x[i][q] = p[q];
            }
        } else {
#pragma unroll
            for (int q = 0; q < 4; q++)
#pragma unroll
                for (int i = 0; i < 8; i += 4) {
                    const Pack<float> p = load_pack(tile + (k + q) * pitch + side<false>(thread, i));
#pragma unroll
                    for (int j = 0; j < 4; j++) x[i + j][q] = p[j];
                }
        }
    }

    template <bool a_along_k, bool b_along_k>
    __device__ void add_product(const float* a, const float* b) {
#pragma unroll 1
        for (int k = 0; k < k_step<float>; k += 4) {
            float left[8][4], right[8][4];
            load_sides<a_along_k>(left, a, int(threadIdx.x) / 16, k);
            load_sides<b_along_k>(right, b, int(threadIdx.x) % 16, k);
#pragma unroll
            for (int q = 0; q < 4; q++)
#pragma unroll
                for (int i = 0; i < 8; i++)
#pragma unroll
                    for (int j = 0; j < 8; j++) sum[i][j] += left[i][q] * right[j][q];
        }
    }

    template <bool a_along_k, bool b_along_k>
    __device__ void write(float* results) const {
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 8; j++)
                results[side<a_along_k>(int(threadIdx.x) / 16, i) * result_pitch +
                        side<b_along_k>(int(threadIdx.x) % 16, j)] = sum[i][j];
    }
};

}  // namespace llmc
