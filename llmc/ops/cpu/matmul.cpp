// matmul and bias_backward; the multiplication itself is done by the GEMM library (gemm.h).
#include <vector>

#include "llmc/ops/cpu/backend.h"
#include "llmc/ops/cpu/gemm_loops.h"

namespace llmc {

namespace {

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

void gemm_f32(const GemmProblem& p, const float* a, const float* b, const float* bias, float* c, Context& ctx) {
    if (p.k > 0) gemm(ctx.backend->gemm, p, a, b, bias, c);
    else gemm_loops(p, a, b, bias, c, ctx.threads);
}

// bf16 without a bf16 library: through float32 copies, which live in the Backend and grow with the largest problem.
void gemm_through_f32(const GemmProblem& p, const bf16* a, const bf16* b, const bf16* bias, void* c, Context& ctx) {
    const int64_t a_rows = p.transpose_a ? p.k : p.m, a_columns = p.transpose_a ? p.m : p.k;
    const int64_t b_rows = p.transpose_b ? p.n : p.k, b_columns = p.transpose_b ? p.k : p.n;
    const int64_t a_size = p.batch * p.m * p.k, b_size = p.batch * p.k * p.n, bias_size = p.bias ? p.n : 0;
    const int64_t c_size = p.out == DType::bf16 ? p.batch * p.m * p.n : 0;
    std::vector<float>& buffer = ctx.backend->widened;
    if (int64_t(buffer.size()) < a_size + b_size + bias_size + c_size)
        buffer.resize(size_t(a_size + b_size + bias_size + c_size));
    float *fa = buffer.data(), *fb = fa + a_size, *fbias = fb + b_size, *fc = fbias + bias_size;

    convert_rows(fa, a_columns, p.m * p.k, a, p.lda, p.stride_a, p.batch, a_rows, a_columns, ctx.threads);
    convert_rows(fb, b_columns, p.k * p.n, b, p.ldb, p.stride_b, p.batch, b_rows, b_columns, ctx.threads);
    if (p.bias) convert_rows(fbias, p.n, 0, bias, p.n, 0, 1, 1, p.n, ctx.threads);
    GemmProblem wide = p;
    wide.in = wide.out = DType::f32;
    wide.lda = a_columns, wide.ldb = b_columns, wide.stride_a = p.m * p.k, wide.stride_b = p.k * p.n;
    if (p.out == DType::f32) return gemm_f32(wide, fa, fb, fbias, static_cast<float*>(c), ctx);

    wide.ldc = p.n, wide.stride_c = p.m * p.n;
    bf16* out = static_cast<bf16*>(c);
    if (p.accumulate) convert_rows(fc, p.n, p.m * p.n, out, p.ldc, p.stride_c, p.batch, p.m, p.n, ctx.threads);
    gemm_f32(wide, fa, fb, fbias, fc, ctx);
    convert_rows(out, p.ldc, p.stride_c, fc, p.n, p.m * p.n, p.batch, p.m, p.n, ctx.threads);
}

}  // namespace

void gemm_any(const GemmProblem& p, const void* a, const void* b, const void* bias, void* c, Context& ctx) {
    if (p.batch == 0 || p.m == 0 || p.n == 0) return;
    if (p.in == DType::f64)
        gemm_loops(p, static_cast<const double*>(a), static_cast<const double*>(b), static_cast<const double*>(bias),
                   static_cast<double*>(c), ctx.threads);
    else if (p.in == DType::f32)
        gemm_f32(p, static_cast<const float*>(a), static_cast<const float*>(b), static_cast<const float*>(bias),
                 static_cast<float*>(c), ctx);
    else if (p.k > 0 && gemm_has_bf16(ctx.backend->gemm))
        gemm(ctx.backend->gemm, p, a, b, bias, c);
    else
        gemm_through_f32(p, static_cast<const bf16*>(a), static_cast<const bf16*>(b), static_cast<const bf16*>(bias), c,
                         ctx);
}

// Activations are passes of their own. (oneDNN could apply a ReLU on the way, but its ReLU turns NaN into 0 and would
// hide a model that has diverged.)
void matmul(Tensor out, Tensor a, Tensor b, const MatmulOptions& options, Context& ctx) {
    const GemmProblem p = check_matmul(out, a, b, options);
    const bool forward = options.activation != Activation::none, backward = options.backward != Activation::none;
    const Tensor product = forward && options.pre ? options.pre : out;
    {
        Op op(ctx, "matmul", p.flops(), 0, matmul_bytes(out, a, b, options));
        if (op.run) gemm_any(p, a.data, b.data, options.bias.data, product.data, ctx);
    }
    if (forward) activation_forward(out, product, options.activation, ctx);
    if (backward) activation_backward(out, out, options.pre, options.backward, ctx);
}

namespace {

// How many chunks depends on the number of rows only: the sum is the same for any number of threads.
int64_t bias_chunks(int64_t rows) { return std::clamp<int64_t>(rows / 64, 1, 64); }

template <class T>
void column_sums(Tensor dbias, Tensor dout, bool accumulate, void* workspace, int threads) {
    using A = arithmetic_t<T>;
    const int64_t n = dout.columns(), rows = dout.rows(), chunks = bias_chunks(rows);
    A* partial = static_cast<A*>(workspace);  // [chunks, n]
    A* sum = ptr<A>(dbias);
#pragma omp parallel num_threads(threads) if (rows * n > 4096)
    {
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            A* mine = partial + chunk * n;
            std::fill(mine, mine + n, A(0));
            auto [begin, end] = part_of(rows, chunk, chunks);
            for (int64_t row = begin; row < end; row++) {
                const T* in = ptr<T>(dout) + row * n;
#pragma omp simd
                for (int64_t j = 0; j < n; j++) mine[j] += A(in[j]);
            }
        }
#pragma omp for schedule(static)
        for (int64_t j = 0; j < n; j++) {
            A total = accumulate ? sum[j] : A(0);
            for (int64_t chunk = 0; chunk < chunks; chunk++) total += partial[chunk * n + j];
            sum[j] = total;
        }
    }
}

}  // namespace

void bias_backward(Tensor dbias, Tensor dout, bool accumulate, Context& ctx) {
    check_bias_backward(dbias, dout);
    const int64_t n = dout.columns();
    Op op(ctx, "bias_backward", dout.numel(), bias_chunks(dout.rows()) * n * size_of(dbias.dtype),
          total_bytes({dbias, dout}));
    if (!op.run || n == 0) return;
    dispatch(dout.dtype, [&](auto zero) {
        column_sums<decltype(zero)>(dbias, dout, accumulate, op.workspace, ctx.threads);
    });
}

}  // namespace llmc
