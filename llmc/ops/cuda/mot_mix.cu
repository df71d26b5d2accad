// Mixture of Tokens on the GPU: merge, emit, and the gradient of their weights (Antoniak et al. 2023).
//
// Per group r these are small matrix products on rows that lie far apart: tokens of the group [g, C], slots [E, C],
// weights [g, E]:
//     merge                slots = weights^T tokens
//     emit                 tokens = weights slots
//     weights' gradient    tokens slots^T
// Nothing is transposed or copied as a whole: blocks stage tiles of 32 rows, up to 512 bytes wide, in shared memory. A
// warp owns 64 bytes of the columns of each tile: as columns of its results in merge and emit, as part of the sum in
// the weights' gradient. Its products are in mot_tile.cuh.
#include "llmc/ops/checks/mot.h"
#include "llmc/ops/cuda/cuda.cuh"
#include "llmc/ops/cuda/mot_tile.cuh"

namespace llmc {

namespace {

// `count` rows of contiguous elements, `step` elements apart.
template <class T>
struct Rows {
    T* first;
    int64_t step, count;
};

struct MixSizes {
    int64_t groups, tokens, experts, columns;  // R, g, E, C
    int64_t step;                              // tokens of a group are this many rows of [B*T, ...] apart

    __device__ int64_t first_token(int64_t r) const { return first_token_of_group(r, step, tokens); }
    template <class T>
    __device__ Rows<T> tokens_of(int64_t r, T* all) const {  // all [B*T, C]
        return {all + first_token(r) * columns, step * columns, tokens};
    }
    template <class T>
    __device__ Rows<T> slots_of(int64_t r, T* all) const {  // all [E, R, C]
        return {all + r * columns, groups * columns, experts};
    }
};

// Columns that the block's warps own together: the width of its tiles.
template <class T>
__device__ int block_columns() {
    return int(blockDim.x) / warp_size * warp_columns<T>;
}

// tile = 32 rows from `row` on, the block's width from `column` on; zero where there is none. To be waited for with
// cp_async_wait and a barrier.
template <bool packed, class T>
__device__ void stage_rows(T* tile, const Rows<const T>& in, int64_t row, int64_t column, int64_t columns) {
    constexpr int n = packed ? Pack<T>::size : 1;
    const int per_row = block_columns<T>() / n;
    for (int at = threadIdx.x; at < tile_rows * per_row; at += blockDim.x) {
        const int i = at / per_row, c = at % per_row * n;
        const bool valid = row + i < in.count && column + c < columns;
        const T* from = valid ? in.first + (row + i) * in.step + column + c : in.first;
        T* to = tile + i * tile_step<T> + c;
        if constexpr (packed)
            cp_async16(to, from, valid);
        else
            *to = valid ? *from : from_float<T>(0);
    }
    cp_async_commit();
}

// tile(i, e) = the weight of token `token` + i and expert `expert` + e, transposed (e, i) for merge; zero where there
// is none. `weights` is where the group's first token has its weights. n = 4 floats at a time if E is a multiple of 4.
template <bool merge, int n, class T>
__device__ void stage_weights(WeightTile<T>& tile, const float* weights, const MixSizes& s, int64_t token,
                              int64_t expert) {
    constexpr int per_row = tile_rows / n;
    for (int at = threadIdx.x; at < tile_rows * per_row; at += blockDim.x) {
        const int i = at / per_row, e = at % per_row * n;
        const float* from = weights + (token + i) * s.step * s.experts + expert + e;
        Pack<float> w = {};
        if (token + i < s.tokens && expert + e < s.experts) {
            if constexpr (n == 4)
                w = load_pack(from);
            else
                w[0] = *from;
        }
        for (int j = 0; j < n; j++) merge ? tile.put(e + j, i, w[j]) : tile.put(i, e + j, w[j]);
    }
}

// out[row + m, column..] (+)= what the warp has summed, where there is such a row and column. `column` is where the
// lane's own begin.
template <bool packed, class T>
__device__ void store_sums(const Rows<T>& out, int64_t row, int64_t column, int64_t columns,
                           const float (&sums)[4][Pack<T>::size], bool accumulate) {
    constexpr int n = Pack<T>::size;
    for (int i = 0; i < 4; i++) {
        const int64_t m = row + sums_row(i);
        if (m >= out.count || column >= columns) continue;
        T* to = out.first + m * out.step + column;
        if constexpr (packed) {
            Pack<T> pack;
            if (accumulate) pack = load_pack(to);
            for (int j = 0; j < n; j++)
                pack[j] = from_float<T>(accumulate ? to_float(pack[j]) + sums[i][j] : sums[i][j]);
            store_pack(to, pack);
        } else {
            for (int j = 0; j < n; j++)
                if (column + j < columns) to[j] = from_float<T>(accumulate ? to_float(to[j]) + sums[i][j] : sums[i][j]);
        }
    }
}

// merge: slots[e,r,:] = sum over i: weights[i,e] tokens[i,:]        out = slots  [E,R,C], in = tokens [B*T,C]
// emit:  tokens[i,:] (+)= sum over e: weights[i,e] slots[e,r,:]     out = tokens [B*T,C], in = slots [E,R,C]
// As a matrix product: out [M,C] = weights [M,K] in [K,C], with M, K = E, g or g, E. One block = one group and one
// slice of the columns: it reads its share of `in` once (if both M, K > 32: once for every 32 of M, then from the L2
// cache) and writes its share of `out` once.
template <class T, bool merge, bool packed>
__global__ void mix_kernel(T* out, const float* weights, const T* in, MixSizes s, bool accumulate) {
    SHARED(T, tile, [tile_rows * tile_step<T>]);
    SHARED(WeightTile<T>, weight_tile, [1]);
    const int64_t slices = ceil_div(s.columns, block_columns<T>());
    const int64_t r = blockIdx.x / slices, begin = blockIdx.x % slices * block_columns<T>();
    const int own = threadIdx.x / warp_size * warp_columns<T>;  // the warp's first column in the tile
    Rows<T> to;
    Rows<const T> from;
    if constexpr (merge)
        to = s.slots_of(r, out), from = s.tokens_of(r, in);
    else
        to = s.tokens_of(r, out), from = s.slots_of(r, in);
    weights += s.first_token(r) * s.experts;
    for (int64_t m = 0; m < to.count; m += tile_rows) {
        WarpSums<T> sums = {};
        for (int64_t k = 0; k < from.count; k += tile_rows) {
            __syncthreads();  // the tiles may still be read
            if (m == 0 || from.count > tile_rows) stage_rows<packed>(tile, from, k, begin, s.columns);
            if (s.experts % 4 == 0)
                stage_weights<merge, 4>(*weight_tile, weights, s, merge ? k : m, merge ? m : k);
            else
                stage_weights<merge, 1>(*weight_tile, weights, s, merge ? k : m, merge ? m : k);
            cp_async_wait<0>();
            __syncthreads();
            sums.add_product(*weight_tile, tile + own);
        }
        float result[4][Pack<T>::size];
        sums.read(result);
        store_sums<packed>(to, m, begin + own + sums_column<T>(), s.columns, result, accumulate);
    }
}

// dweights[i,e] (+)= <tokens[i,:], slots[e,r,:]>: one block = 32 tokens and 32 experts of one group. Each warp sums
// over its columns of every tile, then the block over its warps, always in the same order.
template <class T, bool packed>
__global__ void weights_backward_kernel(float* dweights, const T* tokens, const T* slots, MixSizes s, bool accumulate) {
    constexpr int tile_elements = tile_rows * tile_step<T>, sums_elements = tile_rows * tile_rows;
    static_assert(2 * tile_elements * sizeof(T) >= most_tile_warps * sums_elements * sizeof(float));
    SHARED(unsigned char, memory, [2 * tile_elements * sizeof(T)]);
    T *left = reinterpret_cast<T*>(memory), *right = left + tile_elements;
    const int64_t token_tiles = ceil_div(s.tokens, tile_rows), expert_tiles = ceil_div(s.experts, tile_rows);
    const int64_t r = blockIdx.x / (token_tiles * expert_tiles);
    const int64_t token = blockIdx.x / expert_tiles % token_tiles * tile_rows;
    const int64_t expert = blockIdx.x % expert_tiles * tile_rows;
    const int warp = threadIdx.x / warp_size, warps = blockDim.x / warp_size, own = warp * warp_columns<T>;

    WarpDots<T> dots = {};
    for (int64_t begin = 0; begin < s.columns; begin += block_columns<T>()) {
        __syncthreads();  // the tiles may still be read
        stage_rows<packed>(left, s.tokens_of(r, tokens), token, begin, s.columns);
        stage_rows<packed>(right, s.slots_of(r, slots), expert, begin, s.columns);
        cp_async_wait<0>();
        __syncthreads();
        dots.add_product(left + own, right + own);
    }
    __syncthreads();
    float* sums = reinterpret_cast<float*>(memory);  // [warps][32][32], over the tiles
    dots.write(sums + warp * sums_elements);
    __syncthreads();
    for (int at = threadIdx.x; at < sums_elements; at += blockDim.x) {
        const int64_t i = token + at / tile_rows, e = expert + at % tile_rows;
        if (i >= s.tokens || e >= s.experts) continue;
        float* to = dweights + (s.first_token(r) + i * s.step) * s.experts + e;
        float sum = accumulate ? *to : 0.0f;
        for (int w = 0; w < warps; w++) sum += sums[w * sums_elements + at];
        *to = sum;
    }
}

// How the columns are dealt out: equal slices (or steps), one after another, of at most most_tile_warps warps each.
template <class T>
struct Slices {
    int64_t count;
    int warps = 1;
    explicit Slices(int64_t columns) {
        const int64_t shares = ceil_div(columns, warp_columns<T>);
        count = ceil_div(shares, most_tile_warps);
        if (count > 0) warps = int(ceil_div(shares, count));
    }
};

MixSizes sizes_of(const MotShape& s, int64_t columns) { return {s.groups, s.size, s.experts, columns, s.step()}; }

// Calls f(T{}, packed) for tokens and slots; packed is a constant.
template <class F>
void dispatch_mix(const Tensor& tokens, const Tensor& slots, F&& f) {
    dispatch(tokens.dtype, [&](auto zero) {
        if (last_dim(tokens) % Pack<decltype(zero)>::size == 0 && aligned(tokens, slots))
            f(zero, std::true_type());
        else
            f(zero, std::false_type());
    });
}

template <bool merge>
void mix(const char* name, const Tensor& out, const Tensor& weights, const Tensor& in, const MotShape& shape,
         bool accumulate, Context& ctx) {
    const int64_t columns = last_dim(in);
    dispatch_mix(in, out, [&](auto zero, auto packed) {
        using T = decltype(zero);
        Op op(ctx, name, mix_flops(shape, columns), 0, total_bytes({out, weights, in, accumulate ? out : Tensor()}));
        if (!op.run) return;
        const Slices<T> slices(columns);
        launch(ctx, mix_kernel<T, merge, packed()>, grid_of(shape.groups * slices.count), slices.warps * warp_size, 0,
               ptr<T>(out), ptr<float>(weights), ptr<T>(in), sizes_of(shape, columns), accumulate);
    });
}

}  // namespace

void mot_merge(Tensor slots, Tensor weights, Tensor tokens, Group group, Context& ctx) {
    MotShape s = check_mix(tokens, weights, slots, group, "weights");
    mix<true>("mot_merge", slots, weights, tokens, s, false, ctx);
}

void mot_emit(Tensor tokens, Tensor weights, Tensor slots, Group group, bool accumulate, Context& ctx) {
    MotShape s = check_mix(tokens, weights, slots, group, "weights");
    mix<false>("mot_emit", tokens, weights, slots, s, accumulate, ctx);
}

void mot_weights_backward(Tensor dweights, Tensor tokens, Tensor slots, Group group, bool accumulate, Context& ctx) {
    MotShape s = check_mix(tokens, dweights, slots, group, "dweights");
    const int64_t columns = last_dim(tokens);
    dispatch_mix(tokens, slots, [&](auto zero, auto packed) {
        using T = decltype(zero);
        Op op(ctx, "mot_weights_backward", mix_flops(s, columns), 0,
              total_bytes({dweights, tokens, slots, accumulate ? dweights : Tensor()}));
        if (!op.run) return;
        const int64_t tiles = ceil_div(s.size, tile_rows) * ceil_div(s.experts, tile_rows);
        launch(ctx, weights_backward_kernel<T, packed()>, grid_of(s.groups * tiles),
               Slices<T>(columns).warps * warp_size, 0, ptr<float>(dweights), ptr<T>(tokens), ptr<T>(slots),
               sizes_of(s, columns), accumulate);
    });
}

}  // namespace llmc
