// Matrix products with few rows, as in generation: each weight is used only a few times, so the time is that of reading
// the weights. Libraries copy the weights first, and a processor reads one row after the other faster than many at the
// same time. One row times [50257, 512] on one core that reads 40 GB/s: 4.9 ms with the library (21 GB/s), 2.5 ms here.
#pragma once
#include "llmc/ops/cpu/gemm.h"
#include "llmc/ops/cpu/tile.h"

namespace llmc {

constexpr int few_rows = 4;

// Whether gemm_few_rows computes this product: c[i,j] (+)= <a[i,:], b[j,:]> + bias[j] in f32. Rows are whole vectors,
// and those of A stay in the first-level cache while B is read once.
inline bool has_few_rows(const GemmProblem& p) {
    return p.in == DType::f32 && p.out == DType::f32 && !p.transpose_a && p.transpose_b && p.m <= few_rows &&
           p.k % tile_lanes<float> == 0 && p.m * p.k <= 4096;
}

// out[i] = <a[i,:], b> for `rows` rows of A. At least four sums are computed at the same time, because one alone would
// wait for the end of each addition.
template <int rows>
inline void dot_row(float* out, const float* a, int64_t lda, const float* b, int64_t k) {
    using V = TileVector<float>::type;
    constexpr int lanes = tile_lanes<float>, parts = (few_rows + rows - 1) / rows;
    V sum[parts][rows] = {};
    auto add = [&](V(&part)[rows], int64_t at) {
        V y;
        std::memcpy(&y, b + at, sizeof y);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            V x;
            std::memcpy(&x, a + i * lda + at, sizeof x);
            part[i] += x * y;
        }
    };
    int64_t at = 0;
    for (; at + parts * lanes <= k; at += parts * lanes)
#pragma GCC unroll 4
        for (int part = 0; part < parts; part++) add(sum[part], at + part * lanes);
    for (; at < k; at += lanes) add(sum[0], at);
    for (int i = 0; i < rows; i++) {
        V total = sum[0][i];
        for (int part = 1; part < parts; part++) total += sum[part][i];
        out[i] = 0;
        for (int lane = 0; lane < lanes; lane++) out[i] += total[lane];
    }
}

inline void gemm_few_rows(const GemmProblem& p, const float* a, const float* b, const float* bias, float* c,
                          int threads) {
    constexpr decltype(&dot_row<1>) dot[few_rows + 1] = {nullptr, dot_row<1>, dot_row<2>, dot_row<3>, dot_row<4>};
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (p.batch * p.n * p.k > 32768)
    for (int64_t matrix = 0; matrix < p.batch; matrix++)
        for (int64_t j = 0; j < p.n; j++) {
            float sums[few_rows];
            dot[p.m](sums, a + matrix * p.stride_a, p.lda, b + matrix * p.stride_b + j * p.ldb, p.k);
            for (int64_t i = 0; i < p.m; i++) {
                float& out = c[matrix * p.stride_c + i * p.ldc + j];
                out = (p.accumulate ? out : 0) + sums[i] + (bias ? bias[j] : 0);
            }
        }
}

}  // namespace llmc
