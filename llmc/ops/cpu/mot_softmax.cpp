// Mixture of Tokens on the CPU: softmax over the tokens of a group or over experts, its gradient, its one-hot form, and
// its statistics (Antoniak et al. 2023).
//
// Softmax over a group runs along an axis whose elements lie far apart, so it works on strips of neighbouring columns.
// To it the tensor is n matrices [g, columns]: with groups over the batch, [B/g, g, T*E]; within a sequence, [B*T/g, g,
// E].
#include "llmc/ops/checks/mot.h"
#include "llmc/ops/cpu/cpu.h"
#include "llmc/ops/cpu/math.h"

namespace llmc {

namespace {

constexpr int64_t strip_width = 128;

// Some neighbouring columns of one [g, columns] matrix: element (i, c) is at first + i * stride + c, c < width.
struct Strip {
    int64_t first, stride, width;
};

// f(strip) for all strips, in parallel.
template <class F>
void for_strips(const MotShape& s, int threads, F&& f) {
    int64_t columns = s.within_sequence ? s.experts : s.positions * s.experts;
    int64_t matrices = s.within_sequence ? s.groups : s.sequences / s.size;
    int64_t strips = (columns + strip_width - 1) / strip_width;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < matrices * strips; k++) {
        int64_t matrix = k / strips, begin = k % strips * strip_width;
        f(Strip{matrix * s.size * columns + begin, columns, std::min(strip_width, columns - begin)});
    }
}

template <class A>
void softmax_strip(A* weights, const A* logits, int64_t g, const Strip& strip, A scale) {
    A top[strip_width], sum[strip_width];
    int64_t width = strip.width;
    std::copy_n(logits, width, top);
    std::fill_n(sum, width, A(0));
    for (int64_t i = 1; i < g; i++) {
        const A* l = logits + i * strip.stride;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) top[c] = l[c] > top[c] ? l[c] : top[c];
    }
    for (int64_t i = 0; i < g; i++) {
        const A* l = logits + i * strip.stride;
        A* w = weights + i * strip.stride;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) sum[c] += w[c] = exp_up_to_89((l[c] - top[c]) * scale);
    }
#pragma omp simd
    for (int64_t c = 0; c < width; c++) sum[c] = 1 / sum[c];
    for (int64_t i = 0; i < g; i++) {
        A* w = weights + i * strip.stride;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) w[c] *= sum[c];
    }
}

template <class A>
void softmax_row(A* weights, const A* logits, int64_t n, A scale) {
    A top = logits[0], sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t e = 0; e < n; e++) top = logits[e] > top ? logits[e] : top;
#pragma omp simd reduction(+ : sum)
    for (int64_t e = 0; e < n; e++) sum += weights[e] = exp_up_to_89((logits[e] - top) * scale);
    A inverse = 1 / sum;
#pragma omp simd
    for (int64_t e = 0; e < n; e++) weights[e] *= inverse;
}

template <class A>
void softmax_backward_strip(A* dlogits, const A* dweights, const A* weights, int64_t g, const Strip& strip, A scale,
                            bool accumulate) {
    A mean[strip_width] = {};  // of dweights under weights
    int64_t width = strip.width;
    for (int64_t i = 0; i < g; i++) {
        const A *w = weights + i * strip.stride, *dw = dweights + i * strip.stride;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) mean[c] += w[c] * dw[c];
    }
    for (int64_t i = 0; i < g; i++) {
        const A *w = weights + i * strip.stride, *dw = dweights + i * strip.stride;
        A* dl = dlogits + i * strip.stride;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) dl[c] = (accumulate ? dl[c] : A(0)) + w[c] * (dw[c] - mean[c]) * scale;
    }
}

template <class A>
void softmax_backward_row(A* dlogits, const A* dweights, const A* weights, int64_t n, A scale, bool accumulate) {
    A mean = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t e = 0; e < n; e++) mean += weights[e] * dweights[e];
#pragma omp simd
    for (int64_t e = 0; e < n; e++)
        dlogits[e] = (accumulate ? dlogits[e] : A(0)) + weights[e] * (dweights[e] - mean) * scale;
}

template <class A>
void one_hot_strip(A* weights, int64_t g, const Strip& strip) {
    A top[strip_width];
    int64_t best[strip_width] = {};
    std::copy_n(weights, strip.width, top);
    for (int64_t i = 1; i < g; i++)
        for (int64_t c = 0; c < strip.width; c++)
            if (A w = weights[i * strip.stride + c]; w > top[c]) top[c] = w, best[c] = i;
    for (int64_t i = 0; i < g; i++)
        for (int64_t c = 0; c < strip.width; c++) weights[i * strip.stride + c] = A(best[c] == i);
}

template <class A>
void one_hot_row(A* weights, int64_t n) {
    int64_t best = std::max_element(weights, weights + n) - weights;  // the first of equals
    std::fill_n(weights, n, A(0));
    weights[best] = 1;
}

}  // namespace

void mot_softmax_forward(Tensor weights, Tensor logits, SoftmaxOver over, Group group, double temperature,
                         Context& ctx) {
    MotShape s = check_softmax_forward(weights, logits, group, temperature);
    dispatch_arithmetic(logits, "logits", [&](auto zero) {
        using A = decltype(zero);
        Op op(ctx, "mot_softmax_forward", 5 * logits.numel(), 0, total_bytes({weights, logits}));
        if (!op.run || logits.numel() == 0) return;
        A *w = ptr<A>(weights), *l = ptr<A>(logits), scale = A(1 / temperature);
        if (over == SoftmaxOver::group)
            return for_strips(s, ctx.threads, [&](const Strip& strip) {
                softmax_strip(w + strip.first, l + strip.first, s.size, strip, scale);
            });
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t n = 0; n < s.tokens(); n++) softmax_row(w + n * s.experts, l + n * s.experts, s.experts, scale);
    });
}

void mot_softmax_backward(Tensor dlogits, Tensor dweights, Tensor weights, SoftmaxOver over, Group group,
                          double temperature, bool accumulate, Context& ctx) {
    MotShape s = check_softmax_backward(dlogits, dweights, weights, group, temperature);
    dispatch_arithmetic(weights, "weights", [&](auto zero) {
        using A = decltype(zero);
        Op op(ctx, "mot_softmax_backward", 5 * weights.numel(), 0,
              total_bytes({dlogits, dweights, weights, accumulate ? dlogits : Tensor()}));
        if (!op.run || weights.numel() == 0) return;
        A *dl = ptr<A>(dlogits), *dw = ptr<A>(dweights), *w = ptr<A>(weights), scale = A(1 / temperature);
        if (over == SoftmaxOver::group)
            return for_strips(s, ctx.threads, [&](const Strip& strip) {
                int64_t at = strip.first;
                softmax_backward_strip(dl + at, dw + at, w + at, s.size, strip, scale, accumulate);
            });
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t n = 0; n < s.tokens(); n++) {
            int64_t at = n * s.experts;
            softmax_backward_row(dl + at, dw + at, w + at, s.experts, scale, accumulate);
        }
    });
}

void mot_discretize(Tensor weights, SoftmaxOver over, Group group, Context& ctx) {
    MotShape s = check_discretize(weights, group);
    dispatch_arithmetic(weights, "weights", [&](auto zero) {
        using A = decltype(zero);
        Op op(ctx, "mot_discretize", 0, 0, total_bytes({weights, weights}));
        if (!op.run || weights.numel() == 0) return;
        A* w = ptr<A>(weights);
        if (over == SoftmaxOver::group)
            return for_strips(s, ctx.threads,
                              [&](const Strip& strip) { one_hot_strip(w + strip.first, s.size, strip); });
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t n = 0; n < s.tokens(); n++) one_hot_row(w + n * s.experts, s.experts);
    });
}

namespace {

constexpr int64_t statistics_chunks = 64;

// Mean and standard deviation (dividing by n - 1; 0 for one value) of f(0) ... f(n-1). Fixed chunks: the same for any
// threads.
template <class F>
void mean_and_deviation(double* result, int64_t n, int threads, F&& f) {
    double sums[statistics_chunks], squares[statistics_chunks];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t chunk = 0; chunk < statistics_chunks; chunk++) {
        double sum = 0, square = 0;
        auto [begin, end] = part_of(n, chunk, statistics_chunks);
        for (int64_t i = begin; i < end; i++) {
            double x = f(i);
            sum += x, square += x * x;
        }
        sums[chunk] = sum, squares[chunk] = square;
    }
    double sum = 0, square = 0;
    for (int64_t chunk = 0; chunk < statistics_chunks; chunk++) sum += sums[chunk], square += squares[chunk];
    double mean = n > 0 ? sum / double(n) : 0;
    result[0] = mean;
    result[1] = n > 1 ? std::sqrt(std::max(square - sum * mean, 0.0) / double(n - 1)) : 0;  // in this order NaN stays
}

}  // namespace

void mot_statistics(Tensor stats, Tensor weights, Tensor logits, SoftmaxOver over, Group group, Context& ctx) {
    MotShape s = check_statistics(stats, weights, logits, group);
    dispatch_arithmetic(weights, "weights", [&](auto zero) {
        using A = decltype(zero);
        Op op(ctx, "mot_statistics", 0, 0, total_bytes({stats, weights, logits}));
        if (!op.run) return;
        const A *w = ptr<A>(weights), *l = ptr<A>(logits);
        auto [count, n, stride] = softmaxes(s, over);
        auto entropy = [&](int64_t i) {  // H = -sum w log(w + 1e-8), over log(length)
            if (n == 1) return 1.0;
            int64_t group_index = i / s.experts, expert = i % s.experts;
            const A* at =
                over == SoftmaxOver::experts ? w + i * n : w + s.first_token(group_index) * s.experts + expert;
            double h = 0;
            for (int64_t k = 0; k < n; k++) h -= double(at[k * stride]) * std::log(double(at[k * stride]) + 1e-8);
            return h / std::log(double(n));
        };
        mean_and_deviation(ptr<double>(stats), count, ctx.threads, entropy);
        mean_and_deviation(ptr<double>(stats) + 2, weights.numel(), ctx.threads,
                           [&](int64_t i) { return double(l[i]); });
    });
}

}  // namespace llmc
