// Causal multi-head attention, forward (Dao et al. 2022: tiles and an online softmax instead of a T x T matrix).
//
//     s[i,j] = <q_i, k_j> / sqrt(D) for j <= i,   p[i,:] = softmax(s[i,:]),   out_i = sum_j p[i,j] v_j
//
// Tile by tile along the keys: with m the largest score so far, out and the sum of exp(s - m) are kept relative to m
// and are multiplied by exp(old m - new m) when m grows. One thread works on one head of one sequence at a time.
#include "llmc/ops/cpu/attention_tile.h"

namespace llmc {
namespace {

// max = the largest score of every query so far; strip: as in TilePair::products. Here and below a vector of queries
// stays in registers over the keys of the strip.
template <class F>
void update_max(F* max, const F* strip, int64_t key, const TilePair<F>& pair) {
    for (int64_t first = pair.first_query(key); first < pair.queries; first += tile_step<F>)
#pragma omp simd
        for (int64_t i = first; i < first + tile_step<F>; i++) {
            F largest = max[i];
#pragma GCC unroll 8
            for (int64_t at = i; at < i + block_rows * attention_tile; at += attention_tile)
                largest = strip[at] > largest ? strip[at] : largest;
            max[i] = largest;
        }
}

// strip = exp(strip - max); every query's sum grows by its part of it.
template <class F>
void exponentiate(F* strip, F* sum, const F* max, int64_t key, const TilePair<F>& pair) {
    for (int64_t first = pair.first_query(key); first < pair.queries; first += tile_step<F>)
#pragma omp simd
        for (int64_t i = first; i < first + tile_step<F>; i++) {
            const F largest = max[i];
            F total = sum[i];
#pragma GCC unroll 8
            for (int64_t at = i; at < i + block_rows * attention_tile; at += attention_tile)
                total += strip[at] = exp_up_to_89(strip[at] - largest);
            sum[i] = total;
        }
}

// Brings the keys of the tile at k0 into w.out, w.max and w.sum.
template <class F>
void attend_pair(const AttendScratch<F>& w, int64_t k0, const TilePair<F>& pair) {
    const int64_t padded = pair.padded();
    std::copy_n(w.max, pair.queries, w.factor);
    for (int64_t key = 0; key < pair.keys; key += block_rows) {
        F* strip = w.scores + key * attention_tile;
        pair.products(strip, w.k + k0 * padded, w.q_transposed, key);
        pair.mask(strip, key);
        update_max(w.max, strip, key, pair);
    }
#pragma omp simd
    for (int64_t i = 0; i < pair.queries; i++) {
        w.factor[i] = exp_up_to_89(w.factor[i] - w.max[i]);
        w.sum[i] *= w.factor[i];
    }
    for (int64_t key = 0; key < pair.keys; key += block_rows)
        exponentiate(w.scores + key * attention_tile, w.sum, w.max, key, pair);
    for (int64_t i = 0; i < (k0 ? pair.queries : 0); i++) {
        F* row = w.out + i * padded;
#pragma omp simd
        for (int64_t d = 0; d < padded; d++) row[d] *= w.factor[i];
    }
    pair.sum_over_keys(w.out, w.scores, w.v + k0 * padded, k0 > 0);
}

// The online softmax over all keys for the query tile in w.q_transposed: w.out = sum of exp(s - max) v, w.max, w.sum.
template <class F>
void attend_tile(const AttendScratch<F>& w, int64_t q0, int64_t queries, int64_t keys, int64_t size, RowsAhead& ahead) {
    std::fill_n(w.max, queries, -std::numeric_limits<F>::infinity());
    std::fill_n(w.sum, queries, F(0));
    for (int64_t k0 = 0; k0 <= q0; k0 += attention_tile)
        attend_pair(w, k0, TilePair<F>{std::min(attention_tile, keys - k0), queries, size, k0 == q0, ahead});
}

}  // namespace

template <class T, class F>
void attend_head(HeadRows<T> out, F* lse, const HeadQkv<const T>& x, int64_t first, int64_t n, int64_t size,
                 const AttendScratch<F>& w, RowsAhead& ahead) {
    const int64_t padded = round_up(size, tile_lanes<F>), end = first + n, keys = round_up(end, tile_step<F>);
    const F scale = F(1 / std::sqrt(double(size)));
    pack_rows(w.k, x.k, 0, keys, end, size, F(1));
    pack_rows(w.v, x.v, 0, keys, end, size, F(1));
    for (int64_t q0 = first / attention_tile * attention_tile; q0 < end; q0 += attention_tile) {
        const int64_t queries = std::min(attention_tile, keys - q0);
        pack_rows(w.q, x.q, q0 - first, queries, n, size, scale);
        transpose_tile(w.q_transposed, attention_tile, w.q, padded, queries, size);
        attend_tile(w, q0, queries, keys, size, ahead);
        for (int64_t t = std::max(first, q0); t < std::min(end, q0 + attention_tile); t++) {
            const int64_t i = t - q0;
            scale_row(out[t - first], w.out + i * padded, 1 / w.sum[i], size);
            if (lse) lse[t - first] = w.max[i] + std::log(w.sum[i]);
        }
    }
}

template void attend_head(HeadRows<float>, float*, const HeadQkv<const float>&, int64_t, int64_t, int64_t,
                          const AttendScratch<float>&, RowsAhead&);
template void attend_head(HeadRows<bf16>, float*, const HeadQkv<const bf16>&, int64_t, int64_t, int64_t,
                          const AttendScratch<float>&, RowsAhead&);
template void attend_head(HeadRows<double>, double*, const HeadQkv<const double>&, int64_t, int64_t, int64_t,
                          const AttendScratch<double>&, RowsAhead&);

void attention_forward(Tensor out, Tensor lse, Tensor qkv, int64_t heads, Context& ctx) {
    const AttentionShape s = check_attention_forward(out, lse, qkv, heads);
    dispatch(qkv.dtype, [&](auto zero) {
        using T = decltype(zero);
        using F = arithmetic_t<T>;
        Carver counter;
        AttendScratch<F>(counter, s.T, s.D);
        const int64_t bytes = int64_t(counter.next);
        Op op(ctx, "attention_forward", s.forward_flops(), ctx.threads * bytes, total_bytes({out, lse, qkv}));
        if (!op.run) return;
#pragma omp parallel for num_threads(ctx.threads) schedule(static)
        for (int64_t bh = 0; bh < s.B * s.H; bh++) {
            Carver carver{uintptr_t(op.workspace) + uintptr_t(omp_get_thread_num() * bytes)};
            const AttendScratch<F> scratch(carver, s.T, s.D);
            const int64_t next = std::min(bh + 1, s.B * s.H - 1);
            const HeadRows<T> o = head_of(ptr<T>(out), s, bh);
            const HeadQkv<const T> x = head_of_qkv(ptr<const T>(qkv), s, bh);
            const HeadQkv<const T> later = head_of_qkv(ptr<const T>(qkv), s, next);
            RowsAhead ahead(s, 2, o, later.q, later.k, later.v);
            attend_head(o, ptr<F>(lse) + bh * s.T, x, 0, s.T, s.D, scratch, ahead);
        }
    });
}

}  // namespace llmc
