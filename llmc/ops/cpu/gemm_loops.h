// GEMM by plain loops with register blocking (Goto & van de Geijn 2008): float64 always, float32 without a library.
#pragma once
#include "llmc/ops/cpu/cpu.h"
#include "llmc/ops/cpu/gemm.h"
#include "llmc/ops/cpu/tile.h"

namespace llmc {

// acc[rows of a strip][two lanes] += strip of A (depth x 6, packed) times strip of B (depth x two lanes, packed).
template <class T>
struct GemmTile {
    using Lane = typename TileVector<T>::type;
    static constexpr int64_t strip_rows = 6, strip_columns = 2 * tile_lanes<T>;
    static constexpr int64_t rows = 8 * strip_rows, columns = 512 / sizeof(T), depth = 256;

    alignas(64) T a[rows * depth];
    alignas(64) T b[columns * depth];
    alignas(64) T acc[rows * columns];  // strip by strip

    void multiply_strips(const T* a_strip, const T* b_strip, int64_t k, T* out) {
        Lane c[strip_rows][2];
        Lane* o = reinterpret_cast<Lane*>(out);
        const Lane* lanes = reinterpret_cast<const Lane*>(b_strip);
        for (int i = 0; i < strip_rows; i++) c[i][0] = o[2 * i], c[i][1] = o[2 * i + 1];
        for (int64_t p = 0; p < k; p++)
#pragma GCC unroll 6
            for (int i = 0; i < strip_rows; i++) {
                T value = a_strip[p * strip_rows + i];
                c[i][0] += value * lanes[2 * p];
                c[i][1] += value * lanes[2 * p + 1];
            }
        for (int i = 0; i < strip_rows; i++) o[2 * i] = c[i][0], o[2 * i + 1] = c[i][1];
    }
};

// Rows [i0, i0+m) and columns [j0, j0+n) of one matrix product.
template <class T>
void gemm_loops_block(GemmTile<T>& tile, const GemmProblem& p, const T* a, const T* b, const T* bias, T* c, int64_t i0,
                      int64_t m, int64_t j0, int64_t n) {
    using Tile = GemmTile<T>;
    constexpr int64_t sr = Tile::strip_rows, sc = Tile::strip_columns;
    const int64_t a_row = p.transpose_a ? 1 : p.lda, a_k = p.transpose_a ? p.lda : 1;
    const int64_t b_column = p.transpose_b ? p.ldb : 1, b_k = p.transpose_b ? 1 : p.ldb;
    std::fill(tile.acc, tile.acc + Tile::rows * Tile::columns, T(0));
    for (int64_t k0 = 0; k0 < p.k; k0 += Tile::depth) {
        int64_t k = std::min(Tile::depth, p.k - k0);
        pack_strips<sr>(tile.a, a + i0 * a_row + k0 * a_k, m, k, a_row, a_k);
        pack_strips<sc>(tile.b, b + j0 * b_column + k0 * b_k, n, k, b_column, b_k);
        for (int64_t j = 0; j < n; j += sc)
            for (int64_t i = 0; i < m; i += sr)
                tile.multiply_strips(tile.a + i * k, tile.b + j * k, k, tile.acc + (j * Tile::rows + i * sc));
    }
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            T value = tile.acc[(j / sc) * sc * Tile::rows + i * sc + j % sc];
            T& out = c[(i0 + i) * p.ldc + j0 + j];
            if (p.bias) value += bias[j0 + j];
            if (p.accumulate) value += out;
            out = value;
        }
}

template <class T>
void gemm_loops(const GemmProblem& p, const T* a, const T* b, const T* bias, T* c, int threads) {
    using Tile = GemmTile<T>;
    const int64_t row_blocks = (p.m + Tile::rows - 1) / Tile::rows;
    const int64_t column_blocks = (p.n + Tile::columns - 1) / Tile::columns;
    const int64_t blocks = p.batch * row_blocks * column_blocks;
#pragma omp parallel num_threads(int(std::min<int64_t>(threads, blocks)))
    {
        GemmTile<T> tile;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            int64_t batch = block / (row_blocks * column_blocks), in_matrix = block % (row_blocks * column_blocks);
            int64_t i0 = in_matrix / column_blocks * Tile::rows, j0 = in_matrix % column_blocks * Tile::columns;
            gemm_loops_block(tile, p, a + batch * p.stride_a, b + batch * p.stride_b, bias, c + batch * p.stride_c, i0,
                             std::min(Tile::rows, p.m - i0), j0, std::min(Tile::columns, p.n - j0));
        }
    }
}

}  // namespace llmc
