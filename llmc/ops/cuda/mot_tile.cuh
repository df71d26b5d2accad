// The products inside one warp that merge, emit and the gradient of their weights are made of (mot_mix.cu): tiles of 32
// rows in shared memory, of which the warp owns 64 bytes of the columns. f32 on ordinary multiply-adds, bf16 on tensor
// cores.
//
// Weights are f32 whatever the activations. A bf16 product splits each into two bf16, high + low, and multiplies both:
// the relative error is 2^-18, far below the rounding of the result to bf16, at a cost that memory hides. (An infinite
// activation may become NaN.)
#pragma once
#include "llmc/ops/cuda/cuda.cuh"

namespace llmc {

constexpr int tile_rows = 32, most_tile_warps = 8, warp_share = 64;  // bytes of a row that a warp owns
template <class T>
constexpr int warp_columns = (warp_share / int(sizeof(T)));
// Elements from one row of a tile to the next: 16 bytes more than the row, so that the same columns of eight
// neighbouring rows lie in different banks.
template <class T>
constexpr int tile_step = ((most_tile_warps * warp_share + 16) / int(sizeof(T)));

__device__ inline int lane_index() { return threadIdx.x % warp_size; }

// weights(m, k) [32, 32], ready to be multiplied; rows again 16 bytes apart modulo the banks.
template <class T>
struct WeightTile;
template <>
struct WeightTile<float> {
    float w[tile_rows][tile_rows + 4];
    __device__ void put(int m, int k, float x) { w[m][k] = x; }
};
template <>
struct WeightTile<nv_bf16> {
    nv_bf16 high[tile_rows][tile_rows + 8], low[tile_rows][tile_rows + 8];
    __device__ void put(int m, int k, float x) {
        high[m][k] = from_float<nv_bf16>(x);
        low[m][k] = from_float<nv_bf16>(x - to_float(high[m][k]));
    }
};

// Four 8x8 matrices from shared memory: rows 0-7 and 8-15 of the first 8 columns, then of the next 8, seen from
// `corner`. As fragments (gpu.cuh): loaded plainly, an A [16 rows, 16 columns]; transposed, r[0], r[1] and r[2], r[3]
// are B [16 rows, 8 columns] twice.
__device__ inline const nv_bf16* fragment_row(const nv_bf16* corner, int step) {
    return corner + lane_index() % 16 * step + lane_index() / 16 * 8;
}

// x[i] of lane 4 n + j and x[j] of lane 4 n + i change places.
__device__ inline void transpose_in_quads(float (&x)[4]) {
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    for (int i = 0; i < 4; i += 2) {
        const float got = __shfl_xor_sync(full_mask, odd ? x[i] : x[i + 1], 1);
        x[i] = odd ? got : x[i];
        x[i + 1] = odd ? x[i + 1] : got;
    }
    for (int i = 0; i < 2; i++) {
        const float got = __shfl_xor_sync(full_mask, upper ? x[i] : x[i + 2], 2);
        x[i] = upper ? got : x[i];
        x[i + 2] = upper ? x[i + 2] : got;
    }
}

// ------------------------------------------------------------------------------------------------------ merge and emit
// sums(m, c) = sum over k: weights(m, k) tile(k, c), m, k < 32, c < warp_columns. In the end each lane has 16 bytes of
// neighbouring columns, from sums_column() on, of the rows sums_row(0 ... 3).
__device__ inline int sums_row(int i) { return lane_index() / 4 + 8 * i; }
template <class T>
__device__ int sums_column() {
    return lane_index() % 4 * Pack<T>::size;
}

template <class T>
struct WarpSums;

template <>
struct WarpSums<float> {
    float sum[4][4];

    __device__ void add_product(const WeightTile<float>& weights, const float* tile) {
        for (int k = 0; k < tile_rows; k += 4) {
            Pack<float> a[4], b[4];
            for (int i = 0; i < 4; i++) a[i] = load_pack(&weights.w[sums_row(i)][k]);
            for (int q = 0; q < 4; q++) b[q] = load_pack(tile + (k + q) * tile_step<float> + sums_column<float>());
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++)
                    for (int q = 0; q < 4; q++) sum[i][j] += a[i][q] * b[q][j];
        }
    }
    __device__ void read(float (&result)[4][4]) const {
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) result[i][j] = sum[i][j];
    }
};

template <>
struct WarpSums<nv_bf16> {
    MmaC sum[2][4];  // halves of the rows, quarters of the columns

    __device__ void add_product(const WeightTile<nv_bf16>& weights, const nv_bf16* tile) {
        constexpr int step = tile_step<nv_bf16>, weights_step = tile_rows + 8;
        for (int k = 0; k < tile_rows; k += 16) {
            uint32_t b[2][4];
            for (int i = 0; i < 2; i++) ldmatrix_x4_trans(b[i], fragment_row(tile + k * step + 16 * i, step));
            for (int half = 0; half < 2; half++) {
                MmaA high, low;
                ldmatrix_x4(high.r, fragment_row(&weights.high[16 * half][k], weights_step));
                ldmatrix_x4(low.r, fragment_row(&weights.low[16 * half][k], weights_step));
                for (int n = 0; n < 4; n++) {
                    const MmaB column = {{b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]}};
                    mma_m16n8k16(sum[half][n], low, column);
                    mma_m16n8k16(sum[half][n], high, column);
                }
            }
        }
    }
    // A lane's fragments hold two columns of each quarter; transposed among four lanes, eight of one quarter.
    __device__ void read(float (&result)[4][8]) const {
        for (int i = 0; i < 4; i++)
            for (int parity = 0; parity < 2; parity++) {
                float x[4];
                for (int n = 0; n < 4; n++) x[n] = sum[i / 2][n].f[i % 2 * 2 + parity];
                transpose_in_quads(x);
                for (int n = 0; n < 4; n++) result[i][2 * n + parity] = x[n];
            }
    }
};

// --------------------------------------------------------------------------------------------- gradient of the weights
// dots(m, n) = sum over c: left(m, c) right(n, c), m, n < 32, over the warp's columns. write() puts them to [32, 32].
template <class T>
struct WarpDots;

template <>
struct WarpDots<float> {
    float sum[4][8];  // rows lane / 4 + 8 i, columns lane % 4 + 4 j

    __device__ void add_product(const float* left, const float* right) {
        const int row = lane_index() / 4, column = lane_index() % 4;
        for (int c = 0; c < warp_columns<float>; c += 4) {
            Pack<float> a[4], b[8];
            for (int i = 0; i < 4; i++) a[i] = load_pack(left + (row + 8 * i) * tile_step<float> + c);
            for (int j = 0; j < 8; j++) b[j] = load_pack(right + (column + 4 * j) * tile_step<float> + c);
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 8; j++)
                    for (int q = 0; q < 4; q++) sum[i][j] += a[i][q] * b[j][q];
        }
    }
    __device__ void write(float* dots) const {
        const int row = lane_index() / 4, column = lane_index() % 4;
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 8; j++) dots[(row + 8 * i) * tile_rows + column + 4 * j] = sum[i][j];
    }
};

template <>
struct WarpDots<nv_bf16> {
    MmaC sum[2][4];  // halves of the rows, quarters of the columns

    __device__ void add_product(const nv_bf16* left, const nv_bf16* right) {
        constexpr int step = tile_step<nv_bf16>;
        for (int c = 0; c < warp_columns<nv_bf16>; c += 16) {
            uint32_t b[2][4];
            for (int i = 0; i < 2; i++) ldmatrix_x4(b[i], fragment_row(right + 16 * i * step + c, step));
            for (int half = 0; half < 2; half++) {
                MmaA a;
                ldmatrix_x4(a.r, fragment_row(left + 16 * half * step + c, step));
                for (int n = 0; n < 4; n++) {
                    const MmaB column = {{b[n / 2][n % 2], b[n / 2][n % 2 + 2]}};
                    mma_m16n8k16(sum[half][n], a, column);
                }
            }
        }
    }
    __device__ void write(float* dots) const {
        const int row = lane_index() / 4, column = lane_index() % 4 * 2;
        for (int half = 0; half < 2; half++)
            for (int n = 0; n < 4; n++)
                for (int i = 0; i < 4; i++)
                    dots[(16 * half + row + i / 2 * 8) * tile_rows + 8 * n + column + i % 2] = sum[half][n].f[i];
    }
};

}  // namespace llmc
