// Weights between two tensors by a learnable scalar, on the CPU.
#include "llmc/ops/checks/mot_variants.h"
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

void interpolate(Tensor out, Tensor a, Tensor b, Tensor w, Context& ctx) {
    check_interpolate(a, b, w);
    check(out, a.dtype, a.shape, "out");
    Op op(ctx, "interpolate", 3 * a.numel(), 0, total_bytes({out, a, b, w}));
    if (!op.run) return;
    dispatch(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
        const A share = A(*ptr<T>(w)), rest = 1 - share;
        const T *x = ptr<T>(a), *y = ptr<T>(b);
        T* to = ptr<T>(out);
#pragma omp parallel for simd schedule(static) num_threads(ctx.threads)
        for (int64_t i = 0; i < a.numel(); i++) put(to[i], share * A(x[i]) + rest * A(y[i]));
    });
}

namespace {

constexpr int64_t chunk_size = 4096;  // elements per partial sum: fixed, whatever the number of threads

template <class A>
void scale(A* out, const A* in, A factor, int64_t n, bool accumulate) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = (accumulate ? out[i] : A(0)) + factor * in[i];
}

// <dout, a - b>
template <class T, class A>
A product(const A* dout, const T* a, const T* b, int64_t n) {
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += dout[i] * (A(a[i]) - A(b[i]));
    return sum;
}

}  // namespace

void interpolate_backward(Tensor da, Tensor db, Tensor dw, Tensor dout, Tensor a, Tensor b, Tensor w,
                          InterpolateAccumulate accumulate, Context& ctx) {
    check_interpolate_backward(da, db, dw, dout, a, b, w);
    const int64_t n = a.numel(), chunks = (n + chunk_size - 1) / chunk_size;
    Op op(ctx, "interpolate_backward", 5 * n, chunks * size_of(dw.dtype), total_bytes({da, db, dw, dout, a, b, w}));
    if (!op.run) return;
    dispatch(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
        const A share = A(*ptr<T>(w));
        A* partial = static_cast<A*>(op.workspace);
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t at = chunk * chunk_size, count = std::min(chunk_size, n - at);
            const A* d = ptr<A>(dout) + at;
            partial[chunk] = product(d, ptr<T>(a) + at, ptr<T>(b) + at, count);
            scale(ptr<A>(da) + at, d, share, count, accumulate.a);
            scale(ptr<A>(db) + at, d, 1 - share, count, accumulate.b);
        }
        A sum = 0;
        for (int64_t chunk = 0; chunk < chunks; chunk++) sum += partial[chunk];
        *ptr<A>(dw) = (accumulate.w ? *ptr<A>(dw) : A(0)) + sum;
    });
}

}  // namespace llmc
