// What the attention files share: tiles of one head in scratch, and the products between them.
//
// Queries and keys are cut into tiles of 64 positions, aligned to multiples of 64 whatever position a call starts at.
// Scores are kept transposed, scores[key][query]: maxima and sums over keys then run across vectors instead of along
// them, and of all operands only the query tile has to be transposed. Only the diagonal tile (keys and queries at the
// same positions) is masked; in it whole vectors of queries before a key are skipped.
#pragma once
#include <array>
#include <limits>

#include "llmc/ops/checks/attention.h"
#include "llmc/ops/cpu/math.h"
#include "llmc/ops/cpu/tile.h"

namespace llmc {

constexpr int64_t attention_tile = 64;
// Positions in a tile come in multiples of this: whole vectors and whole blocks of rows.
template <class F> constexpr int64_t tile_step = std::max(tile_lanes<F>, block_rows);

// One head of one sequence inside a tensor: D elements of position t at data + t * stride.
template <class T> struct HeadRows {
    T* data;
    int64_t stride;
    T* operator[](int64_t t) const { return data + t * stride; }
};

// Queries, keys and values of one head of one sequence.
template <class T> struct HeadQkv { HeadRows<T> q, k, v; };

// Head bh % H of sequence bh / H in out [B,T,C] and in qkv [B,T,3C]. T may be const.
template <class T> HeadRows<T> head_of(T* out, const AttentionShape& s, int64_t bh) {
    return {out + bh / s.H * s.T * s.C + bh % s.H * s.D, s.C};
}
template <class T> HeadQkv<T> head_of_qkv(T* qkv, const AttentionShape& s, int64_t bh) {
    const int64_t wide = 3 * s.C;
    T* q = qkv + bh / s.H * s.T * wide + bh % s.H * s.D;
    return {{q, wide}, {q + s.C, wide}, {q + 2 * s.C, wide}};
}

// Rows of one head lie far apart in memory, and processors fetch such rows slowly. So they are asked for early: every
// block of products fetches a few of the rows that this head will write and the next one will read.
struct RowsAhead {
    std::array<HeadRows<const char>, 8> rows{};  // strides in bytes
    int64_t kinds = 0, row_bytes = 0, end = 0, at_once = 0, position = 0;

    RowsAhead() = default;  // fetches nothing
    // Fetches `all` T rows, or nearly, in the course of a head. `products`: how many a pair of tiles has.
    template <class... E>
    RowsAhead(const AttentionShape& s, int64_t products, HeadRows<E>... all)
        : rows{HeadRows<const char>{reinterpret_cast<const char*>(all.data), all.stride * int64_t(sizeof(E))}...},
          kinds(sizeof...(E)), row_bytes(s.D * int64_t(sizeof(std::common_type_t<E...>))), end(s.T) {
        const int64_t tiles = round_up(s.T, attention_tile) / attention_tile;
        const int64_t blocks = round_up(std::min(s.T, attention_tile), block_rows) / block_rows;  // of one product
        at_once = s.T / std::max(int64_t(1), tiles * (tiles + 1) / 2 * products * blocks) + 1;
    }
    void fetch() {
        for (const int64_t stop = std::min(end, position + at_once); position < stop; position++)
            for (int64_t kind = 0; kind < kinds; kind++)
                for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(rows[kind][position] + byte);
    }
};

// Hands out 64-byte aligned pieces of a workspace; with base 0 it only counts.
struct Carver {
    uintptr_t next = 0;
    template <class F> F* take(int64_t n) {
        F* piece = reinterpret_cast<F*>(next);
        next += uintptr_t(round_up(n * int64_t(sizeof(F)), 64));
        return piece;
    }
};

// dst [count, padded], padded = round_up(size, tile_lanes): row r = row from + r of src times scale.
// Rows outside [0, available) and columns past size become 0.
template <class T, class F>
void pack_rows(F* dst, HeadRows<const T> src, int64_t from, int64_t count, int64_t available, int64_t size,
               F scale = 1) {
    const int64_t padded = round_up(size, tile_lanes<F>);
    for (int64_t r = 0; r < count; r++, dst += padded) {
        const bool given = from + r >= 0 && from + r < available;
        if (given) scale_row(dst, src[from + r], scale, size);
        for (int64_t d = given ? size : 0; d < padded; d++) dst[d] = 0;
    }
}

// A pair of tiles: `keys` x `queries` positions (multiples of tile_step), head size `size`.
template <class F> struct TilePair {
    int64_t keys, queries, size;
    bool diagonal;
    RowsAhead& ahead;

    static_assert(attention_tile % tile_step<F> == 0);
    int64_t padded() const { return round_up(size, tile_lanes<F>); }
    // First query column that exists in row `key` of the scores: the same for all keys of a block of rows.
    int64_t first_query(int64_t key) const { return diagonal ? key / tile_step<F> * tile_step<F> : 0; }

    // The scores of the block_rows keys from `key` on, a strip [block_rows, attention_tile]:
    // strip[r][query] = <rows[key + r], columns[.][query]>.   rows [keys, padded], columns [size, attention_tile]
    void products(F* strip, const F* rows, const F* columns, int64_t key) const {
        ahead.fetch();
        const int64_t q = first_query(key);
        multiply_rows<false>(strip + q, attention_tile, rows + key * padded(), padded(), columns + q, attention_tile,
                             queries - q, size, false);
    }
    // strip = -inf where the key comes after the query.
    void mask(F* strip, int64_t key) const {
        if (!diagonal) return;
        const int64_t q = first_query(key);
        for (int64_t r = 0; r < block_rows; r++) {
            F* row = strip + r * attention_tile + q;
#pragma omp simd
            for (int64_t i = 0; i < tile_step<F>; i++)
                row[i] = q + i < key + r ? -std::numeric_limits<F>::infinity() : row[i];
        }
    }
    // out[query] (+)= sum over keys: weights[key][query] rows[key].   out [queries, padded], rows [keys, padded]
    void sum_over_keys(F* out, const F* weights, const F* rows, bool accumulate) const {
        for (int64_t q = 0; q < queries; q += block_rows) {
            ahead.fetch();
            multiply_rows<true>(out + q * padded(), padded(), weights + q, attention_tile, rows, padded(), padded(),
                                diagonal ? std::min(keys, q + block_rows) : keys, accumulate);
        }
    }
    // out[key + r] (+)= sum over queries: strip[r][query] rows[query].   out [keys, padded], rows [queries, padded]
    void sum_over_queries(F* out, const F* strip, const F* rows, int64_t key, bool accumulate) const {
        ahead.fetch();
        const int64_t q = diagonal ? key : 0;
        multiply_rows<false>(out + key * padded(), padded(), strip + q, attention_tile, rows + q * padded(), padded(),
                             padded(), queries - q, accumulate);
    }
};

// Scratch of one thread for attend_head with up to `keys` positions.
template <class F> struct AttendScratch {
    F *k, *v;                            // all positions
    F *q, *q_transposed, *scores, *out;  // one tile
    F *max, *sum, *factor;               // per query of the tile

    AttendScratch(Carver& carver, int64_t keys, int64_t size) {
        const int64_t padded = round_up(size, tile_lanes<F>), rows = round_up(keys, tile_step<F>);
        for (F** piece : {&k, &v}) *piece = carver.take<F>(rows * padded);
        for (F** piece : {&q, &q_transposed, &out}) *piece = carver.take<F>(attention_tile * padded);
        scores = carver.take<F>(attention_tile * attention_tile);
        for (F** piece : {&max, &sum, &factor}) *piece = carver.take<F>(attention_tile);
    }
};

// Causal attention of one head: queries at positions first .. first + n - 1 (rows 0 .. n-1 of x.q and out) attend to
// keys and values at all positions up to their own. lse [n] may be nullptr.
// A query's result has the same bits whatever first and n are.
template <class T, class F>
void attend_head(HeadRows<T> out, F* lse, const HeadQkv<const T>& x, int64_t first, int64_t n, int64_t size,
                 const AttendScratch<F>& w, RowsAhead& ahead);

}  // namespace llmc
