// C = op(A) op(B) + bias, or C += op(A) op(B), in float32, blocked as in Goto & van de Geijn 2008. A thread copies a
// block of op(B), of up to 512 KiB for the second-level cache, into panels two vectors wide. Strips of op(A),
// block_rows rows high, come from the first-level cache, and a block of C stays in registers. Rows of A are read in
// place, and those of the next strip are prefetched. Strips of A^T are copied, unless only a few columns of B use them.
//
// GFLOP/s of two cores with a peak of 570, operands not in the caches, both programs measured in one run. Columns: k,
// size of C:
//     rows            128, [4096 x 512]   512, [4096 x 128]   512, [2048 x 2048]   2048, [2048 x 512]
//     oneDNN 2.6             488                 462                 501                  490
//     here                   505                 488                 504                  498
//     weight gradients  4096, [512 x 128]  4096, [128 x 512]  2048, [512 x 2048]  512, [50257 x 512]
//     oneDNN 2.6             404                 345                 419                  397
//     here                   450                 404                 475                  458
// In whole steps, d_model 512 and 768, products of rows took 4 to 14 % less time than the library's.
#pragma once
#include "llmc/ops/cpu/gemm.h"
#include "llmc/ops/cpu/tile.h"

namespace llmc {

// Whether gemm_packed computes this product. It never does for one that gemm_few_rows computes. For a small C the
// copies cost too much. oneDNN was up to 9 % faster where there are few rows for their length, and at most sizes with
// AVX2's 16 registers.
inline bool is_packed(const GemmProblem& p) {
    return register_bytes == 64 && p.in == DType::f32 && p.out == DType::f32 && p.k > 0 && p.m * p.n >= 4096 &&
           (p.transpose_a || p.k <= 4 * p.m);
}

// The part of one thread: some rows of some columns of C.
struct PackedProduct {
    static constexpr int64_t group_rows = 64, depth_of_rows = 512, depth_of_columns = 256;  // copied of A at most
    static constexpr int64_t panel = block_vectors * tile_lanes<float>, panel_floats = 128 * 1024;
    static constexpr int64_t few_columns = 128;  // with so few, copying a strip of A^T does not pay
    static constexpr int64_t page = 4096 / sizeof(float);  // rows whole pages apart share few cache lines
    static constexpr int64_t line = 64 / sizeof(float);
    struct Scratch { alignas(64) float strips[group_rows * depth_of_columns], panels[panel_floats]; };

    struct Strips { const float* data; int64_t next, ld; };  // strip i is at data + i * next
    // What is added to a block of C: its sum over `count` of k, to what start has (rows ld apart; without data, zeros).
    struct Step { const float* start; int64_t ld, count; bool last; };

    const GemmProblem& p;
    Scratch& scratch;

    // c [m, n] = (accumulate ? c : bias) + op(a) op(b); finish(begin, count) for every range of finished elements.
    template <class Finish>
    void multiply(float* c, const float* a, const float* b, const float* bias, int64_t m, int64_t n,
                  Finish finish) const {
        const int64_t depth = part_size(p.k, p.transpose_a ? depth_of_columns : depth_of_rows, 1);
        const int64_t width = part_size(n, panel_floats / depth / panel * panel, panel);
        for (int64_t j = 0; j < n; j += width)
            for (int64_t k = 0; k < p.k; k += depth) {
                const int64_t columns = std::min(width, n - j), count = std::min(depth, p.k - k);
                pack_strips<panel>(scratch.panels, p.transpose_b ? b + j * p.ldb + k : b + k * p.ldb + j, columns,
                                   count, p.transpose_b ? p.ldb : 1, p.transpose_b ? 1 : p.ldb);
                Step step{bias ? bias + j : nullptr, 0, count, k + count == p.k};
                if (p.accumulate || k > 0) step.start = c + j, step.ld = p.ldc;
                if (p.transpose_a) add_columns(c + j, a + k * p.lda, m, columns, step, finish);
                else add_rows(c + j, a + k, m, columns, step, finish);
            }
    }

    // n in equal parts of at most `most`, rounded up to whole units.
    static int64_t part_size(int64_t n, int64_t most, int64_t unit) {
        const int64_t parts = (n + most - 1) / most;
        return round_up((n + parts - 1) / parts, unit);
    }

    // c [m, n] += a b; a [m, count] is read in place, except rows that do not fill a strip
    template <class Finish>
    void add_rows(float* c, const float* a, int64_t m, int64_t n, Step step, Finish finish) const {
        const int64_t whole = m / block_rows * block_rows;
        add_strips<false>(c, {a, block_rows * p.lda, p.lda}, whole, n, step, finish);
        if (whole == m) return;
        pack_strips<block_rows>(scratch.strips, a + whole * p.lda, m - whole, step.count, p.lda, 1);
        if (step.start) step.start += whole * step.ld;
        add_strips<true>(c + whole * p.ldc, {scratch.strips, 0, block_rows}, m - whole, n, step, finish);
    }

    // c [m, n] += a^T b; a [count, m]
    template <class Finish>
    void add_columns(float* c, const float* a, int64_t m, int64_t n, Step step, Finish finish) const {
        for (int64_t i = 0; i < m; i += group_rows) {
            const int64_t rows = std::min(group_rows, m - i);
            Strips strips{a + i, block_rows, p.lda};
            if (n > few_columns || rows % block_rows || p.lda % page == 0) {
                pack_strips<block_rows>(scratch.strips, a + i, rows, step.count, 1, p.lda);
                strips = {scratch.strips, block_rows * step.count, block_rows};
            }
            add_strips<true>(c + i * p.ldc, strips, rows, n, step, finish);
            if (step.start) step.start += group_rows * step.ld;
        }
    }

    // C row by row of blocks: it is read and written in its order.
    template <bool transposed, class Finish>
    void add_strips(float* c, const Strips& strips, int64_t m, int64_t n, const Step& step, Finish finish) const {
        const int64_t lines = step.count * block_rows * panel / (line * n) + 1;  // of the next strip, with every panel
        for (int64_t i = 0; i < m; i += block_rows) {
            const int64_t rows = std::min<int64_t>(block_rows, m - i);
            const float* strip = strips.data + i / block_rows * strips.next;
            LinesAhead ahead;
            if (!transposed && i + block_rows < m) ahead = {strip + strips.next, strips.ld, step.count};
            for (int64_t j = 0; j < n; j += panel) {
                ahead.fetch(lines);
                const float* columns = scratch.panels + j * step.count;
                const float* start = step.start ? step.start + i * step.ld + j : nullptr;
                float* out = c + i * p.ldc + j;
                if (rows == block_rows && n - j >= panel) {
                    multiply_block<transposed, block_vectors>(out, p.ldc, start, step.ld, strip, strips.ld, columns,
                                                              panel, step.count);
                    continue;
                }
                float block[block_rows * panel] = {};
                const int64_t whole = std::min(panel, n - j);
                for (int64_t row = 0; start && row < rows; row++)
                    std::copy_n(start + row * step.ld, whole, block + row * panel);
                multiply_block<transposed, block_vectors, float>(block, panel, block, panel, strip, strips.ld,
                                                                 columns, panel, step.count);
                for (int64_t row = 0; row < rows; row++)
                    std::copy_n(block + row * panel, whole, out + row * p.ldc);
            }
            for (int64_t row = i; step.last && row < i + rows; row++) finish(c + row * p.ldc, n);
        }
    }

    // block_rows rows of `columns` floats that will be read next, fetched line by line.
    struct LinesAhead {
        const float* row = nullptr;
        int64_t ld = 0, columns = 0, rows = row ? block_rows : 0, at = 0;
        void fetch(int64_t lines) {
            for (; lines > 0 && rows > 0; lines--) {
                __builtin_prefetch(row + at);
                if ((at += line) >= columns) at = 0, row += ld, rows--;
            }
        }
    };
};

// scratch: one for each thread. finish(begin, count): called by any thread once for every run of elements of C, when
// they are done: for the rows of a strip of block_rows, then for those of the next strip. Which thread makes an element
// changes nothing about how it is summed.
template <class Finish>
inline void gemm_packed(const GemmProblem& p, const float* a, const float* b, const float* bias, float* c,
                        PackedProduct::Scratch* scratch, int threads, Finish finish) {
    constexpr int64_t panel = PackedProduct::panel;
    auto pieces = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
    const int64_t strips = pieces(p.m, block_rows), panels = pieces(p.n, panel);
    // Of a matrix that several threads share, each copies its columns of B and reads its rows of A: the fewer together,
    // the better.
    const int64_t parts = p.batch % threads ? threads : 1;
    int64_t row_parts = parts;
    for (int64_t n = 1; n < parts; n++)
        if (parts % n == 0 && p.m / n + p.n * n / parts < p.m / row_parts + p.n * row_parts / parts) row_parts = n;
    const int64_t column_parts = parts / row_parts;
#pragma omp parallel for collapse(3) schedule(static) num_threads(threads) if (p.flops() > 100000)
    for (int64_t matrix = 0; matrix < p.batch; matrix++)
        for (int64_t column_part = 0; column_part < column_parts; column_part++)
            for (int64_t row_part = 0; row_part < row_parts; row_part++) {
                const auto [first_strip, end_strip] = part_of(strips, row_part, row_parts);
                const auto [first_panel, end_panel] = part_of(panels, column_part, column_parts);
                const int64_t i = first_strip * block_rows, m = std::min(end_strip * block_rows, p.m) - i;
                const int64_t j = first_panel * panel, n = std::min(end_panel * panel, p.n) - j;
                if (m <= 0 || n <= 0) continue;  // more threads than work
                const PackedProduct product{p, scratch[omp_get_thread_num()]};
                product.multiply(c + matrix * p.stride_c + i * p.ldc + j,
                                 a + matrix * p.stride_a + (p.transpose_a ? i : i * p.lda),
                                 b + matrix * p.stride_b + (p.transpose_b ? j * p.ldb : j), bias ? bias + j : nullptr,
                                 m, n, finish);
            }
}

}  // namespace llmc
