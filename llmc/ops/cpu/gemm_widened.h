// bf16 products by a library that knows only float32: through float32 copies.
#pragma once
#include "llmc/ops/cpu/cpu.h"
#include "llmc/ops/cpu/gemm.h"

namespace llmc {

// Copies a stack of matrices between bf16 and f32, row by row. (rows, columns) as stored.
template <class To, class From>
void convert_rows(To* to, int64_t to_ld, int64_t to_stride, const From* from, int64_t from_ld, int64_t from_stride,
                  int64_t batch, int64_t rows, int64_t columns, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < batch * rows; r++) {
        To* out = to + r / rows * to_stride + r % rows * to_ld;
        const From* in = from + r / rows * from_stride + r % rows * from_ld;
#pragma omp simd
        for (int64_t j = 0; j < columns; j++) put(out[j], float(in[j]));
    }
}

// The copies that a problem needs.
inline int64_t widened_floats(const GemmProblem& p) {
    const int64_t c = p.out == DType::bf16 ? p.m * p.n : 0;
    return p.batch * (p.m * p.k + p.k * p.n + c) + (p.bias ? p.n : 0);
}

// c (+)= op(a) op(b) + bias by product(problem, a, b, bias, c), all of them f32. buffer: widened_floats(p) of scratch.
template <class Product>
void multiply_widened(const GemmProblem& p, const bf16* a, const bf16* b, const bf16* bias, void* c, float* buffer,
                      int threads, Product&& product) {
    const int64_t a_rows = p.transpose_a ? p.k : p.m, a_columns = p.transpose_a ? p.m : p.k;
    const int64_t b_rows = p.transpose_b ? p.n : p.k, b_columns = p.transpose_b ? p.k : p.n;
    float *fa = buffer, *fb = fa + p.batch * p.m * p.k, *fbias = fb + p.batch * p.k * p.n;
    float* fc = fbias + (p.bias ? p.n : 0);
    if (!p.bias) fbias = nullptr;

    convert_rows(fa, a_columns, p.m * p.k, a, p.lda, p.stride_a, p.batch, a_rows, a_columns, threads);
    convert_rows(fb, b_columns, p.k * p.n, b, p.ldb, p.stride_b, p.batch, b_rows, b_columns, threads);
    if (p.bias) convert_rows(fbias, p.n, 0, bias, p.n, 0, 1, 1, p.n, threads);
    GemmProblem wide = p;
    wide.in = wide.out = DType::f32;
    wide.lda = a_columns, wide.ldb = b_columns, wide.stride_a = p.m * p.k, wide.stride_b = p.k * p.n;
    if (p.out == DType::f32) return product(wide, fa, fb, fbias, static_cast<float*>(c));

    wide.ldc = p.n, wide.stride_c = p.m * p.n;
    bf16* out = static_cast<bf16*>(c);
    if (p.accumulate) convert_rows(fc, p.n, p.m * p.n, out, p.ldc, p.stride_c, p.batch, p.m, p.n, threads);
    product(wide, fa, fb, fbias, fc);
    convert_rows(out, p.ldc, p.stride_c, fc, p.n, p.m * p.n, p.batch, p.m, p.n, threads);
}

}  // namespace llmc
