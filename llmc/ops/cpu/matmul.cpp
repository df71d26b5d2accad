// matmul and bias_backward. Products are made by kernels of our own (gemm_packed.h, gemm_few_rows.h, gemm_loops.h) or
// by the GEMM library (gemm.h).
#include <vector>

#include "llmc/ops/checks/activation.h"
#include "llmc/ops/cpu/activation.h"
#include "llmc/ops/cpu/backend.h"
#include "llmc/ops/cpu/gemm_few_rows.h"
#include "llmc/ops/cpu/gemm_loops.h"
#include "llmc/ops/cpu/gemm_widened.h"

namespace llmc {

namespace {

// Where kernels of our own are faster than libraries, they make the product.
void gemm_f32(const GemmProblem& p, const float* a, const float* b, const float* bias, float* c, Context& ctx) {
    if (has_few_rows(p)) gemm_few_rows(p, a, b, bias, c, ctx.threads);
    else if (is_packed(p))
        gemm_packed(p, a, b, bias, c, ctx.backend->packed.get(), ctx.threads, [](float*, int64_t) {});
    else if (p.k > 0) gemm(ctx.backend->gemm, p, a, b, bias, c);
    else gemm_loops(p, a, b, bias, c, ctx.threads);
}

// bf16 without a bf16 library. The float32 copies live in the Backend and grow with the largest problem.
void gemm_through_f32(const GemmProblem& p, const bf16* a, const bf16* b, const bf16* bias, void* c, Context& ctx) {
    std::vector<float>& buffer = ctx.backend->widened;
    if (int64_t(buffer.size()) < widened_floats(p)) buffer.resize(size_t(widened_floats(p)));
    multiply_widened(p, a, b, bias, c, buffer.data(), ctx.threads,
                     [&](const GemmProblem& wide, const float* fa, const float* fb, const float* fbias, float* fc) {
                         gemm_f32(wide, fa, fb, fbias, fc, ctx);
                     });
}

}  // namespace

void gemm_any(const GemmProblem& p, const void* a, const void* b, const void* bias, void* c, Context& ctx) {
    if (p.batch == 0 || p.m == 0 || p.n == 0) return;
    if (ctx.products) (*ctx.products)[p]++;
    switch (p.in) {
        case DType::f64:
            return gemm_loops(p, static_cast<const double*>(a), static_cast<const double*>(b),
                              static_cast<const double*>(bias), static_cast<double*>(c), ctx.threads);
        case DType::f32:
            return gemm_f32(p, static_cast<const float*>(a), static_cast<const float*>(b),
                            static_cast<const float*>(bias), static_cast<float*>(c), ctx);
        case DType::bf16:
            if (p.k > 0 && gemm_has_bf16(ctx.backend->gemm)) return gemm(ctx.backend->gemm, p, a, b, bias, c);
            return gemm_through_f32(p, static_cast<const bf16*>(a), static_cast<const bf16*>(b),
                                    static_cast<const bf16*>(bias), c, ctx);
        case DType::i32: run_error("matrix products of dtype ", name_of(p.in), " do not exist");
    }
}

namespace {

// A product and an activation, or the gradient of one, in one pass: elements are activated by the thread that has just
// made them, while they are in its caches.
void activated_matmul(const GemmProblem& p, Tensor out, Tensor product, Tensor a, Tensor b, const MatmulOptions& o,
                      Context& ctx) {
    Op op(ctx, "matmul", p.flops() + epilogue_flops("matmul", o) * out.numel(), 0,
          matmul_bytes(out, a, b, o) + total_bytes({o.value}));
    if (!op.run || p.batch == 0) return;
    if (ctx.products) (*ctx.products)[p]++;
    gemm_packed(p, ptr<float>(a), ptr<float>(b), ptr<float>(o.bias), ptr<float>(product), ctx.backend->packed.get(),
                ctx.threads, Epilogue(out, product, o, p.ldc));
}

}  // namespace

// Where a library makes the product, activations are passes of their own. (oneDNN could apply a ReLU on the way, but
// its ReLU turns NaN into 0 and would hide a model that has diverged.)
void matmul(Tensor out, Tensor a, Tensor b, const MatmulOptions& options, Context& ctx) {
    const GemmProblem p = check_matmul(out, a, b, options);
    const bool forward = options.activation != Activation::none, backward = options.backward != Activation::none;
    const Tensor product = forward && options.pre ? options.pre : out;
    if ((forward || backward) && is_packed(p))
        return activated_matmul(p, out, product, a, b, options, ctx);
    {
        Op op(ctx, "matmul", p.flops(), 0, matmul_bytes(out, a, b, options));
        if (op.run) gemm_any(p, a.data, b.data, options.bias.data, product.data, ctx);
    }
    if (forward) activation_forward(out, product, options.activation, ctx);
    if (backward) activation_backward(out, options.value, out, options.pre, options.backward, ctx);
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
