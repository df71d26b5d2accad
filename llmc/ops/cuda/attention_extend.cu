// Attention while generating: new positions attend to the cached keys and values of all earlier ones.
//
// Floor: the cache up to the last position is read once, 4 C bytes a position in bf16, and 4 D FLOPs a pair: far from
// enough arithmetic to matter while few positions are new. A prompt of many goes the way of attention_forward.
#include "llmc/ops/cuda/attention_tile.cuh"

namespace llmc {
namespace {

// From this many new positions on, a tile of queries is cheaper than one pass over the cache per query.
constexpr int64_t enough_for_tiles = 8;

// K and V of the new positions into the cache: one block a row of qkv [B,n,3C], 16 bytes a thread if packed.
template <class T>
__global__ void __launch_bounds__(256)
    append(Heads<T> keys, Heads<T> values, const T* qkv, int64_t first, int64_t n, int64_t columns, bool packed) {
    const int64_t b = blockIdx.x / n, t = blockIdx.x % n, at = b * keys.sequence + (first + t) * keys.row;
    const T* row = qkv + int64_t(blockIdx.x) * 3 * columns;
    const int width = packed ? Pack<T>::size : 1;
    for (int64_t c = threadIdx.x * width; c < columns; c += blockDim.x * width) {
        if (packed) {
            store_pack(keys.data + at + c, load_pack(row + columns + c));
            store_pack(values.data + at + c, load_pack(row + 2 * columns + c));
        } else {
            keys.data[at + c] = row[columns + c];
            values.data[at + c] = row[2 * columns + c];
        }
    }
}

constexpr int decode_threads = 256, decode_warps = decode_threads / warp_size;
constexpr int keys_at_once = 4;  // of a group of lanes: number of loads at the same time

// `Pack<T>::size` elements of a row as floats: columns d .. of a head; zeros past its size.
template <class T>
struct Slice {
    float v[Pack<T>::size];
};
template <class T>
__device__ inline Slice<T> load_slice(const T* row, int d, int size, bool packed) {
    Slice<T> slice = {};
    if (packed) {
        if (d < size) {
            const Pack<T> x = load_pack(row + d);
#pragma unroll
            for (int e = 0; e < Pack<T>::size; e++) slice.v[e] = to_float(x[e]);
        }
    } else {
#pragma unroll
        for (int e = 0; e < Pack<T>::size; e++)
            if (d + e < size) slice.v[e] = to_float(row[d + e]);
    }
    return slice;
}

// An online softmax over some of the keys: sum of exp(s - max) and of exp(s - max) v, the latter in the lane's columns.
template <class T>
struct Partial {
    float max = -INFINITY, sum = 0;
    Slice<T> out = {};

    // What exp(s) is measured against. No key yet: anything finite will do.
    __device__ float shift() const { return max == -INFINITY ? 0 : max; }
    __device__ void raise(float new_max) {
        const float old = max;
        max = fmaxf(max, new_max);
        const float factor = expf(old - shift());
        sum *= factor;
#pragma unroll
        for (int e = 0; e < Pack<T>::size; e++) out.v[e] *= factor;
    }
    __device__ void add(float score, const Slice<T>& v) {
        const float p = expf(score - shift());
        sum += p;
#pragma unroll
        for (int e = 0; e < Pack<T>::size; e++) out.v[e] += p * v.v[e];
    }
    __device__ void merge(float other_max, float other_sum, const Slice<T>& other) {
        raise(other_max);
        const float factor = expf(other_max - shift());
        sum += other_sum * factor;
#pragma unroll
        for (int e = 0; e < Pack<T>::size; e++) out.v[e] += other.v[e] * factor;
    }
};

// Combines the partial results of all groups of `lanes` lanes in a warp: lanes with the same columns are added.
template <class T>
__device__ inline void merge_groups(Partial<T>& mine, int lanes) {
    for (int offset = lanes; offset < warp_size; offset *= 2) {
        Slice<T> other;
#pragma unroll
        for (int e = 0; e < Pack<T>::size; e++) other.v[e] = __shfl_xor_sync(full_mask, mine.out.v[e], offset);
        const float max = __shfl_xor_sync(full_mask, mine.max, offset);
        mine.merge(max, __shfl_xor_sync(full_mask, mine.sum, offset), other);
    }
}

// One block = one query of one head. `lanes` (a power of two) neighbouring lanes share a key, a pack of columns each;
// these groups take keys in turn, and their partial results are merged in a fixed order.
template <class T>
__global__ void __launch_bounds__(decode_threads) attend_one(Attend<T> a, int lanes) {
    constexpr int pack = Pack<T>::size;
    SHARED(float, maxima, [decode_warps]);
    SHARED(float, sums, [decode_warps]);
    SHARED(float, outs, [decode_warps][warp_size * pack]);
    const int64_t t = blockIdx.x % a.n, head = blockIdx.x / a.n, b = head / a.heads, h = head % a.heads;
    const HeadRows<const T> k = a.k.of(b, h, a.size), v = a.v.of(b, h, a.size);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size, d = lane % lanes * pack;
    const float scale = 1 / sqrtf(float(a.size));
    const Slice<T> q = load_slice(a.q.of(b, h, a.size)[t], d, a.size, a.packed);
    Partial<T> mine;
    const int64_t keys = a.first + t + 1;
    const int groups = decode_threads / lanes, group = threadIdx.x / lanes;
    for (int64_t j0 = 0; j0 < keys; j0 += groups * keys_at_once) {
        Slice<T> key[keys_at_once], value[keys_at_once];
        float score[keys_at_once], max = -INFINITY;
#pragma unroll
        for (int u = 0; u < keys_at_once; u++) {
            const int64_t j = j0 + u * groups + group;
            key[u] = j < keys ? load_slice(k[j], d, a.size, a.packed) : Slice<T>{};
            value[u] = j < keys ? load_slice(v[j], d, a.size, a.packed) : Slice<T>{};
        }
#pragma unroll
        for (int u = 0; u < keys_at_once; u++) {
            score[u] = 0;
#pragma unroll
            for (int e = 0; e < pack; e++) score[u] += q.v[e] * key[u].v[e];
            for (int offset = lanes / 2; offset > 0; offset /= 2)
                score[u] += __shfl_xor_sync(full_mask, score[u], offset);
            score[u] = j0 + u * groups + group < keys ? score[u] * scale : -INFINITY;
            max = fmaxf(max, score[u]);
        }
        mine.raise(max);
#pragma unroll
        for (int u = 0; u < keys_at_once; u++) mine.add(score[u], value[u]);
    }
    merge_groups(mine, lanes);
    if (lane == 0) maxima[warp] = mine.max, sums[warp] = mine.sum;
    if (lane < lanes)
        for (int e = 0; e < pack; e++) outs[warp][d + e] = mine.out.v[e];
    __syncthreads();
    float max = -INFINITY, sum = 0;
    for (int w = 0; w < decode_warps; w++) max = fmaxf(max, maxima[w]);
    for (int w = 0; w < decode_warps; w++) sum += sums[w] * expf(maxima[w] - max);
    for (int c = int(threadIdx.x); c < a.size; c += decode_threads) {
        float out = 0;
        for (int w = 0; w < decode_warps; w++) out += outs[w][c] * expf(maxima[w] - max);
        a.out.of(b, h, a.size)[t][c] = from_float<T>(out / sum);
    }
}

}  // namespace

void attention_extend(Tensor out, Tensor keys, Tensor values, Tensor qkv, int64_t first_position, int64_t heads,
                      Context& ctx) {
    const AttentionShape s = check_attention_extend(out, keys, values, qkv, first_position, heads);
    dispatch(qkv.dtype, [&](auto zero) {
        using T = decltype(zero);
        Op op(ctx, "attention_extend", s.forward_flops(first_position), 0,
              attention_extend_bytes(s, out, qkv, first_position));
        if (!op.run) return;
        const int64_t context = keys.shape[1];
        const Heads<T> k = heads_of(ptr<T>(keys), context, s), v = heads_of(ptr<T>(values), context, s);
        const bool packed = rows_are_packed<T>(s, out, keys, values, qkv);
        launch(ctx, append<T>, grid_of(s.B * s.T), 256, 0, k, v, ptr<const T>(qkv), first_position, s.T, s.C, packed);
        const Attend<T> a{heads_of(ptr<T>(out), s.T, s),
                          nullptr,
                          heads_of_qkv(ptr<const T>(qkv), 0, s),
                          {k.data, k.sequence, k.row},
                          {v.data, v.sequence, v.row},
                          s.B,
                          s.H,
                          first_position,
                          s.T,
                          int(s.D),
                          packed};
        if (s.T >= enough_for_tiles || s.D > warp_size * Pack<T>::size) return attend(a, ctx);
        int lanes = 1;
        while (lanes * Pack<T>::size < s.D) lanes *= 2;
        launch(ctx, attend_one<T>, grid_of(s.B * s.H * s.T), decode_threads, 0, a, lanes);
    });
}

}  // namespace llmc
