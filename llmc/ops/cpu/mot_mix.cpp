// Mixture of Tokens on the CPU: merge, emit, and the gradient of their weights (Antoniak et al. 2023).
//
// Per group r these are small matrix products on rows that lie far apart: tokens of the group [g, C], slots [E, C],
// weights [g, E]:
//     merge                slots = weights^T tokens
//     emit                 tokens = weights slots
//     weights' gradient    tokens slots^T
// Nothing is transposed or copied as a whole. A thread gathers one panel of columns of the rows it reads into a tile in
// its cache, because rows a power of two apart share cache sets and would throw each other out, and because bf16 is so
// converted once. Results go straight to where they belong, each written once.
#include "llmc/ops/checks/mot.h"
#include "llmc/ops/cpu/cpu.h"
#include "llmc/ops/cpu/tile.h"

namespace llmc {

namespace {

// `count` rows of C contiguous elements, `step` elements apart.
template <class T>
struct Rows {
    T* first;
    int64_t step, count;
    T* operator[](int64_t i) const { return first + i * step; }
};

// Columns of a register block of mix; it has block_rows rows.
template <class A>
constexpr int64_t block_columns = (block_vectors * tile_lanes<A>);

// Copies columns [begin, begin + columns) of all rows to tile [count, width], zero beyond `columns`. What follows in
// memory, the next panel or the next group, is asked for already: the pieces of rows are too short for the hardware to
// see where they lead (5 to 20 % of the ops' time).
template <class T, class A>
void gather(A* tile, int64_t width, Rows<const T> rows, int64_t begin, int64_t columns) {
    for (int64_t i = 0; i < rows.count; i++) {
        const T* from = rows[i] + begin;
        A* to = tile + i * width;
        fetch_ahead(from + columns, columns);
#pragma omp simd
        for (int64_t c = 0; c < columns; c++) to[c] = A(from[c]);
        for (int64_t c = columns; c < width; c++) to[c] = 0;
    }
}

// Element (m, k) of the weights at first[m * row_step + k * inner_step], m < rows, k < inner.
template <class A>
struct Weights {
    const A* first;
    int64_t row_step, inner_step, rows, inner;
};

// One register block of out (+)= op(a) x tile, of which only `rows` rows and `columns` columns exist; op as for
// multiply_block.
template <bool transposed, class T, class A>
void mix_block(T* out, int64_t step, int64_t rows, int64_t columns, const A* a, int64_t lda, const A* tile,
               int64_t width, int64_t inner, bool accumulate) {
    if constexpr (std::is_same_v<T, A>) {
        if (rows >= block_rows && columns >= block_columns<A>)
            return multiply_block<transposed, block_vectors>(out, step, accumulate ? out : nullptr, step, a, lda,
                                                             tile, width, inner);
    }
    A sum[block_rows * block_columns<A>];
    multiply_block<transposed, block_vectors, A>(sum, block_columns<A>, nullptr, 0, a, lda, tile, width, inner);
    int64_t n = std::min(columns, block_columns<A>);
    for (int64_t m = 0; m < std::min<int64_t>(rows, block_rows); m++) {
        T* to = out + m * step;
        const A* from = sum + m * block_columns<A>;
#pragma omp simd
        for (int64_t c = 0; c < n; c++) to[c] = T((accumulate ? A(to[c]) : A(0)) + from[c]);
    }
}

// Columns per panel: a tile for the first-level cache, but rows are read in pieces of 1 KiB at least, which memory
// likes better than short ones, unless the tile then outgrows the second-level cache.
template <class A>
int64_t panel_width(int64_t inner, int64_t columns) {
    int64_t element = std::max<int64_t>(inner, 1) * int64_t(sizeof(A));
    int64_t width = std::min<int64_t>(std::max<int64_t>((32 << 10) / element, 256), (512 << 10) / element);
    return round_up(std::clamp<int64_t>(width, 1, std::max<int64_t>(columns, 1)), block_columns<A>);
}

// out[m,:] (+)= sum over k: weights(m, k) in[k,:] for one group.
template <class T, class A>
void mix(Rows<T> out, const Weights<A>& weights, Rows<const T> in, int64_t columns, bool accumulate, A* scratch) {
    int64_t width = panel_width<A>(in.count, columns);
    A *tile = scratch, *packed = scratch + in.count * width;
    pack_strips<block_rows>(packed, weights.first, weights.rows, weights.inner, weights.row_step, weights.inner_step);
    for (int64_t begin = 0; begin < columns; begin += width) {
        int64_t panel = std::min(width, columns - begin);
        gather(tile, width, in, begin, panel);
        for (int64_t m = 0; m < out.count; m += block_rows)
            for (int64_t c = 0; c < panel; c += block_columns<A>)
                mix_block<true>(out[m] + begin + c, out.step, out.count - m, panel - c, packed + m * in.count,
                                block_rows, tile + c, width, in.count, accumulate);
    }
}

template <class A>
int64_t mix_scratch(int64_t rows, int64_t inner, int64_t columns) {  // elements, per thread
    return round_up(inner * panel_width<A>(inner, columns) + round_up(rows, block_rows) * inner, 16);
}

// Slots of the weights' gradient with padding: whole register blocks.
template <class A>
int64_t padded_slots(int64_t experts) {
    return round_up(experts, block_columns<A>);
}

// Rows of a panel of the weights' gradient: tokens, and slots twice.
template <class A>
int64_t gradient_rows(int64_t size, int64_t experts) {
    return round_up(size, block_rows) + 2 * padded_slots<A>(experts);
}

template <class A>
int64_t gradient_scratch(int64_t size, int64_t experts, int64_t columns) {  // elements, per thread
    const int64_t rows = gradient_rows<A>(size, experts);
    return round_up(rows * panel_width<A>(rows, columns), 16);
}

// gradient(i, e) (+)= <tokens[i,:], slots[e,:]> for one group; row i of the gradient begins at gradient + i * step.
// Panel by panel: the slots' is transposed, and the rest is a product of rows as in mix.
template <class T, class A>
void weights_gradient(A* gradient, int64_t step, Rows<const T> tokens, Rows<const T> slots, int64_t columns,
                      bool accumulate, A* scratch) {
    const int64_t width = panel_width<A>(gradient_rows<A>(tokens.count, slots.count), columns);
    const int64_t across = padded_slots<A>(slots.count);
    A *left = scratch, *right = left + round_up(tokens.count, block_rows) * width, *transposed = right + across * width;
    for (int64_t begin = 0; begin == 0 || begin < columns; begin += width) {
        const int64_t panel = std::min(width, columns - begin);
        gather(left, width, tokens, begin, panel);
        gather(right, width, slots, begin, panel);
        transpose_tile(transposed, across, right, width, slots.count, panel);
        for (int64_t i = 0; i < tokens.count; i += block_rows)
            for (int64_t e = 0; e < slots.count; e += block_columns<A>)
                mix_block<false>(gradient + i * step + e, step, tokens.count - i, slots.count - e, left + i * width,
                                 width, transposed + e, across, panel, accumulate || begin > 0);
    }
}

// f(group, scratch) for every group, in parallel; scratch: `elements` of A per thread.
template <class A, class F>
void for_groups(const MotShape& s, void* workspace, int64_t elements, int threads, F&& f) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < s.groups; r++) f(r, static_cast<A*>(workspace) + omp_get_thread_num() * elements);
}

}  // namespace

void mot_merge(Tensor slots, Tensor weights, Tensor tokens, Group group, Context& ctx) {
    MotShape s = check_mix(tokens, weights, slots, group, "weights");
    dispatch(tokens.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
        int64_t columns = last_dim(tokens), scratch = mix_scratch<A>(s.experts, s.size, columns);
        Op op(ctx, "mot_merge", mix_flops(s, columns), scratch * ctx.threads * int64_t(sizeof(A)),
              total_bytes({slots, weights, tokens}));
        if (!op.run) return;
        for_groups<A>(s, op.workspace, scratch, ctx.threads, [&](int64_t r, A* local) {
            int64_t first = s.first_token(r), step = s.step();
            Rows<T> out{ptr<T>(slots) + r * columns, s.groups * columns, s.experts};
            Rows<const T> in{ptr<T>(tokens) + first * columns, step * columns, s.size};
            Weights<A> w{ptr<A>(weights) + first * s.experts, 1, step * s.experts, s.experts, s.size};
            mix(out, w, in, columns, false, local);
        });
    });
}

void mot_emit(Tensor tokens, Tensor weights, Tensor slots, Group group, bool accumulate, Context& ctx) {
    MotShape s = check_mix(tokens, weights, slots, group, "weights");
    dispatch(tokens.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
        int64_t columns = last_dim(tokens), scratch = mix_scratch<A>(s.size, s.experts, columns);
        Op op(ctx, "mot_emit", mix_flops(s, columns), scratch * ctx.threads * int64_t(sizeof(A)),
              total_bytes({tokens, weights, slots, accumulate ? tokens : Tensor()}));
        if (!op.run) return;
        for_groups<A>(s, op.workspace, scratch, ctx.threads, [&](int64_t r, A* local) {
            int64_t first = s.first_token(r), step = s.step();
            Rows<T> out{ptr<T>(tokens) + first * columns, step * columns, s.size};
            Rows<const T> in{ptr<T>(slots) + r * columns, s.groups * columns, s.experts};
            Weights<A> w{ptr<A>(weights) + first * s.experts, step * s.experts, 1, s.size, s.experts};
            mix(out, w, in, columns, accumulate, local);
        });
    });
}

void mot_weights_backward(Tensor dweights, Tensor tokens, Tensor slots, Group group, bool accumulate, Context& ctx) {
    MotShape s = check_mix(tokens, dweights, slots, group, "dweights");
    dispatch(tokens.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
        int64_t columns = last_dim(tokens), scratch = gradient_scratch<A>(s.size, s.experts, columns);
        Op op(ctx, "mot_weights_backward", mix_flops(s, columns), scratch * ctx.threads * int64_t(sizeof(A)),
              total_bytes({dweights, tokens, slots, accumulate ? dweights : Tensor()}));
        if (!op.run) return;
        for_groups<A>(s, op.workspace, scratch, ctx.threads, [&](int64_t r, A* local) {
            int64_t first = s.first_token(r), step = s.step();
            Rows<const T> x{ptr<T>(tokens) + first * columns, step * columns, s.size};
            Rows<const T> y{ptr<T>(slots) + r * columns, s.groups * columns, s.experts};
            weights_gradient(ptr<A>(dweights) + first * s.experts, step * s.experts, x, y, columns, accumulate, local);
        });
    });
}

}  // namespace llmc
