// LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019) on the CPU, the residual addition in front of them,
// and add. A row fits the first-level cache, so its passes cost one trip to memory.
#include "llmc/ops/checks/norm.h"
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

namespace {

// Statistics of one row, in two passes: subtracting the mean first keeps a small variance exact.
template <class T, class A>
void row_statistics(A& mean, A& rstd, const T* x, int64_t columns, Norm kind, A eps) {
    A sum = 0, square = 0;
    if (kind == Norm::layernorm) {
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < columns; c++) sum += A(x[c]);
    }
    A m = sum / A(columns);
#pragma omp simd reduction(+ : square)
    for (int64_t c = 0; c < columns; c++) square += (A(x[c]) - m) * (A(x[c]) - m);
    mean = m;
    rstd = 1 / std::sqrt(square / A(columns) + eps);
}

template <class T, class A>
void normalize_row(T* out, const T* x, A mean, A rstd, const T* weight, const T* bias, int64_t columns) {
    if (bias) {
#pragma omp simd
        for (int64_t c = 0; c < columns; c++) out[c] = T((A(x[c]) - mean) * rstd * A(weight[c]) + A(bias[c]));
    } else {
#pragma omp simd
        for (int64_t c = 0; c < columns; c++) out[c] = T((A(x[c]) - mean) * rstd * A(weight[c]));
    }
}

template <class T>
void add_row(T* out, const T* a, const T* b, int64_t columns) {
    using A = arithmetic_t<T>;
#pragma omp simd
    for (int64_t c = 0; c < columns; c++) out[c] = T(A(a[c]) + A(b[c]));
}

// Both forward ops; with a branch, the row that is normalized is the stored (rounded) sum, as backward will see it.
void forward(const char* name, Tensor sum, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor branch, Tensor weight,
             Tensor bias, Norm kind, double eps, Context& ctx) {
    const NormShape shape = check_norm_forward(sum, out, mean, rstd, x, branch, weight, bias, kind);
    const int64_t rows = shape.rows, columns = shape.columns;
    Op op(ctx, name, norm_forward_flops(x, branch), 0,
          total_bytes({x, branch, sum, out, mean, rstd, weight, bias}));
    if (!op.run) return;
    dispatch(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t n = 0; n < rows; n++) {
            const T* row = ptr<T>(x) + n * columns;
            if (branch) {
                T* added = ptr<T>(sum) + n * columns;
                add_row(added, row, ptr<T>(branch) + n * columns, columns);
                row = added;
            }
            A m, r;
            row_statistics(m, r, row, columns, kind, A(eps));
            normalize_row(ptr<T>(out) + n * columns, row, m, r, ptr<T>(weight), ptr<T>(bias), columns);
            if (kind == Norm::layernorm) ptr<A>(mean)[n] = m;
            ptr<A>(rstd)[n] = r;
        }
    });
}

}  // namespace

void norm_forward(Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor weight, Tensor bias, Norm kind, double eps,
                  Context& ctx) {
    forward("norm_forward", {}, out, mean, rstd, x, {}, weight, bias, kind, eps, ctx);
}

void residual_norm_forward(Tensor sum, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor branch, Tensor weight,
                           Tensor bias, Norm kind, double eps, Context& ctx) {
    check_residual(branch);
    forward("residual_norm_forward", sum, out, mean, rstd, x, branch, weight, bias, kind, eps, ctx);
}

namespace {

constexpr int64_t most_chunks = 64;  // of rows, for the sums over rows: fixed, whatever the number of threads

// dx of one row, with n = (x - mean) rstd and d = dout weight:  dx = rstd (d - mean(d) - n mean(d n)); rmsnorm has no
// mean(d). The row's share of the weights' gradients, dout n and dout, is added to dweight and dbias.
template <class T, class A>
void backward_row(T* dx, A* dweight, A* dbias, const T* dout, const T* x, A mean, A rstd, const T* weight,
                  int64_t columns, Norm kind, bool accumulate) {
    A sum_d = 0, sum_dn = 0;
#pragma omp simd reduction(+ : sum_d, sum_dn)
    for (int64_t c = 0; c < columns; c++) {
        A n = (A(x[c]) - mean) * rstd, dy = A(dout[c]), d = dy * A(weight[c]);
        sum_d += d;
        sum_dn += d * n;
        dweight[c] += dy * n;
        dbias[c] += dy;
    }
    A mean_d = kind == Norm::layernorm ? sum_d / A(columns) : 0, mean_dn = sum_dn / A(columns);
    auto gradient = [&](int64_t c) {
        A n = (A(x[c]) - mean) * rstd;
        return rstd * (A(dout[c]) * A(weight[c]) - mean_d - n * mean_dn);
    };
    if (accumulate) {
#pragma omp simd
        for (int64_t c = 0; c < columns; c++) dx[c] = T(A(dx[c]) + gradient(c));
    } else {
#pragma omp simd
        for (int64_t c = 0; c < columns; c++) dx[c] = T(gradient(c));
    }
}

// out[c] (+)= sum over chunks of partial[chunk * stride + c].
template <class A>
void sum_chunks(A* out, const A* partial, int64_t chunks, int64_t stride, int64_t columns, bool accumulate) {
    if (!accumulate) std::fill_n(out, columns, A(0));
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const A* p = partial + chunk * stride;
#pragma omp simd
        for (int64_t c = 0; c < columns; c++) out[c] += p[c];
    }
}

}  // namespace

void norm_backward(Tensor dx, Tensor dweight, Tensor dbias, Tensor dout, Tensor x, Tensor mean, Tensor rstd,
                   Tensor weight, Norm kind, bool accumulate_dx, bool accumulate, Context& ctx) {
    const NormShape shape = check_norm_backward(dx, dweight, dbias, dout, x, mean, rstd, weight, kind);
    const int64_t rows = shape.rows, columns = shape.columns;
    int64_t chunks = std::min(rows, most_chunks), stride = 2 * round_up(columns, 16);  // dweight | dbias of one chunk
    Op op(ctx, "norm_backward", norm_backward_flops(x), chunks * stride * size_of(dweight.dtype),
          norm_backward_bytes(dx, dweight, dbias, dout, x, mean, rstd, weight, accumulate_dx));
    if (!op.run) return;
    dispatch(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
        A* partial = static_cast<A*>(op.workspace);
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            A *sum_weight = partial + chunk * stride, *sum_bias = sum_weight + stride / 2;
            std::fill_n(sum_weight, stride, A(0));
            auto [begin, end] = part_of(rows, chunk, chunks);
            for (int64_t n = begin; n < end; n++) {
                int64_t at = n * columns;
                A m = kind == Norm::layernorm ? ptr<A>(mean)[n] : A(0);
                backward_row(ptr<T>(dx) + at, sum_weight, sum_bias, ptr<T>(dout) + at, ptr<T>(x) + at, m,
                             ptr<A>(rstd)[n], ptr<T>(weight), columns, kind, accumulate_dx);
            }
        }
        sum_chunks(ptr<A>(dweight), partial, chunks, stride, columns, accumulate);
        if (dbias) sum_chunks(ptr<A>(dbias), partial + stride / 2, chunks, stride, columns, accumulate);
    });
}

void add(Tensor out, Tensor a, Tensor b, Context& ctx) {
    check_add(out, a, b);
    Op op(ctx, "add", a.numel(), 0, total_bytes({out, a, b}));
    if (!op.run) return;
    dispatch(a.dtype, [&](auto zero) {
        using T = decltype(zero);
#pragma omp parallel num_threads(ctx.threads)
        {
            auto [begin, end] = part_of(a.numel(), omp_get_thread_num(), omp_get_num_threads());
            add_row(ptr<T>(out) + begin, ptr<T>(a) + begin, ptr<T>(b) + begin, end - begin);
        }
    });
}

}  // namespace llmc
