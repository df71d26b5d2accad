// Moving rows between tokens and sparse experts on the CPU. All three are bound by memory: every row is
// read and written once, by one thread.
#include "llmc/ops/checks/moe.h"
#include "llmc/ops/cpu/tile.h"

namespace llmc {

namespace {

constexpr int64_t panel = 512;  // columns that are summed at a time, in the first-level cache

// Calls f(e, row) for the experts that a token has a row at, ascending. Most have none: whole blocks are skipped.
template <class F>
void for_rows(const int32_t* where, int64_t experts, F&& f) {
    constexpr int64_t block = 16;
    int64_t begin = 0;
    auto each_until = [&](int64_t end) {
        for (int64_t e = begin; e < end; e++)
            if (where[e] >= 0) f(e, int64_t(where[e]));
    };
    for (; begin + block <= experts; begin += block) {
        int32_t largest = -1;
        for (int64_t i = 0; i < block; i++) largest = std::max(largest, where[begin + i]);
        if (largest >= 0) each_until(begin + block);
    }
    each_until(experts);
}

template <class A>
struct WeightedRow {
    int64_t row;  // of y
    A weight;
};

// out (+)= sum of weight * y[row]
template <class T, class A>
void sum_rows(T* out, const T* y, const WeightedRow<A>* rows, int64_t count, int64_t columns, bool accumulate) {
    for (int64_t begin = 0; begin < columns; begin += panel) {
        const int64_t width = std::min(panel, columns - begin);
        T* to = out + begin;
        A sum[panel];
        if (accumulate)
#pragma omp simd
            for (int64_t c = 0; c < width; c++) sum[c] = A(to[c]);
        else
            std::fill_n(sum, width, A(0));
        for (int64_t i = 0; i < count; i++) {
            const T* from = y + rows[i].row * columns + begin;
            const A weight = rows[i].weight;
#pragma omp simd
            for (int64_t c = 0; c < width; c++) sum[c] += weight * A(from[c]);
        }
#pragma omp simd
        for (int64_t c = 0; c < width; c++) put(to[c], sum[c]);
    }
}

template <class T>
arithmetic_t<T> dot(const T* a, const T* b, int64_t columns) {
    using A = arithmetic_t<T>;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < columns; c++) sum += A(a[c]) * A(b[c]);
    return sum;
}

}  // namespace

void moe_gather(Tensor gathered, Tensor x, Tensor slots, int64_t experts, Tensor weights, Context& ctx) {
    const MoeShape s = check_gather(gathered, x, slots, experts, weights);
    dispatch(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
        Op op(ctx, "moe_gather", gather_flops(s, bool(weights)), 0, total_bytes({gathered, x, slots, weights}));
        if (!op.run) return;
        const int32_t* slot = ptr<int32_t>(slots);
        const A* w = ptr<A>(weights);
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t row = 0; row < s.rows; row++) {
            const int64_t pair = slot[row];
            T* to = ptr<T>(gathered) + row * s.columns;
            if (pair < 0) {
                std::fill_n(to, s.columns, T(0));
                continue;
            }
            const T* from = ptr<T>(x) + pair / s.experts * s.columns;
            if (w)
                scale_row(to, from, w[pair], s.columns);
            else
                std::copy_n(from, s.columns, to);
        }
    });
}

void moe_scatter(Tensor out, Tensor y, Tensor where, Tensor weights, bool accumulate, Context& ctx) {
    const MoeShape s = check_scatter(out, y, where, weights);
    dispatch(out.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
        Op op(ctx, "moe_scatter", scatter_flops(s, bool(weights)),
              s.experts * ctx.threads * int64_t(sizeof(WeightedRow<A>)),
              total_bytes({out, y, where, weights, accumulate ? out : Tensor()}));
        if (!op.run) return;
        const A* w = ptr<A>(weights);
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t n = 0; n < s.tokens(); n++) {
            auto* rows = static_cast<WeightedRow<A>*>(op.workspace) + omp_get_thread_num() * s.experts;
            const int64_t at = n * s.experts;
            int64_t count = 0;
            for_rows(ptr<int32_t>(where) + at, s.experts, [&](int64_t e, int64_t row) {
                rows[count++] = {row, w ? w[at + e] : A(1)};
            });
            sum_rows(ptr<T>(out) + n * s.columns, ptr<T>(y), rows, count, s.columns, accumulate);
        }
    });
}

void moe_weights_backward(Tensor dweights, Tensor dout, Tensor y, Tensor where, bool accumulate, Context& ctx) {
    const MoeShape s = check_moe_weights_backward(dweights, dout, y, where);
    dispatch(dout.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
        Op op(ctx, "moe_weights_backward", moe_weights_flops(s), 0,
              total_bytes({dweights, dout, y, where, accumulate ? dweights : Tensor()}));
        if (!op.run) return;
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t n = 0; n < s.tokens(); n++) {
            const T *gradient = ptr<T>(dout) + n * s.columns, *rows = ptr<T>(y);
            A* to = ptr<A>(dweights) + n * s.experts;
            if (!accumulate) std::fill_n(to, s.experts, A(0));
            for_rows(ptr<int32_t>(where) + n * s.experts, s.experts,
                     [&](int64_t e, int64_t row) { to[e] += dot(gradient, rows + row * s.columns, s.columns); });
        }
    });
}

}  // namespace llmc
