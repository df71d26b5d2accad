// Attention while generating: new positions attend to the cached keys and values of all earlier ones.
#include "llmc/ops/cpu/attention_tile.h"

namespace llmc {
namespace {

// From this many new positions on, a tile of queries is cheaper than one pass over the cache per query.
constexpr int64_t enough_for_tiles = 8;

// One query against positions 0 .. keys-1, straight from the cache: a softmax in two passes over it. scores [keys],
// sums [size].
template <class T, class F>
void attend_one(T* out, const T* q, HeadRows<const T> k, HeadRows<const T> v, int64_t keys, int64_t size, F* scores,
                F* sums) {
    const F scale = F(1 / std::sqrt(double(size)));
    F max = -std::numeric_limits<F>::infinity(), total = 0;
    for (int64_t j = 0; j < keys; j++) {
        const T* row = k[j];
        F sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < size; d++) sum += F(q[d]) * scale * F(row[d]);
        scores[j] = sum;
        max = sum > max ? sum : max;
    }
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < keys; j++) {
        scores[j] = exp_up_to_89(scores[j] - max);
        total += scores[j];
    }
    std::fill_n(sums, size, F(0));
    for (int64_t j = 0; j < keys; j++) {
        const T* row = v[j];
#pragma omp simd
        for (int64_t d = 0; d < size; d++) sums[d] += scores[j] * F(row[d]);
    }
    scale_row(out, sums, 1 / total, size);
}

// Rows of K and V of the new positions into the cache.
template <class T>
void append(T* keys, T* values, const T* qkv, const AttentionShape& s, int64_t context, int64_t first) {
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t t = 0; t < s.T; t++) {
            const T* row = qkv + (b * s.T + t) * 3 * s.C;
            const int64_t at = (b * context + first + t) * s.C;
            std::copy_n(row + s.C, s.C, keys + at);
            std::copy_n(row + 2 * s.C, s.C, values + at);
        }
}

}  // namespace

void attention_extend(Tensor out, Tensor keys, Tensor values, Tensor qkv, int64_t first_position, int64_t heads,
                      Context& ctx) {
    const AttentionShape s = check_attention_extend(out, keys, values, qkv, first_position, heads);
    const int64_t context = keys.shape[1];
    dispatch(qkv.dtype, [&](auto zero) {
        using T = decltype(zero);
        using F = arithmetic_t<T>;
        Carver counter;  // the same for every first_position and n: one plan serves a whole generation
        AttendScratch<F>(counter, context, s.D);
        const int64_t bytes = int64_t(counter.next) + round_up(context * int64_t(sizeof(F)), 64);
        Op op(ctx, "attention_extend", s.forward_flops(first_position), ctx.threads * bytes,
              attention_extend_bytes(s, out, qkv, first_position));
        if (!op.run) return;
        append(ptr<T>(keys), ptr<T>(values), ptr<T>(qkv), s, context, first_position);
#pragma omp parallel for num_threads(ctx.threads) schedule(static)
        for (int64_t bh = 0; bh < s.B * s.H; bh++) {
            Carver carver{uintptr_t(op.workspace) + uintptr_t(omp_get_thread_num() * bytes)};
            const AttendScratch<F> scratch(carver, context, s.D);
            F* scores = carver.take<F>(context);
            const int64_t b = bh / s.H, h = bh % s.H;
            const int64_t cached = b * context * s.C + h * s.D;
            const HeadRows<T> o = head_of(ptr<T>(out), s, bh);
            const HeadQkv<const T> x{head_of_qkv(ptr<const T>(qkv), s, bh).q, {ptr<T>(keys) + cached, s.C},
                                     {ptr<T>(values) + cached, s.C}};
            RowsAhead none;
            if (s.T >= enough_for_tiles)
                attend_head(o, static_cast<F*>(nullptr), x, first_position, s.T, s.D, scratch, none);
            else
                for (int64_t t = 0; t < s.T; t++)
                    attend_one(o[t], x.q[t], x.k, x.v, first_position + t + 1, s.D, scores, scratch.out);
        }
    });
}

}  // namespace llmc
