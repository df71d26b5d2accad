// Weight gradients: C (+)= A^T B with A [k, m] and B [k, n], k counting tokens. It is the library's slowest direction,
// since A lies across. Blocked as in Goto & van de Geijn 2008: a thread copies up to 256 rows of its columns of B into
// panels two vectors wide, and of A into strips of block_rows columns. A strip then stays in the first-level cache,
// panels come from the second (512 KiB), and a block of C stays in registers. With few columns of B a strip would be
// read only a few times: then A is read where it lies, if its rows do not lie badly. GFLOP/s of one core with a peak of
// 275 to 285, f32, A and B not in the caches, both measured in one run, A copied:
//     k, C          4096, [512 x 128]   2048, [2048 x 512]   256, [3072 x 768]   512, [50257 x 512]
//     oneDNN 2.6          190                  209                  189                 168
//     here                209                  230                  230                 235
// The first with A in place, in runs of their own: 230 to 241, copied in these 206 to 211.
#pragma once
#include "llmc/ops/cpu/gemm.h"
#include "llmc/ops/cpu/tile.h"

namespace llmc {

// Whether gemm_transposed makes this product. A small C is not worth the copies.
inline bool is_transposed(const GemmProblem& p) {
    return p.in == DType::f32 && p.out == DType::f32 && p.transpose_a && !p.transpose_b && !p.bias && p.k > 0 &&
           p.m * p.n >= 4096;
}

// What one thread does: some rows of some columns of C.
struct TransposedProduct {
    static constexpr int64_t depth = 256, strip_columns = 64, panel_columns = 512;  // most that is copied at a time
    static constexpr int64_t panel = block_vectors * tile_lanes<float>;
    static constexpr int64_t few_columns = 128;  // that read a strip: to copy it takes longer than it saves
    static constexpr int64_t page = 4096 / sizeof(float);  // rows whole pages apart share few lines of a cache
    struct Scratch { alignas(64) float strips[depth * strip_columns], panels[depth * panel_columns]; };

    int64_t k, lda, ldb, ldc;
    Scratch& scratch;

    // c [m, n] (+)= a^T b, n <= panel_columns.
    void multiply(float* c, const float* a, const float* b, int64_t m, int64_t n, bool accumulate) const {
        for (int64_t k0 = 0; k0 < k; k0 += depth) {
            const int64_t count = std::min(depth, k - k0);
            pack_strips<panel>(scratch.panels, b + k0 * ldb, n, count, 1, ldb);
            for (int64_t i = 0; i < m; i += strip_columns) {
                const int64_t rows = std::min(strip_columns, m - i);
                const float* columns = a + k0 * lda + i;
                Strips strips{columns, block_rows, lda};
                if (n > few_columns || rows % block_rows || lda % page == 0) {
                    pack_strips<block_rows>(scratch.strips, columns, rows, count, 1, lda);
                    strips = {scratch.strips, block_rows * count, block_rows};
                }
                multiply_panels(c + i * ldc, strips, rows, n, count, accumulate || k0 > 0);
            }
        }
    }

    struct Strips { const float* data; int64_t next, ld; };  // strip i: rows of block_rows at data + i * next, ld apart

    // C row by row of blocks: it is read and written in its order.
    void multiply_panels(float* c, const Strips& strips, int64_t m, int64_t n, int64_t count, bool accumulate) const {
        for (int64_t i = 0; i < m; i += block_rows)
            for (int64_t j = 0; j < n; j += panel) {
                const float *strip = strips.data + i / block_rows * strips.next, *columns = scratch.panels + j * count;
                float* out = c + i * ldc + j;
                if (m - i >= block_rows && n - j >= panel) {
                    multiply_block<true, block_vectors>(out, ldc, strip, strips.ld, columns, panel, count, accumulate);
                    continue;
                }
                float block[block_rows * panel];
                multiply_block<true, block_vectors>(block, panel, strip, strips.ld, columns, panel, count, false);
                for (int64_t row = 0; row < std::min<int64_t>(block_rows, m - i); row++)
                    for (int64_t column = 0; column < std::min(panel, n - j); column++) {
                        float& element = out[row * ldc + column];
                        element = (accumulate ? element : 0) + block[row * panel + column];
                    }
            }
    }
};

// scratch: one for each thread. Which thread makes an element changes nothing about how it is summed.
inline void gemm_transposed(const GemmProblem& p, const float* a, const float* b, float* c,
                            TransposedProduct::Scratch* scratch, int threads) {
    using Product = TransposedProduct;
    auto pieces = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
    const int64_t strips = pieces(p.m, block_rows);
    // A part of the rows copies B anew, a block of columns A: where there are more columns, threads share those.
    const int64_t shares = p.m < p.n ? pieces(threads, p.batch) : 1;
    const int64_t least = std::max(pieces(p.n, Product::panel_columns), shares);
    const int64_t width = round_up(pieces(p.n, least), Product::panel), blocks = pieces(p.n, width);
    const int64_t parts = p.batch * blocks % threads ? std::min<int64_t>(threads, strips) : 1;  // of the rows
#pragma omp parallel for collapse(3) schedule(static) num_threads(threads) if (p.flops() > 100000)
    for (int64_t matrix = 0; matrix < p.batch; matrix++)
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t part = 0; part < parts; part++) {
                const auto [begin, end] = part_of(strips, part, parts);
                const int64_t i = begin * block_rows, m = std::min(end * block_rows, p.m) - i;
                const int64_t j = block * width, n = std::min(width, p.n - j);
                const Product product{p.k, p.lda, p.ldb, p.ldc, scratch[omp_get_thread_num()]};
                product.multiply(c + matrix * p.stride_c + i * p.ldc + j, a + matrix * p.stride_a + i,
                                 b + matrix * p.stride_b + j, m, n, p.accumulate);
            }
}

}  // namespace llmc
