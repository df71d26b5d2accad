// Matrix products of ragged rows with one matrix per expert. Which rows an expert owns is in device memory and changes
// with every step, so the grid has the largest possible number of tiles. A block finds the expert that owns its tile,
// and returns if no expert does. Offsets are multiples of the tile, so every tile belongs to one expert as a whole, or
// to none.
//
// Floor: 2 K N FLOPs per row. Memory traffic: rows and results once, and every expert's matrix once, if consecutive
// tiles of an expert find it in the L2 cache. With r rows per expert, r small against K and N, and bf16, this is about
// r FLOPs per byte: below about 300 rows on an H100 (150 on an A100) reading the matrices is the limit. Above, it is
// the tensor cores; mma.sync reaches about 60 % of a Hopper's peak (a prediction, like all speeds here). A partly
// filled tile costs as much as a full one: on average half a tile per expert is lost.

#include "llmc/ops/checks/activation.h"
#include "llmc/ops/checks/matmul.h"
#include "llmc/ops/cuda/activation.cuh"
#include "llmc/ops/cuda/ragged_tile.cuh"
#include "llmc/ops/cuda/vector.cuh"

namespace llmc {

int64_t ragged_tile() { return ragged_rows_per_tile; }

namespace {

constexpr int stages = 4;  // tiles that are loaded at the same time
template <class T>
constexpr int stage_elements = 2 * operand_elements<T>;
template <class T>
constexpr int64_t ragged_smem = stages* stage_elements<T>* int64_t(sizeof(T));  // 80 KB: two blocks on an SM
template <class T>
constexpr int ragged_blocks = sizeof(T) == 2 ? 2 : 1;  // on an SM: f32 sums need more registers
static_assert(ragged_smem<float> >= ragged_side * result_pitch * int64_t(sizeof(float)));
static_assert(ragged_smem<nv_bf16> == ragged_smem<float>);

// What is applied to a result before it is stored; see MatmulOptions.
template <class Out>
struct RaggedEpilogue {
    Out* out;
    Out* pre;
    Out* value;
    Activation activation, backward;
    bool accumulate, packed;
};

template <class T, class Out>
struct RaggedArgs {
    RaggedEpilogue<Out> epilogue;
    const T* a;
    const T* b;
    const int32_t* offsets;
    int64_t experts, m, n, k;  // m: sums form only, k: rows form only
    int64_t lda, ldb;
    bool a_packed, b_packed;
};

// The expert that owns a row; -1 for an unused row.
__device__ inline int64_t owner_of(int64_t row, const int32_t* offsets, int64_t experts) {
    if (row >= offsets[experts]) return -1;
    int64_t low = 0, high = experts;  // offsets[low] <= row < offsets[high]
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (offsets[middle] <= row)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// sums = 128 x 128 results, summed over elements 0 .. k_end - 1 of k. While one tile is multiplied, the next three are
// being loaded. After it, shared memory is free.
template <bool a_along_k, bool b_along_k, class T>
__device__ inline void multiply_ragged(RaggedSums<T>& sums, T* shared, const RaggedOperand<T>& a,
                                       const RaggedOperand<T>& b, int64_t k_end) {
    const int steps = int(ceil_div(k_end, k_step<T>));
    const auto load = [&](int step) {
        if (step < steps) {
            T* to = shared + step % stages * stage_elements<T>;
            load_operand<a_along_k>(to, a, int64_t(step) * k_step<T>, k_end);
            load_operand<b_along_k>(to + operand_elements<T>, b, int64_t(step) * k_step<T>, k_end);
        }
        cp_async_commit();  // at the end an empty group, so that the number of groups stays the same
    };
    for (int step = 0; step < stages - 1; step++) load(step);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<stages - 2>();
        __syncthreads();  // this tile is loaded, and no thread reads the one that is replaced now
        load(step + stages - 1);
        const T* here = shared + step % stages * stage_elements<T>;
        sums.template add_product<a_along_k, b_along_k>(here, here + operand_elements<T>);
    }
    cp_async_wait<0>();
    __syncthreads();
}

// W neighbouring results at out[at ...].
template <int W, class Out>
__device__ inline void finish(const RaggedEpilogue<Out>& e, int64_t at, Floats<W> x) {
    if (e.accumulate) {
        const Floats<W> old = load<W>(e.out + at);
        for (int j = 0; j < W; j++) x[j] += old[j];
    }
    if (e.backward != Activation::none) {
        const Floats<W> before = load<W>(e.pre + at);
        for (int j = 0; j < W; j++) x[j] *= activation_slope(e.backward, before[j]);
        if (e.value) {
            Floats<W> value;
            for (int j = 0; j < W; j++) value[j] = activation_value(e.backward, before[j]);
            store<W>(e.value + at, value);
        }
    }
    if (e.activation != Activation::none) {
        if (e.pre) store<W>(e.pre + at, x);
        for (int j = 0; j < W; j++) x[j] = activation_value(e.activation, x[j]);
    }
    store<W>(e.out + at, x);
}

// results [rows, columns] of shared memory to rows of memory n apart, from `first` on. All threads take part.
template <int W, class Out>
__device__ inline void finish_tile(const RaggedEpilogue<Out>& e, const float* results, int64_t first, int64_t n,
                                   int rows, int columns) {
    constexpr int packs = ragged_side / W;
#pragma unroll 1
    for (int i = int(threadIdx.x); i < rows * packs; i += ragged_threads) {
        const int row = i / packs, column = i % packs * W;
        if (column < columns) finish<W>(e, first + row * n + column, load<W>(results + row * result_pitch + column));
    }
}

// One block = 128 x 128 results. Rows form (a along k; b along k if it is transposed): tile of rows after tile of rows,
// each with all its columns, so that blocks at work at the same time share rows and matrices. Sums form (both across):
// tile after tile of expert after expert.
template <class T, class Out, bool sums_form, bool b_along_k>
__global__ void __launch_bounds__(ragged_threads, ragged_blocks<T>)
    matmul_ragged_kernel(RaggedArgs<T, Out> p, int64_t column_tiles) {
    DYN_SHARED(unsigned char, memory);
    const int64_t column0 = blockIdx.x % column_tiles * ragged_side, tile = blockIdx.x / column_tiles;
    const int64_t row_tiles = ceil_div(p.m, ragged_side);
    const int64_t expert = sums_form ? tile / row_tiles : owner_of(tile * ragged_side, p.offsets, p.experts);
    if (expert < 0) return;  // the whole block
    const int64_t begin = p.offsets[expert], k_end = sums_form ? p.offsets[expert + 1] - begin : p.k;
    if (k_end == 0 && p.epilogue.accumulate) return;
    const int64_t row0 = (sums_form ? tile % row_tiles : tile) * ragged_side;
    const int64_t row_end = sums_form ? p.m : row0 + ragged_side;

    const RaggedOperand<T> a{sums_form ? p.a + begin * p.lda : p.a, p.lda, row0, row_end, p.a_packed};
    const RaggedOperand<T> b{sums_form ? p.b + begin * p.ldb : p.b + expert * p.k * p.n, p.ldb, column0, p.n,
                             p.b_packed};
    RaggedSums<T> sums;
    multiply_ragged<!sums_form, b_along_k>(sums, reinterpret_cast<T*>(memory), a, b, k_end);
    float* results = reinterpret_cast<float*>(memory);
    sums.template write<!sums_form, b_along_k>(results);
    __syncthreads();

    const int64_t first = ((sums_form ? expert * p.m : 0) + row0) * p.n + column0;
    const int rows = int(min(row_end - row0, int64_t(ragged_side)));
    const int columns = int(min(p.n - column0, int64_t(ragged_side)));
    if (p.epilogue.packed)
        finish_tile<Pack<Out>::size>(p.epilogue, results, first, p.n, rows, columns);
    else
        finish_tile<1>(p.epilogue, results, first, p.n, rows, columns);
}

template <class T, class Out, bool sums_form, bool b_along_k>
void launch_ragged(const RaggedArgs<T, Out>& args, int64_t row_tiles, Context& ctx) {
    const int64_t column_tiles = ceil_div(args.n, ragged_side);
    launch(ctx, matmul_ragged_kernel<T, Out, sums_form, b_along_k>, grid_of(row_tiles * column_tiles), ragged_threads,
           ragged_smem<T>, args, column_tiles);
}

template <class T, class Out>
void multiply(const RaggedProblem& p, const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& offsets,
              const MatmulOptions& o, Context& ctx) {
    const GemmProblem& g = p.of_expert;
    const bool out_packed = aligned(out, o.pre, o.value) && g.n % Pack<Out>::size == 0;
    const RaggedArgs<T, Out> args{{ptr<Out>(out), ptr<Out>(o.pre), ptr<Out>(o.value), o.activation, o.backward,
                                   o.accumulate, out_packed},
                                  ptr<const T>(a),
                                  ptr<const T>(b),
                                  ptr<const int32_t>(offsets),
                                  p.experts,
                                  g.m,
                                  g.n,
                                  g.k,
                                  g.lda,
                                  g.ldb,
                                  aligned(a) && g.lda % Pack<T>::size == 0,
                                  aligned(b) && g.ldb % Pack<T>::size == 0};
    // Rows after the last full tile are unused, because offsets are multiples of a tile.
    const int64_t row_tiles = p.sums ? p.experts * ceil_div(g.m, ragged_side) : p.rows / ragged_side;
    if (p.sums)
        launch_ragged<T, Out, true, false>(args, row_tiles, ctx);
    else if (g.transpose_b)
        launch_ragged<T, Out, false, true>(args, row_tiles, ctx);
    else
        launch_ragged<T, Out, false, false>(args, row_tiles, ctx);
}

}  // namespace

void matmul_ragged(Tensor out, Tensor a, Tensor b, Tensor offsets, const MatmulOptions& options, Context& ctx) {
    const RaggedProblem p = check_matmul_ragged(out, a, b, offsets, options);
    dispatch(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        Op op(ctx, "matmul_ragged", p.flops + epilogue_flops("matmul_ragged", options) * p.pairs * p.of_expert.n, 0,
              matmul_bytes(out, a, b, options) + options.value.bytes() + offsets.bytes());
        if (!op.run) return;
        if (out.dtype == a.dtype)
            multiply<T, T>(p, out, a, b, offsets, options, ctx);
        else
            multiply<nv_bf16, float>(p, out, a, b, offsets, options, ctx);
    });
}

}  // namespace llmc
