// Mixture of Tokens on the GPU: softmax over the tokens of a group or over experts, its gradient, its one-hot form, and
// its statistics (Antoniak et al. 2023). All f32.
//
// Softmaxes (checks/mot.h) says where the values of a softmax lie: `stride` elements apart. Two layouts are all there
// is:
//     contiguous  stride 1 (over the experts): a few neighbouring lanes share a softmax, each takes every `lanes`-th
//                 value, and shuffles combine what they found.
//     strided     neighbouring lanes take neighbouring softmaxes, the warps of a block share their axis, and shared
//                 memory combines what they found.
// Either way a thread meets N neighbouring floats at a time: N = 4, one 128-bit access, where the lengths allow it,
// else 1. They belong to one softmax if contiguous, to N softmaxes if strided. Values are read once from memory and
// again, once or twice, from the caches: a block's share is g * 512 bytes.
#include "llmc/ops/checks/mot.h"
#include "llmc/ops/cuda/cuda.cuh"

namespace llmc {

namespace {

constexpr int softmax_warps = 8, softmax_block = softmax_warps * warp_size;

// The softmaxes of one tensor, cut into tiles: what a block does at a time.
struct SoftmaxTiles {
    Softmaxes all;
    int lanes;  // that share a softmax if contiguous: a power of two
    int64_t tiles;
};

template <int N>
struct alignas(4 * N) Floats {
    float v[N];
    __device__ float& operator[](int i) { return v[i]; }
    __device__ const float& operator[](int i) const { return v[i]; }
};

template <int N>
__device__ Floats<N> load(const float* p) {
    if constexpr (N == 1)
        return {*p};
    else {
        const Pack<float> pack = load_pack(p);
        return {pack[0], pack[1], pack[2], pack[3]};
    }
}
template <int N>
__device__ void store(float* p, const Floats<N>& x) {
    if constexpr (N == 1)
        *p = x[0];
    else
        store_pack(p, Pack<float>{x[0], x[1], x[2], x[3]});
}

// One thread's share of a tile: N floats at first + i * stride for i = begin, begin + step, ... < end.
struct Share {
    int64_t first, stride, begin, step, end;
    __device__ int64_t at(int64_t i) const { return first + i * stride; }
};

template <bool contiguous, int N>
__device__ Share share_of_thread(const SoftmaxTiles& s, int64_t tile) {
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const auto [count, length, stride] = s.all;
    if constexpr (contiguous) {
        const int64_t k = (tile * softmax_block + threadIdx.x) / s.lanes;
        return {k * length, N, lane % s.lanes, s.lanes, k < count ? length / N : 0};
    } else {
        const int64_t k = (tile * warp_size + lane) * N;
        return {k / stride * stride * length + k % stride, stride, warp, softmax_warps, k < count ? length : 0};
    }
}

// Where along its softmax the thread's j-th float of step i stands.
template <bool contiguous, int N>
__device__ int64_t place(int64_t i, int j) {
    return contiguous ? i * N + j : i;
}

struct Best {  // a value and where it stands
    float value;
    int64_t place;
};

template <class V>
__device__ V from_lane(V x, int xor_mask) {
    return __shfl_xor_sync(full_mask, x, xor_mask);
}
__device__ inline Best from_lane(Best x, int xor_mask) {
    return {__shfl_xor_sync(full_mask, x.value, xor_mask), __shfl_xor_sync(full_mask, x.place, xor_mask)};
}

// x[j] becomes f of the x[j] of all threads that share the softmax of float j, the same for all of them: f must not
// mind the order of its arguments. All threads of the block call it.
template <bool contiguous, int N, class V, class F>
__device__ void combine(V (&x)[N], int lanes, F f) {
    if constexpr (contiguous) {
        for (int j = 1; j < N; j++) x[0] = f(x[0], x[j]);
        for (int offset = lanes / 2; offset > 0; offset /= 2) x[0] = f(x[0], from_lane(x[0], offset));
        for (int j = 1; j < N; j++) x[j] = x[0];
    } else {
        SHARED(V, partial, [softmax_warps][warp_size * N]);
        const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
        __syncthreads();  // an earlier call may still be read
        for (int j = 0; j < N; j++) partial[warp][lane * N + j] = x[j];
        __syncthreads();
        for (int j = 0; j < N; j++) {
            x[j] = partial[0][lane * N + j];
            for (int w = 1; w < softmax_warps; w++) x[j] = f(x[j], partial[w][lane * N + j]);
        }
    }
}

struct Add {
    template <class V>
    __device__ V operator()(V a, V b) const {
        return a + b;
    }
};
struct Larger {
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Better {  // the larger value, the first of equals
    __device__ static bool beats(const Best& a, const Best& b) {
        return a.value > b.value || (a.value == b.value && a.place < b.place);
    }
    __device__ Best operator()(const Best& a, const Best& b) const { return beats(b, a) ? b : a; }
};

// weights = exp((logits - max) * scale) / sum of the same, scale = 1 / temperature. One block = one tile. A NaN slips
// through the maximum, but not through the sum.
template <bool contiguous, int N>
__global__ void softmax_forward_kernel(float* weights, const float* logits, SoftmaxTiles s, float scale) {
    const Share mine = share_of_thread<contiguous, N>(s, blockIdx.x);
    float top[N], sum[N];
    for (int j = 0; j < N; j++) top[j] = -INFINITY, sum[j] = 0;
    for (int64_t i = mine.begin; i < mine.end; i += mine.step) {
        const Floats<N> l = load<N>(logits + mine.at(i));
        for (int j = 0; j < N; j++) top[j] = fmaxf(top[j], l[j]);
    }
    combine<contiguous>(top, s.lanes, Larger());
    for (int64_t i = mine.begin; i < mine.end; i += mine.step) {
        const Floats<N> l = load<N>(logits + mine.at(i));
        for (int j = 0; j < N; j++) sum[j] += expf((l[j] - top[j]) * scale);
    }
    combine<contiguous>(sum, s.lanes, Add());
    for (int j = 0; j < N; j++) sum[j] = 1 / sum[j];
    for (int64_t i = mine.begin; i < mine.end; i += mine.step) {
        Floats<N> l = load<N>(logits + mine.at(i));
        for (int j = 0; j < N; j++) l[j] = expf((l[j] - top[j]) * scale) * sum[j];
        store(weights + mine.at(i), l);
    }
}

// dlogits (+)= w (dw - mean) scale with mean = sum of w dw over the softmax, scale = 1 / temperature. One block = one
// tile.
template <bool contiguous, int N>
__global__ void softmax_backward_kernel(float* dlogits, const float* dweights, const float* weights, SoftmaxTiles s,
                                        float scale, bool accumulate) {
    const Share mine = share_of_thread<contiguous, N>(s, blockIdx.x);
    float mean[N] = {};
    for (int64_t i = mine.begin; i < mine.end; i += mine.step) {
        const Floats<N> w = load<N>(weights + mine.at(i)), dw = load<N>(dweights + mine.at(i));
        for (int j = 0; j < N; j++) mean[j] += w[j] * dw[j];
    }
    combine<contiguous>(mean, s.lanes, Add());
    for (int64_t i = mine.begin; i < mine.end; i += mine.step) {
        const Floats<N> w = load<N>(weights + mine.at(i)), dw = load<N>(dweights + mine.at(i));
        Floats<N> dl = {};
        if (accumulate) dl = load<N>(dlogits + mine.at(i));
        for (int j = 0; j < N; j++) dl[j] += w[j] * (dw[j] - mean[j]) * scale;
        store(dlogits + mine.at(i), dl);
    }
}

// In place: 1 at the first maximum of each softmax, 0 elsewhere. One block = one tile. A NaN never beats anything, and
// is never beaten where it stands first: as in a plain loop from the first value on.
template <bool contiguous, int N>
__global__ void discretize_kernel(float* weights, SoftmaxTiles s) {
    const Share mine = share_of_thread<contiguous, N>(s, blockIdx.x);
    Best best[N];
    for (int j = 0; j < N; j++) best[j] = {-INFINITY, INT64_MAX};
    for (int64_t i = mine.begin; i < mine.end; i += mine.step) {
        const Floats<N> w = load<N>(weights + mine.at(i));
        for (int j = 0; j < N; j++) {
            const int64_t here = place<contiguous, N>(i, j);
            const Best candidate{here == 0 && isnan(w[j]) ? INFINITY : w[j], here};
            if (Better::beats(candidate, best[j])) best[j] = candidate;
        }
    }
    combine<contiguous>(best, s.lanes, Better());
    for (int64_t i = mine.begin; i < mine.end; i += mine.step) {
        Floats<N> w;
        for (int j = 0; j < N; j++) w[j] = place<contiguous, N>(i, j) == best[j].place ? 1.0f : 0.0f;
        store(weights + mine.at(i), w);
    }
}

constexpr int statistics = 4;                    // sums of: entropy, its square, logit, its square
constexpr int64_t most_statistics_blocks = 256;  // a fixed number: the order of the sums must not depend on the device

// partial[block] = the sums of a block, over tiles block, block + gridDim.x, ... Entropy of a softmax:
// H = -sum w log(w + 1e-8), over log(length); 1 if the length is 1. Whoever has the first value of a softmax counts it.
template <bool contiguous, int N>
__global__ void statistics_kernel(double* partial, const float* weights, const float* logits, SoftmaxTiles s) {
    double sums[statistics] = {};
    for (int64_t tile = blockIdx.x; tile < s.tiles; tile += gridDim.x) {
        const Share mine = share_of_thread<contiguous, N>(s, tile);
        double h[N] = {};
        for (int64_t i = mine.begin; i < mine.end; i += mine.step) {
            const Floats<N> w = load<N>(weights + mine.at(i)), l = load<N>(logits + mine.at(i));
            for (int j = 0; j < N; j++) {
                h[j] -= double(w[j] * logf(w[j] + 1e-8f));
                sums[2] += double(l[j]), sums[3] += double(l[j]) * double(l[j]);
            }
        }
        combine<contiguous>(h, s.lanes, Add());
        if (mine.begin > 0 || mine.end == 0) continue;
        for (int j = 0; j < (contiguous ? 1 : N); j++) {
            const double entropy = s.all.length == 1 ? 1.0 : h[j] / log(double(s.all.length));
            sums[0] += entropy, sums[1] += entropy * entropy;
        }
    }
    for (int q = 0; q < statistics; q++) {
        const double sum = block_sum(sums[q]);
        if (threadIdx.x == 0) partial[blockIdx.x * statistics + q] = sum;
    }
}

// stats = mean and standard deviation (dividing by n - 1; 0 for one value) of the entropies and of the logits. One
// block.
__global__ void finish_statistics_kernel(double* stats, const double* partial, int64_t blocks, int64_t softmaxes,
                                         int64_t logits) {
    for (int which = 0; which < 2; which++) {
        double sum = 0, square = 0;
        for (int64_t b = threadIdx.x; b < blocks; b += blockDim.x) {
            sum += partial[b * statistics + 2 * which];
            square += partial[b * statistics + 2 * which + 1];
        }
        sum = block_sum(sum), square = block_sum(square);
        const int64_t n = which == 0 ? softmaxes : logits;
        const double mean = n > 0 ? sum / double(n) : 0, squares = square - sum * mean;
        if (threadIdx.x != 0) continue;
        stats[2 * which] = mean;
        stats[2 * which + 1] = n > 1 && !(squares <= 0) ? sqrt(squares / double(n - 1)) : 0;  // NaN stays
    }
}

// Calls f(contiguous, N, tiles) with the first two as constants. can_pack: all tensors are aligned.
template <class F>
void with_tiles(const MotShape& shape, SoftmaxOver over, bool can_pack, F&& f) {
    const Softmaxes all = softmaxes(shape, over);
    const bool contiguous = all.stride == 1, packed = can_pack && (contiguous ? all.length : all.stride) % 4 == 0;
    const int n = packed ? 4 : 1;
    int lanes = 1;
    while (lanes < warp_size && lanes < ceil_div(all.length, n)) lanes *= 2;
    const int64_t in_tile = contiguous ? softmax_block / lanes : warp_size * n;
    const SoftmaxTiles s{all, lanes, ceil_div(all.count, in_tile)};
    using One = std::integral_constant<int, 1>;
    using Four = std::integral_constant<int, 4>;
    if (contiguous)
        packed ? f(std::true_type(), Four(), s) : f(std::true_type(), One(), s);
    else
        packed ? f(std::false_type(), Four(), s) : f(std::false_type(), One(), s);
}

}  // namespace

void mot_softmax_forward(Tensor weights, Tensor logits, SoftmaxOver over, Group group, double temperature,
                         Context& ctx) {
    MotShape shape = check_softmax_forward(weights, logits, group, temperature);
    check_f32(logits, "logits");
    Op op(ctx, "mot_softmax_forward", 5 * logits.numel(), 0, total_bytes({weights, logits}));
    if (!op.run || logits.numel() == 0) return;
    with_tiles(shape, over, aligned(weights, logits), [&](auto contiguous, auto n, const SoftmaxTiles& s) {
        launch(ctx, softmax_forward_kernel<contiguous(), n()>, grid_of(s.tiles), softmax_block, 0, ptr<float>(weights),
               ptr<float>(logits), s, float(1 / temperature));
    });
}

void mot_softmax_backward(Tensor dlogits, Tensor dweights, Tensor weights, SoftmaxOver over, Group group,
                          double temperature, bool accumulate, Context& ctx) {
    MotShape shape = check_softmax_backward(dlogits, dweights, weights, group, temperature);
    check_f32(weights, "weights");
    Op op(ctx, "mot_softmax_backward", 5 * weights.numel(), 0,
          total_bytes({dlogits, dweights, weights, accumulate ? dlogits : Tensor()}));
    if (!op.run || weights.numel() == 0) return;
    with_tiles(shape, over, aligned(dlogits, dweights, weights), [&](auto contiguous, auto n, const SoftmaxTiles& s) {
        launch(ctx, softmax_backward_kernel<contiguous(), n()>, grid_of(s.tiles), softmax_block, 0, ptr<float>(dlogits),
               ptr<float>(dweights), ptr<float>(weights), s, float(1 / temperature), accumulate);
    });
}

void mot_discretize(Tensor weights, SoftmaxOver over, Group group, Context& ctx) {
    MotShape shape = check_discretize(weights, group);
    check_f32(weights, "weights");
    Op op(ctx, "mot_discretize", 0, 0, total_bytes({weights, weights}));
    if (!op.run || weights.numel() == 0) return;
    with_tiles(shape, over, aligned(weights), [&](auto contiguous, auto n, const SoftmaxTiles& s) {
        launch(ctx, discretize_kernel<contiguous(), n()>, grid_of(s.tiles), softmax_block, 0, ptr<float>(weights), s);
    });
}

void mot_statistics(Tensor stats, Tensor weights, Tensor logits, SoftmaxOver over, Group group, Context& ctx) {
    MotShape shape = check_statistics(stats, weights, logits, group);
    check_f32(weights, "weights");
    with_tiles(shape, over, aligned(weights, logits), [&](auto contiguous, auto n, const SoftmaxTiles& s) {
        const int64_t blocks = std::min(s.tiles, most_statistics_blocks);
        Op op(ctx, "mot_statistics", 0, blocks * statistics * int64_t(sizeof(double)),
              total_bytes({stats, weights, logits}));
        if (!op.run) return;
        double* partial = static_cast<double*>(op.workspace);
        launch(ctx, statistics_kernel<contiguous(), n()>, grid_of(blocks), softmax_block, 0, partial,
               ptr<float>(weights), ptr<float>(logits), s);
        launch(ctx, finish_statistics_kernel, 1, softmax_block, 0, ptr<double>(stats), partial, blocks, s.all.count,
               weights.numel());
    });
}

}  // namespace llmc
