// What the router of sparse experts is worth and costs, on the CPU: gates that sum to one, load balancing, z-loss.
#include "llmc/ops/checks/moe.h"
#include "llmc/ops/cpu/cpu.h"
#include "llmc/ops/cpu/math.h"

namespace llmc {

namespace {

// Sums over tokens are made of this many sums over chunks: the same for any number of threads.
constexpr int64_t token_chunks = 64;

// Sum of f(n) over the tokens.
template <class F>
double sum_over_tokens(int64_t tokens, int threads, F&& f) {
    double partial[token_chunks];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t chunk = 0; chunk < token_chunks; chunk++) {
        double sum = 0;
        auto [begin, end] = part_of(tokens, chunk, token_chunks);
        for (int64_t n = begin; n < end; n++) sum += f(n);
        partial[chunk] = sum;
    }
    double sum = 0;
    for (double p : partial) sum += p;
    return sum;
}

// Of one token, over the chosen experts.
template <class A>
A sum_of_chosen(const A* probs, const int32_t* where, int64_t experts) {
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t e = 0; e < experts; e++) sum += where[e] != -1 ? probs[e] : A(0);
    return sum;
}

template <class A>
void renormalize_row(A* gates, const A* probs, const int32_t* where, int64_t experts) {
    const A sum = sum_of_chosen(probs, where, experts);
#pragma omp simd
    for (int64_t e = 0; e < experts; e++) gates[e] = where[e] != -1 ? probs[e] / sum : A(0);
}

template <class A>
void renormalize_backward_row(A* dprobs, const A* dgates, const A* gates, const A* probs, const int32_t* where,
                              int64_t experts) {
    const A sum = sum_of_chosen(probs, where, experts);
    A mean = 0;  // of dgates under the gates
#pragma omp simd reduction(+ : mean)
    for (int64_t e = 0; e < experts; e++) mean += where[e] != -1 ? gates[e] * dgates[e] : A(0);
#pragma omp simd
    for (int64_t e = 0; e < experts; e++) dprobs[e] = where[e] != -1 ? (dgates[e] - mean) / sum : A(0);
}

// A NaN slips through the maximum, but not through the sum.
template <class A>
A log_sum_exp(const A* logits, int64_t experts) {
    A top = logits[0], sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t e = 0; e < experts; e++) top = logits[e] > top ? logits[e] : top;
#pragma omp simd reduction(+ : sum)
    for (int64_t e = 0; e < experts; e++) sum += exp_up_to_89(logits[e] - top);
    return top + std::log(sum);
}

}  // namespace

void moe_renormalize(Tensor gates, Tensor probs, Tensor where, Context& ctx) {
    const MoeShape s = check_renormalize(gates, probs, where);
    dispatch_arithmetic(probs, "probs", [&](auto zero) {
        using A = decltype(zero);
        Op op(ctx, "moe_renormalize", renormalize_flops(s), 0, total_bytes({gates, probs, where}));
        if (!op.run) return;
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t n = 0; n < s.tokens(); n++) {
            const int64_t at = n * s.experts;
            renormalize_row(ptr<A>(gates) + at, ptr<A>(probs) + at, ptr<int32_t>(where) + at, s.experts);
        }
    });
}

void moe_renormalize_backward(Tensor dprobs, Tensor dgates, Tensor gates, Tensor probs, Tensor where, Context& ctx) {
    const MoeShape s = check_renormalize_backward(dprobs, dgates, gates, probs, where);
    dispatch_arithmetic(probs, "probs", [&](auto zero) {
        using A = decltype(zero);
        Op op(ctx, "moe_renormalize_backward", renormalize_backward_flops(s), 0,
              total_bytes({dprobs, dgates, gates, probs, where}));
        if (!op.run) return;
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t n = 0; n < s.tokens(); n++) {
            const int64_t at = n * s.experts;
            renormalize_backward_row(ptr<A>(dprobs) + at, ptr<A>(dgates) + at, ptr<A>(gates) + at, ptr<A>(probs) + at,
                                     ptr<int32_t>(where) + at, s.experts);
        }
    });
}

void moe_balance(Tensor stats, Tensor probs, Tensor counts, Tensor slots, Context& ctx) {
    const MoeShape s = check_balance(stats, probs, counts, slots);
    dispatch_arithmetic(probs, "probs", [&](auto zero) {
        using A = decltype(zero);
        Op op(ctx, "moe_balance", balance_flops(s), 0, total_bytes({stats, probs, counts, slots}));
        if (!op.run) return;
        const A* p = ptr<A>(probs);
        const int32_t *count = ptr<int32_t>(counts), *slot = ptr<int32_t>(slots);
        const double sum = sum_over_tokens(s.tokens(), ctx.threads, [&](int64_t n) {
            const A* row = p + n * s.experts;
            double weighted = 0;
#pragma omp simd reduction(+ : weighted)
            for (int64_t e = 0; e < s.experts; e++) weighted += double(count[e]) * double(row[e]);
            return weighted;
        });
        int64_t kept = 0, total = 0;
#pragma omp parallel for schedule(static) num_threads(ctx.threads) reduction(+ : kept)
        for (int64_t i = 0; i < s.rows; i++) kept += slot[i] >= 0;
        for (int64_t e = 0; e < s.experts; e++) total += count[e];
        const auto [smallest, largest] = std::minmax_element(count, count + s.experts);
        const double tokens = double(s.tokens()), experts = double(s.experts), pairs = double(total);
        double* out = ptr<double>(stats);
        out[0] = tokens > 0 ? experts * sum / (tokens * tokens) : 0;
        out[1] = total > 0 ? double(total - kept) / pairs : 0;
        out[2] = total > 0 ? double(*smallest) * experts / pairs : 0;
        out[3] = total > 0 ? double(*largest) * experts / pairs : 0;
    });
}

void moe_balance_backward(Tensor dprobs, Tensor counts, double scale, Context& ctx) {
    const MoeShape s = check_balance_backward(dprobs, counts);
    dispatch_arithmetic(dprobs, "dprobs", [&](auto zero) {
        using A = decltype(zero);
        Op op(ctx, "moe_balance_backward", balance_flops(s), s.experts * int64_t(sizeof(A)),
              total_bytes({dprobs, dprobs, counts}));
        if (!op.run || s.tokens() == 0) return;
        const double tokens = double(s.tokens()), factor = scale * double(s.experts) / (tokens * tokens);
        A *gradient = static_cast<A*>(op.workspace), *dp = ptr<A>(dprobs);
        for (int64_t e = 0; e < s.experts; e++) gradient[e] = A(factor * double(ptr<int32_t>(counts)[e]));
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t n = 0; n < s.tokens(); n++) {
            A* row = dp + n * s.experts;
#pragma omp simd
            for (int64_t e = 0; e < s.experts; e++) row[e] += gradient[e];
        }
    });
}

void moe_z_loss(Tensor loss, Tensor lse, Tensor logits, Context& ctx) {
    const MoeShape s = check_z_loss(loss, lse, logits);
    dispatch_arithmetic(logits, "logits", [&](auto zero) {
        using A = decltype(zero);
        Op op(ctx, "moe_z_loss", z_loss_flops(s), 0, total_bytes({loss, lse, logits}));
        if (!op.run) return;
        A* out = ptr<A>(lse);
        const double sum = sum_over_tokens(s.tokens(), ctx.threads, [&](int64_t n) {
            out[n] = log_sum_exp(ptr<A>(logits) + n * s.experts, s.experts);
            return double(out[n]) * double(out[n]);
        });
        if (loss) *ptr<double>(loss) = s.tokens() > 0 ? sum / double(s.tokens()) : 0;
    });
}

void moe_z_loss_backward(Tensor dlogits, Tensor lse, Tensor probs, double scale, Context& ctx) {
    const MoeShape s = check_z_loss_backward(dlogits, lse, probs);
    dispatch_arithmetic(probs, "probs", [&](auto zero) {
        using A = decltype(zero);
        Op op(ctx, "moe_z_loss_backward", z_loss_backward_flops(s), 0, total_bytes({dlogits, dlogits, lse, probs}));
        if (!op.run) return;
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t n = 0; n < s.tokens(); n++) {
            const A factor = A(scale * 2 / double(s.tokens())) * ptr<A>(lse)[n];
            const A* p = ptr<A>(probs) + n * s.experts;
            A* to = ptr<A>(dlogits) + n * s.experts;
#pragma omp simd
            for (int64_t e = 0; e < s.experts; e++) to[e] += factor * p[e];
        }
    });
}

}  // namespace llmc
