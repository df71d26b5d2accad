// The output layer with its loss. For each chunk of rows: logits = x W^T, softmax and cross-entropy while they are in
// cache, their gradient in the same memory, and from it the chunk's dx = dlogits W and dW += dlogits^T x.
#include <limits>

#include "llmc/ops/checks/head.h"
#include "llmc/ops/cpu/cpu.h"
#include "llmc/ops/cpu/gemm.h"
#include "llmc/ops/cpu/math.h"

namespace llmc {

namespace {

// Rows of a chunk of logits. Every chunk reads and writes all of dweight, so they must not be few; nor must the logits
// leave the caches. Measured in GFLOP/s of forward and backward together, f32, with V = 50257, C = 512 on two cores:
// 128 rows 211, 256: 230, 512: 245, 768: 229, 1024: 225, 2048: 216; with V = 4096, C = 128 on one core of another
// machine: 128 rows 234, 256: 238, 512: 240, 1024: 228, 4096: 213.
constexpr int64_t chunk_rows = 512;

// Turns one row of logits into exp(logit - max) and returns max and the sum. A NaN or +inf logit makes the sum NaN.
// The row that lies `next` elements further on is asked for: a maximum alone does not hide that rows come from afar.
template <class A>
std::pair<A, double> exponentiate(A* logits, int64_t n, int64_t next) {
    A most = -std::numeric_limits<A>::infinity();
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < n; j++) most = logits[j] > most ? logits[j] : most;
    double total = 0;
    for (int64_t first = 0; first < n; first += 1024) {  // in blocks: a long float sum loses digits
        const int64_t end = std::min(n, first + 1024);
        fetch_ahead(logits + next + first, end - first);
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = first; j < end; j++) {
            A e = exp_up_to_89(logits[j] - most);
            logits[j] = e;
            sum += e;
        }
        total += double(sum);
    }
    return {most, total};
}

// The loss of one row, `next` as above; with `gradient` also d(loss) dloss / d(logits) (for f32 and f64 in the same
// memory).
template <class T, class A>
A row_loss(A* logits, T* gradient, int64_t n, int64_t next, int32_t target, double dloss) {
    if (target < 0 || target >= n) {  // -1: not counted. Anything else is no token: a NaN loss shows it.
        if (gradient) std::fill(gradient, gradient + n, T(A(0)));
        return target == -1 ? A(0) : std::numeric_limits<A>::quiet_NaN();
    }
    const double wanted = double(logits[target]);
    const auto [most, sum] = exponentiate(logits, n, next);
    if (gradient) {
        const A scale = A(dloss / sum), at_target = logits[target] * scale - A(dloss);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) put(gradient[j], logits[j] * scale);
        gradient[target] = T(at_target);
    }
    return A(std::log(sum) + double(most) - wanted);
}

template <class T>
struct HeadChunks {
    using A = arithmetic_t<T>;
    HeadShape s;
    Tensor losses, dx, dweight, x, weight, targets;
    double dloss;
    Context& ctx;
    A* logits;  // [chunk, ld]
    T* dlogits; // the same memory; for bf16 a smaller copy behind it

    GemmProblem product(int64_t m, int64_t n, int64_t k) const {
        return {.batch = 1, .m = m, .n = n, .k = k, .in = dtype_of<T>::value, .out = dtype_of<A>::value,
                .transpose_a = false, .transpose_b = false, .lda = s.ld(), .ldb = s.model, .ldc = s.model,
                .stride_a = 0, .stride_b = 0, .stride_c = 0, .accumulate = false, .bias = false};
    }

    void run(int64_t first, int64_t count, bool accumulate) {
        const T* rows = ptr<T>(x) + first * s.model;
        GemmProblem forward = product(count, s.vocabulary, s.model);
        forward.lda = s.model, forward.ldc = s.ld(), forward.transpose_b = true;
        gemm_any(forward, rows, weight.data, nullptr, logits, ctx);

        const bool gradients = dx || dweight;
#pragma omp parallel for schedule(static) num_threads(ctx.threads) if (count * s.vocabulary > 4096)
        for (int64_t i = 0; i < count; i++)
            ptr<A>(losses)[first + i] = row_loss(logits + i * s.ld(), gradients ? dlogits + i * s.ld() : nullptr,
                                                 s.vocabulary, s.ld(), ptr<int32_t>(targets)[first + i], dloss);
        if (dx) {
            GemmProblem backward = product(count, s.model, s.vocabulary);
            backward.out = dtype_of<T>::value;
            gemm_any(backward, dlogits, weight.data, nullptr, ptr<T>(dx) + first * s.model, ctx);
        }
        if (dweight) {
            GemmProblem backward = product(s.vocabulary, s.model, count);
            backward.transpose_a = true, backward.accumulate = accumulate;
            gemm_any(backward, dlogits, rows, nullptr, dweight.data, ctx);
        }
    }
};

}  // namespace

void head_loss(Tensor losses, Tensor dx, Tensor dweight, Tensor x, Tensor weight, Tensor targets, double dloss,
               bool accumulate, Context& ctx) {
    const HeadShape s = check_head(losses, dx, dweight, x, weight, targets);
    const int64_t products = 1 + (dx ? 1 : 0) + (dweight ? 1 : 0);
    const int64_t chunk = std::min(s.rows, chunk_rows), logits = chunk * s.ld();
    const bool copy = x.dtype == DType::bf16 && (dx || dweight);
    Op op(ctx, "head_loss", s.flops(products),
          logits * (size_of(arithmetic_dtype(x.dtype)) + (copy ? size_of(x.dtype) : 0)),
          total_bytes({losses, dx, dweight, x, weight, targets}));
    if (!op.run) return;
    dispatch(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        auto* memory = static_cast<arithmetic_t<T>*>(op.workspace);
        HeadChunks<T> chunks{s, losses, dx, dweight, x, weight, targets, dloss, ctx, memory,
                             reinterpret_cast<T*>(copy ? memory + logits : memory)};
        // With no rows at all one empty chunk still gives dweight its zeros.
        int64_t first = 0;
        do {
            const int64_t count = std::min(chunk, s.rows - first);
            chunks.run(first, count, accumulate || first > 0);
            first += count;
        } while (first < s.rows);
    });
}

}  // namespace llmc
