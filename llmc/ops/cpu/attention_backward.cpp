// Causal multi-head attention, backward (Dao et al. 2022). Nothing but lse was kept: probabilities are computed again,
// tile by tile, from the same scores in the same order as in the forward pass.
//
//     p[i,j] = exp(s[i,j] - lse_i)        delta_i = <dout_i, out_i>
//     dv_j = sum_i p[i,j] dout_i          ds[i,j] = p[i,j] (<dout_i, v_j> - delta_i)
//     dq_i = sum_j ds[i,j] k_j / sqrt(D)  dk_j = sum_i ds[i,j] q_i / sqrt(D)
//
// One thread works on one head of one sequence, query tile after query tile, so every sum has one fixed order.
#include "llmc/ops/cpu/attention_tile.h"

namespace llmc {
namespace {

// Scratch of one thread. Whole sequence: k, v, dk, dv. The rest is one tile, of p a strip; q holds q / sqrt(D).
template <class F> struct BackwardScratch {
    F *k, *v, *dk, *dv;
    F *q, *q_transposed, *dout, *dout_transposed, *dq, *p, *ds, *lse, *delta;

    BackwardScratch(Carver& carver, int64_t keys, int64_t size) {
        const int64_t padded = round_up(size, tile_lanes<F>), rows = round_up(keys, tile_step<F>);
        for (F** piece : {&k, &v, &dk, &dv}) *piece = carver.take<F>(rows * padded);
        for (F** piece : {&q, &q_transposed, &dout, &dout_transposed, &dq})
            *piece = carver.take<F>(attention_tile * padded);
        p = carver.take<F>(block_rows * attention_tile), ds = carver.take<F>(attention_tile * attention_tile);
        for (F** piece : {&lse, &delta}) *piece = carver.take<F>(attention_tile);
    }
};

// Of a strip of keys: p = exp(p - lse) of scores p, and ds = p (ds - delta) of ds = <dout, v>. lse and delta stay in
// registers over the strip.
template <class F>
void score_gradients(F* p, F* ds, const F* lse, const F* delta, int64_t key, const TilePair<F>& pair) {
#pragma omp simd
    for (int64_t i = pair.first_query(key); i < pair.queries; i++) {
        const F l = lse[i], d = delta[i];
#pragma GCC unroll 8
        for (int64_t at = i; at < i + block_rows * attention_tile; at += attention_tile) {
            const F x = exp_up_to_89(p[at] - l);
            p[at] = x;
            ds[at] = x * (ds[at] - d);
        }
    }
}

// One pair of tiles: adds to w.dq, and to the rows of w.dk and w.dv from k0 on. Keys meet their own diagonal tile
// first. A few keys at a time, whose probabilities nobody else needs.
template <class F>
void backward_pair(const BackwardScratch<F>& w, int64_t k0, const TilePair<F>& pair) {
    const int64_t at = k0 * pair.padded();
    for (int64_t key = 0; key < pair.keys; key += block_rows) {
        F *p = w.p, *ds = w.ds + key * attention_tile;
        pair.products(p, w.k + at, w.q_transposed, key);
        pair.mask(p, key);
        pair.products(ds, w.v + at, w.dout_transposed, key);
        score_gradients(p, ds, w.lse, w.delta, key, pair);
        pair.sum_over_queries(w.dv + at, p, w.dout, key, !pair.diagonal);
        pair.sum_over_queries(w.dk + at, ds, w.q, key, !pair.diagonal);
    }
    pair.sum_over_keys(w.dq, w.ds, w.k + at, k0 > 0);
}

// delta[r] = <dout row r, out row from + r>, r < tile_lanes; 0 from `count` on. Each row is summed lane by lane, and
// the lanes of all rows at once, after a transposition.
template <class T, class F>
void dot_products(F* delta, const F* dout, HeadRows<const T> out, int64_t from, int64_t count, int64_t size) {
    constexpr int lanes = tile_lanes<F>;
    F sums[lanes * lanes] = {};
    const int64_t rows = std::min<int64_t>(count, lanes);
    for (int64_t r = 0; r < rows; r++, dout += round_up(size, lanes)) {
        const T* row = out[from + r];
        F* sum = sums + r * lanes;
        int64_t d = 0;
        for (; d + lanes <= size; d += lanes)
#pragma omp simd
            for (int i = 0; i < lanes; i++) sum[i] += dout[d + i] * F(row[d + i]);
        for (; d < size; d++) sum[0] += dout[d] * F(row[d]);
    }
    transpose_square(sums, lanes, sums, lanes);
    for (int r = 1; r < lanes; r++)
#pragma omp simd
        for (int i = 0; i < lanes; i++) sums[i] += sums[r * lanes + i];
    std::copy_n(sums, lanes, delta);
}

// The query tile from position q0: fills the tiles of w, lse and delta with 0 past T.
template <class T, class F>
void load_queries(const BackwardScratch<F>& w, HeadRows<const T> q, HeadRows<const T> dout, HeadRows<const T> out,
                  const F* lse, int64_t q0, int64_t queries, int64_t n, int64_t size) {
    const int64_t padded = round_up(size, tile_lanes<F>);
    pack_rows(w.q, q, q0, queries, n, size, F(1 / std::sqrt(double(size))));
    pack_rows(w.dout, dout, q0, queries, n, size, F(1));
    transpose_tile(w.q_transposed, attention_tile, w.q, padded, queries, size);
    transpose_tile(w.dout_transposed, attention_tile, w.dout, padded, queries, size);
    const int64_t given = std::min(queries, n - q0);
    std::copy_n(lse + q0, given, w.lse);
    std::fill(w.lse + given, w.lse + queries, F(0));
    for (int64_t i = 0; i < queries; i += tile_lanes<F>)
        dot_products(w.delta + i, w.dout + i * padded, out, q0 + i, given - i, size);
}

// One head of one sequence of n positions.
template <class T, class F>
void backward_head(const HeadQkv<T>& dx, HeadRows<const T> dout, const HeadQkv<const T>& x, HeadRows<const T> out,
                   const F* lse, int64_t n, int64_t size, const BackwardScratch<F>& w, RowsAhead& ahead) {
    const int64_t padded = round_up(size, tile_lanes<F>), keys = round_up(n, tile_step<F>);
    pack_rows(w.k, x.k, 0, keys, n, size, F(1));
    pack_rows(w.v, x.v, 0, keys, n, size, F(1));
    for (int64_t q0 = 0; q0 < n; q0 += attention_tile) {
        const int64_t queries = std::min(attention_tile, keys - q0);
        load_queries(w, x.q, dout, out, lse, q0, queries, n, size);
        for (int64_t k0 = 0; k0 <= q0; k0 += attention_tile)
            backward_pair(w, k0, TilePair<F>{std::min(attention_tile, keys - k0), queries, size, k0 == q0, ahead});
        for (int64_t t = q0; t < std::min(n, q0 + attention_tile); t++)
            scale_row(dx.q[t], w.dq + (t - q0) * padded, F(1 / std::sqrt(double(size))), size);
    }
    for (int64_t t = 0; t < n; t++) {
        scale_row(dx.k[t], w.dk + t * padded, F(1), size);
        scale_row(dx.v[t], w.dv + t * padded, F(1), size);
    }
}

}  // namespace

void attention_backward(Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse, int64_t heads, Context& ctx) {
    const AttentionShape s = check_attention_backward(dqkv, dout, qkv, out, lse, heads);
    dispatch(qkv.dtype, [&](auto zero) {
        using T = decltype(zero);
        using F = arithmetic_t<T>;
        Carver counter;
        BackwardScratch<F>(counter, s.T, s.D);
        const int64_t bytes = int64_t(counter.next);
        Op op(ctx, "attention_backward", s.backward_flops(), ctx.threads * bytes,
              total_bytes({dqkv, dout, qkv, out, lse}));
        if (!op.run) return;
#pragma omp parallel for num_threads(ctx.threads) schedule(static)
        for (int64_t bh = 0; bh < s.B * s.H; bh++) {
            Carver carver{uintptr_t(op.workspace) + uintptr_t(omp_get_thread_num() * bytes)};
            const BackwardScratch<F> scratch(carver, s.T, s.D);
            const int64_t next = std::min(bh + 1, s.B * s.H - 1);
            const HeadQkv<T> dx = head_of_qkv(ptr<T>(dqkv), s, bh);
            const HeadQkv<const T> later = head_of_qkv(ptr<const T>(qkv), s, next);
            RowsAhead ahead(s, 5, dx.q, dx.k, dx.v, later.q, later.k, later.v, head_of(ptr<const T>(dout), s, next),
                            head_of(ptr<const T>(out), s, next));
            backward_head(dx, head_of(ptr<const T>(dout), s, bh), head_of_qkv(ptr<const T>(qkv), s, bh),
                          head_of(ptr<const T>(out), s, bh), ptr<const F>(lse) + bh * s.T, s.T, s.D, scratch, ahead);
        }
    });
}

}  // namespace llmc
