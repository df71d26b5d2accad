// Products of float tiles without tensor cores, for attention in f32 and for heads of more than 128 elements. A block
// has 256 threads, 16 x 16, and works on tiles of 64 x 64; thread (y, x) computes rows 4y .. 4y + 3 of its own side
// against rows x, x + 16, x + 32, x + 48 of the other: 16 results for 8 reads, or, where rows of the other side are
// summed, 4 rows by columns 4x .. 4x + 3 (and 64 + 4x ..). Heads of any size are taken in slices.
#pragma once
#include "llmc/ops/cuda/attention_tile.cuh"

namespace llmc {

constexpr int fma_threads = 256;
constexpr int slice = 32;               // columns of Q, K, ... that are in shared memory at a time; also rows of V, ...
constexpr int slice_pitch = slice + 4;  // rows 16 bytes further each: reads of 8 rows meet different banks
constexpr int weight_pitch = attention_tile + 4;
// Room for two operands [64][slice_pitch], or for `slice` rows of up to 128 columns.
constexpr int operand_floats = 2 * attention_tile * slice_pitch;
static_assert(operand_floats >= slice * (128 + 4));

__device__ inline int thread_x() { return int(threadIdx.x) % 16; }
__device__ inline int thread_y() { return int(threadIdx.x) / 16; }

// tile [rows][to_pitch] = columns d0 .. d0 + columns - 1 of rows from .. of src, as floats; zeros for rows outside
// [0, available) and columns from `size` on. Needs barriers before and after. d0 and columns are multiples of 8.
template <int rows, int columns, class T>
__device__ inline void load_floats(float* tile, int to_pitch, HeadRows<const T> src, int64_t from, int64_t available,
                                   int d0, int size, bool packed) {
    if (packed) {
        constexpr int pack = Pack<T>::size, packs = columns / pack;
        for (int i = int(threadIdx.x); i < rows * packs; i += fma_threads) {
            const int row = i / packs, d = i % packs * pack;
            const int64_t t = from + row;
            Pack<T> x{};
            if (t >= 0 && t < available && d0 + d < size) x = load_pack(src[t] + d0 + d);
#pragma unroll
            for (int e = 0; e < pack; e += 4)
                store_pack(tile + row * to_pitch + d + e,
                           Pack<float>{{to_float(x[e]), to_float(x[e + 1]), to_float(x[e + 2]), to_float(x[e + 3])}});
        }
    } else {
#pragma unroll 1
        for (int i = int(threadIdx.x); i < rows * columns; i += fma_threads) {
            const int row = i / columns, d = i % columns;
            const int64_t t = from + row;
            const bool given = t >= 0 && t < available && d0 + d < size;
            tile[row * to_pitch + d] = given ? to_float(src[t][d0 + d]) : 0.0f;
        }
    }
}

// products[i][j] = <row a0 + 4y + i of a, row b0 + x + 16 j of b>, in slices of the columns through `operands`.
template <class T>
__device__ inline void multiply_tiles(float (&products)[4][4], float* operands, HeadRows<const T> a, int64_t a0,
                                      int64_t a_rows, HeadRows<const T> b, int64_t b0, int64_t b_rows, int size,
                                      bool packed) {
    float* left = operands;
    float* right = operands + attention_tile * slice_pitch;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) products[i][j] = 0;
    for (int d0 = 0; d0 < size; d0 += slice) {
        __syncthreads();  // operands may still be read
        load_floats<attention_tile, slice>(left, slice_pitch, a, a0, a_rows, d0, size, packed);
        load_floats<attention_tile, slice>(right, slice_pitch, b, b0, b_rows, d0, size, packed);
        __syncthreads();
#pragma unroll 1
        for (int d = 0; d < slice && d0 + d < size; d += 4) {
            Pack<float> p[4], q[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p[i] = load_pack(left + (4 * thread_y() + i) * slice_pitch + d);
                q[i] = load_pack(right + (thread_x() + 16 * i) * slice_pitch + d);
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) products[i][j] += p[i][e] * q[j][e];
        }
    }
}

// weights[own row][row of the other side] in shared memory, from each thread's values. Needs barriers around it.
__device__ inline void share_weights(float* weights, const float (&values)[4][4]) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) weights[(4 * thread_y() + i) * weight_pitch + thread_x() + 16 * j] = values[i][j];
}

// sum[i][...] += over rows j of the other side in [begin, end): weights[4y + i][j] * row j, columns c0 + 4x .. of every
// 64. begin and end are multiples of 4 within the tile and may differ from thread to thread. rows_at: the row of src
// that is the tile's row 0. Opens with a barrier, so that weights written before it are seen.
template <int columns, class T>
__device__ inline void add_weighted_tile(float (&sum)[4][columns / 16], const float* weights, float* operands,
                                         HeadRows<const T> src, int64_t rows_at, int64_t available, int begin, int end,
                                         int c0, int size, bool packed) {
    constexpr int rows_pitch = columns + 4;
    for (int j0 = 0; j0 < attention_tile; j0 += slice) {
        __syncthreads();
        load_floats<slice, columns>(operands, rows_pitch, src, rows_at + j0, available, c0, size, packed);
        __syncthreads();
#pragma unroll 1
        for (int j = begin > j0 ? begin : j0; j < end && j < j0 + slice; j += 4) {
            Pack<float> weight[4];
#pragma unroll
            for (int i = 0; i < 4; i++) weight[i] = load_pack(weights + (4 * thread_y() + i) * weight_pitch + j);
#pragma unroll
            for (int e = 0; e < 4; e++)
#pragma unroll
                for (int c = 0; c < columns / 64; c++) {
                    const Pack<float> row = load_pack(operands + (j - j0 + e) * rows_pitch + c * 64 + 4 * thread_x());
#pragma unroll
                    for (int i = 0; i < 4; i++)
#pragma unroll
                        for (int l = 0; l < 4; l++) sum[i][4 * c + l] += weight[i][e] * row[l];
                }
        }
    }
}

// sum times factor[i] to columns c0 .. of row from + 4y + i of dst, as far as it lies in [0, available).
template <int columns, class T>
__device__ inline void store_floats(HeadRows<T> dst, int64_t from, int64_t available, int c0, int size, bool packed,
                                    const float (&sum)[4][columns / 16], const float (&factor)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int64_t t = from + 4 * thread_y() + i;
        if (t < 0 || t >= available) continue;
#pragma unroll
        for (int c = 0; c < columns / 64; c++) {
            const int d = c0 + c * 64 + 4 * thread_x();
            Pack<float> x;
#pragma unroll
            for (int l = 0; l < 4; l++) x[l] = sum[i][4 * c + l] * factor[i];
            if constexpr (sizeof(T) == sizeof(float)) {
                if (packed && d < size) {
                    store_pack(dst[t] + d, x);
                    continue;
                }
            }
#pragma unroll
            for (int l = 0; l < 4; l++)
                if (d + l < size) dst[t][d + l] = from_float<T>(x[l]);
        }
    }
}

}  // namespace llmc
