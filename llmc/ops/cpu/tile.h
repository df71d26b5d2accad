// Products of small matrices that stay in the cache: the inner loops of attention.
//
// A block of C, a few rows by two vectors, stays in registers while k advances; vectors run along the columns of B and
// C, elements of A are broadcast. Vectors are as wide as a register: GCC keeps wider ones in memory, ten times slower.
#pragma once
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

// A block of C takes half of the registers: 16 of AVX-512's 32, 8 of the 16 of AVX2 and SSE.
#if defined(__AVX512F__)
constexpr int register_bytes = 64, block_rows = 8;
#elif defined(__AVX__)
constexpr int register_bytes = 32, block_rows = 4;
#else
constexpr int register_bytes = 16, block_rows = 4;
#endif
constexpr int block_vectors = 2;

template <class F> struct TileVector {
    typedef F type __attribute__((vector_size(register_bytes)));
};
template <class F> constexpr int tile_lanes = register_bytes / int(sizeof(F));

// out = x * scale, n elements, vector by vector: rows are often too short for loops that decide how to go about it.
template <class Out, class In, class F>
inline void scale_row(Out* out, const In* x, F scale, int64_t n) {
    int64_t j = 0;
    for (; j + tile_lanes<F> <= n; j += tile_lanes<F>)
#pragma omp simd
        for (int64_t i = j; i < j + tile_lanes<F>; i++) put(out[i], F(x[i]) * scale);
    for (; j < n; j++) put(out[j], F(x[j]) * scale);
}

// C (block_rows x vectors * tile_lanes) = start + op(A) B, with k rows in B. start may be C, or nullptr for zeros.
// op(A)[r,p] = transposed ? a[p * lda + r] : a[r * lda + p]
template <bool transposed, int vectors, class F>
inline void multiply_block(F* c, int64_t ldc, const F* start, int64_t ld_start, const F* a, int64_t lda, const F* b,
                           int64_t ldb, int64_t k) {
    using V = typename TileVector<F>::type;
    V sum[block_rows][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < block_rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            sum[r][v] = V{};
            if (start) std::memcpy(&sum[r][v], start + r * ld_start + v * tile_lanes<F>, sizeof(V));
        }
    for (int64_t p = 0; p < k; p++) {
        V row[vectors];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) std::memcpy(&row[v], b + p * ldb + v * tile_lanes<F>, sizeof(V));
#pragma GCC unroll 8
        for (int r = 0; r < block_rows; r++) {
            const F x = transposed ? a[p * lda + r] : a[r * lda + p];
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) sum[r][v] += x * row[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < block_rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) std::memcpy(c + r * ldc + v * tile_lanes<F>, &sum[r][v], sizeof(V));
}

// block_rows rows of C, n columns (of tile_lanes). The order of the sum over k depends on neither n nor the place
// of a column, so equal inputs give equal bits wherever they stand.
template <bool transposed, class F>
inline void multiply_rows(F* c, int64_t ldc, const F* a, int64_t lda, const F* b, int64_t ldb, int64_t n, int64_t k,
                          bool accumulate) {
    constexpr int64_t width = block_vectors * tile_lanes<F>;
    int64_t j = 0;
    const F* start = accumulate ? c : nullptr;
    for (; j + width <= n; j += width, start += accumulate ? width : 0)
        multiply_block<transposed, block_vectors>(c + j, ldc, start, ldc, a, lda, b + j, ldb, k);
    if (j < n) multiply_block<transposed, 1>(c + j, ldc, start, ldc, a, lda, b + j, ldb, k);
}

// Of two rows a and b, `step` apart in a square: exchanges a's elements of columns with bit `step` and b's of those
// without it.
template <int step, class V, int... column>
inline void exchange_halves(V& a, V& b, std::integer_sequence<int, column...>) {
    constexpr int lanes = sizeof...(column);  // b's elements are numbered from `lanes` on
    const V first = __builtin_shufflevector(a, b, (column & step ? lanes + column - step : column)...);
    b = __builtin_shufflevector(a, b, (column & step ? lanes + column : column + step)...);
    a = first;
}

template <int step, class V, size_t lanes>
inline void transpose_blocks(V (&row)[lanes]) {
#pragma GCC unroll 16
    for (size_t r = 0; r < lanes; r++)
        if (!(r & step)) exchange_halves<step>(row[r], row[r + step], std::make_integer_sequence<int, lanes>());
    if constexpr (step > 1) transpose_blocks<step / 2>(row);
}

// dst[c][r] = src[r][c] of a square of tile_lanes rows and columns: halves change places across the diagonal, then
// halves of halves.
template <class F>
inline void transpose_square(F* dst, int64_t dst_stride, const F* src, int64_t src_stride) {
    typename TileVector<F>::type row[tile_lanes<F>];
#pragma GCC unroll 16
    for (int r = 0; r < tile_lanes<F>; r++) std::memcpy(&row[r], src + r * src_stride, sizeof row[r]);
    transpose_blocks<tile_lanes<F> / 2>(row);
#pragma GCC unroll 16
    for (int r = 0; r < tile_lanes<F>; r++) std::memcpy(dst + r * dst_stride, &row[r], sizeof row[r]);
}

// dst[c][r] = src[r][c], in whole squares: both have room for rows and columns rounded up to tile_lanes.
template <class F>
inline void transpose_tile(F* dst, int64_t dst_stride, const F* src, int64_t src_stride, int64_t rows,
                           int64_t columns) {
    for (int64_t r = 0; r < rows; r += tile_lanes<F>)
        for (int64_t c = 0; c < columns; c += tile_lanes<F>)
            transpose_square(dst + c * dst_stride + r, dst_stride, src + r * src_stride + c, src_stride);
}

// What kernels read, in their order: count x k elements, (i, p) at from[i * step_i + p * step_p], in strips of `width`
// along i, zero-padded: to[strip][p][width]. In the order of memory, whichever axis is contiguous.
template <int64_t width, class T>
inline void pack_strips(T* to, const T* from, int64_t count, int64_t k, int64_t step_i, int64_t step_p) {
    const int64_t whole = count / width * width, padded = (count + width - 1) / width * width;
    if (step_i == 1) {
        for (int64_t p = 0; p < k; p++, from += step_p, to += width) {
            for (int64_t i = 0; i < whole; i += width) std::memcpy(to + i * k, from + i, width * sizeof(T));
            for (int64_t i = whole; i < padded; i++) to[whole * k + i - whole] = i < count ? from[i] : T(0);
        }
        return;
    }
    constexpr bool squares = width % tile_lanes<T> == 0;
    constexpr int64_t rows = squares ? tile_lanes<T> : 1;
    for (int64_t i = 0; i < padded; i += rows) {
        T* strip = to + i / width * width * k + i % width;
        int64_t p = 0;
        if constexpr (squares)
            for (; step_p == 1 && i + rows <= count && p + rows <= k; p += rows)
                transpose_square(strip + p * width, width, from + i * step_i + p, step_i);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t q = p; q < k; q++)
                strip[q * width + r] = i + r < count ? from[(i + r) * step_i + q * step_p] : T(0);
    }
}

}  // namespace llmc
