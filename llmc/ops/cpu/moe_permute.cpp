// Moving rows between tokens and the slots of sparse experts on the CPU. All three are bound by memory: every row is
// read and written once, by one thread.
#include "llmc/ops/checks/moe.h"
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

namespace {

constexpr int64_t panel = 512;  // columns that are summed at a time, in the first-level cache

template <class A>
struct WeightedRow {
    int64_t row;  // of y, all experts' slots counted through
    A weight;
};

// The slots of one token, by ascending expert. Returns how many.
template <class A>
int64_t find_rows(WeightedRow<A>* rows, const int32_t* where, const A* weights, const MoeShape& s) {
    int64_t found = 0;
    for (int64_t e = 0; e < s.experts; e++)
        if (where[e] >= 0) rows[found++] = {e * s.slots + where[e], weights ? weights[e] : A(1)};
    return found;
}

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

template <class T, class A>
void scale_row(T* out, const T* x, A weight, int64_t columns) {
#pragma omp simd
    for (int64_t c = 0; c < columns; c++) put(out[c], weight * A(x[c]));
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

void moe_gather(Tensor gathered, Tensor x, Tensor slots, Tensor weights, Context& ctx) {
    const MoeShape s = check_gather(gathered, x, slots, weights);
    dispatch(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
        Op op(ctx, "moe_gather", gather_flops(s, bool(weights)), 0, total_bytes({gathered, x, slots, weights}));
        if (!op.run) return;
        const int32_t* slot = ptr<int32_t>(slots);
        const A* w = ptr<A>(weights);
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t i = 0; i < s.all_slots(); i++) {
            const int64_t n = slot[i], e = i / s.slots;
            T* to = ptr<T>(gathered) + i * s.columns;
            if (n < 0) {
                std::fill_n(to, s.columns, T(0));
                continue;
            }
            const T* from = ptr<T>(x) + n * s.columns;
            if (w)
                scale_row(to, from, w[n * s.experts + e], s.columns);
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
            const int64_t count = find_rows(rows, ptr<int32_t>(where) + at, w ? w + at : nullptr, s);
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
            const int32_t* slot = ptr<int32_t>(where) + n * s.experts;
            const T *gradient = ptr<T>(dout) + n * s.columns, *rows = ptr<T>(y);
            A* to = ptr<A>(dweights) + n * s.experts;
            for (int64_t e = 0; e < s.experts; e++) {
                const A old = accumulate ? to[e] : A(0);
                to[e] = slot[e] < 0 ? old : old + dot(gradient, rows + (e * s.slots + slot[e]) * s.columns, s.columns);
            }
        }
    });
}

}  // namespace llmc
