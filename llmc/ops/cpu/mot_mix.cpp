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

// Copies columns [begin, begin + columns) of all rows to tile [count, width], zero beyond `columns`.
template <class T, class A>
void gather(A* tile, int64_t width, Rows<const T> rows, int64_t begin, int64_t columns) {
    for (int64_t i = 0; i < rows.count; i++) {
        const T* from = rows[i] + begin;
        A* to = tile + i * width;
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

// One register block of out (+)= weights x tile, of which only `rows` rows and `columns` columns exist.
template <class T, class A>
void mix_block(T* out, int64_t step, int64_t rows, int64_t columns, const A* packed, const A* tile, int64_t width,
               int64_t inner, bool accumulate) {
    if constexpr (std::is_same_v<T, A>) {
        if (rows >= block_rows && columns >= block_columns<A>)
            return multiply_block<true, block_vectors>(out, step, packed, block_rows, tile, width, inner, accumulate);
    }
    A sum[block_rows * block_columns<A>];
    multiply_block<true, block_vectors>(sum, block_columns<A>, packed, block_rows, tile, width, inner, false);
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
                mix_block(out[m] + begin + c, out.step, out.count - m, panel - c, packed + m * in.count, tile + c,
                          width, in.count, accumulate);
    }
}

template <class A>
int64_t mix_scratch(int64_t rows, int64_t inner, int64_t columns) {  // elements, per thread
    return round_up(inner * panel_width<A>(inner, columns) + round_up(rows, block_rows) * inner, 16);
}

// Register block of the weights' gradient: dot products of 4 tokens with 4 slots (2 where there are fewer registers).
constexpr int dot_rows = 4, dot_columns = block_rows / 2, dots = dot_rows * dot_columns;

// x[0] = the sums over all lanes of x[0], x[1], ...: adding neighbours halves the number of vectors each round.
template <class A>
void lane_sums(typename TileVector<A>::type (&x)[tile_lanes<A>]) {
    using Index = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
    typedef Index Indices __attribute__((vector_size(register_bytes)));
    Indices even, odd;
    for (int i = 0; i < tile_lanes<A>; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
#pragma GCC unroll 4
    for (int n = tile_lanes<A> / 2; n > 0; n /= 2)
#pragma GCC unroll 8
        for (int j = 0; j < n; j++)
            x[j] = __builtin_shuffle(x[2 * j], x[2 * j + 1], even) + __builtin_shuffle(x[2 * j], x[2 * j + 1], odd);
}

// sums[i][j] = <a[i], b[j]> over `width` columns (a multiple of the lanes).
template <class A>
void dot_products(A (&sums)[dots], const A* const (&a)[dot_rows], const A* const (&b)[dot_columns], int64_t width) {
    using V = typename TileVector<A>::type;
    constexpr int n = tile_lanes<A>;
    V sum[dots / n][n];  // as many vectors as lanes are summed at once
#pragma GCC unroll 16
    for (int at = 0; at < dots; at++) sum[at / n][at % n] = V{};
    for (int64_t c = 0; c < width; c += n) {
        V left[dot_rows], right[dot_columns];
#pragma GCC unroll 4
        for (int i = 0; i < dot_rows; i++) std::memcpy(&left[i], a[i] + c, sizeof(V));
#pragma GCC unroll 4
        for (int j = 0; j < dot_columns; j++) std::memcpy(&right[j], b[j] + c, sizeof(V));
#pragma GCC unroll 16
        for (int at = 0; at < dots; at++) sum[at / n][at % n] += left[at / dot_columns] * right[at % dot_columns];
    }
    for (int v = 0; v < dots / n; v++) {
        lane_sums<A>(sum[v]);
        std::memcpy(sums + v * n, &sum[v][0], sizeof(V));
    }
}

// Columns per panel of the weights' gradient: the tokens' tile must fit the second-level cache; equal panels.
template <class A>
int64_t dot_panel(int64_t size, int64_t columns) {
    int64_t fits = std::max<int64_t>((512 << 10) / (std::max<int64_t>(size, 1) * int64_t(sizeof(A))), 64);
    int64_t panels = std::max<int64_t>((columns + fits - 1) / fits, 1);
    return round_up(std::max<int64_t>((columns + panels - 1) / panels, 1), tile_lanes<A>);
}

template <class A>
int64_t dot_scratch(int64_t size, int64_t columns) {  // elements, per thread
    return round_up((size + dot_columns) * dot_panel<A>(size, columns), 16);
}

// gradient(i, e) (+)= <tokens[i,:], slots[e,:]> for one group; row i of the gradient begins at gradient + i * step.
template <class T, class A>
void weights_gradient(A* gradient, int64_t step, Rows<const T> tokens, Rows<const T> slots, int64_t columns,
                      bool accumulate, A* scratch) {
    int64_t g = tokens.count, experts = slots.count, width = dot_panel<A>(g, columns);
    A *left = scratch, *right = left + g * width;
    for (int64_t begin = 0; begin == 0 || begin < columns; begin += width) {
        int64_t panel = std::min(width, columns - begin), padded = round_up(panel, tile_lanes<A>);
        bool add = accumulate || begin > 0;
        gather(left, width, tokens, begin, panel);
        for (int64_t e = 0; e < experts; e += dot_columns) {
            int64_t used = std::min<int64_t>(dot_columns, experts - e);
            gather(right, width, Rows<const T>{slots[e], slots.step, used}, begin, panel);
            for (int64_t i = 0; i < g; i += dot_rows) {
                const A *a[dot_rows], *b[dot_columns];  // beyond the last row: the last row again, result unused
                for (int64_t k = 0; k < dot_rows; k++) a[k] = left + std::min(i + k, g - 1) * width;
                for (int64_t k = 0; k < dot_columns; k++) b[k] = right + std::min(k, used - 1) * width;
                A sums[dots];
                dot_products<A>(sums, a, b, padded);
                for (int64_t k = 0; k < dot_rows && i + k < g; k++) {
                    A* to = gradient + (i + k) * step + e;
                    for (int64_t l = 0; l < used; l++) to[l] = (add ? to[l] : A(0)) + sums[k * dot_columns + l];
                }
            }
        }
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
        int64_t columns = last_dim(tokens), scratch = dot_scratch<A>(s.size, columns);
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
