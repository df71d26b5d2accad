// Moving rows of tokens to the experts and back on the GPU. Memory-bound: every row of an expert is read or written
// once, in 128-bit packs where rows allow it.
#include "llmc/ops/checks/moe.h"
#include "llmc/ops/cuda/vector.cuh"

namespace llmc {

namespace {

// gathered[row,:] = weights[n,e] x[n,:], slots[row] = n * experts + e; zeros if it is negative. A group of lanes = one
// row [C].
template <class T, int W>
__global__ void gather_kernel(T* gathered, const T* x, const int32_t* slots, const float* weights, MoeShape s,
                              Team team) {
    const int64_t row = int64_t(blockIdx.x) * team.groups + threadIdx.x / team.lanes;
    if (row >= s.rows) return;
    const int32_t pair = slots[row];
    const int64_t n = pair < 0 ? -1 : pair / int32_t(s.experts);
    const float weight = weights && pair >= 0 ? weights[pair] : 1.0f;
    for (int64_t c = int64_t(threadIdx.x % team.lanes) * W; c < s.columns; c += int64_t(team.lanes) * W) {
        Floats<W> v = zeros<W>();
        if (n >= 0) {
            v = load<W>(x + n * s.columns + c);
            for (int j = 0; j < W; j++) v[j] *= weight;
        }
        store<W>(gathered + row * s.columns + c, v);
    }
}

// Calls f(e, row, bit) for the experts that have a row for a token, ascending, with e = first + bit, row = where[e];
// behind each 32 experts, after(first). A warp calls it together, f as well.
template <class F, class After>
__device__ inline void for_rows(const int32_t* where, int64_t experts, F f, After after) {
    const int lane = threadIdx.x % warp_size;
    for (int64_t first = 0; first < experts; first += warp_size) {
        const int32_t mine = first + lane < experts ? where[first + lane] : -1;
        for (unsigned left = __ballot_sync(full_mask, mine >= 0); left != 0; left &= left - 1) {
            const int bit = __ffs(int(left)) - 1;
            f(first + bit, int64_t(__shfl_sync(full_mask, mine, bit)), bit);
        }
        after(first);
    }
}

// out[n,:] (+)= sum over e with row = where[n,e] >= 0, ascending, of weights[n,e] y[row,:]. A group of lanes, whole
// warps = one row [C].
template <class T, int W>
__global__ void scatter_kernel(T* out, const T* y, const int32_t* where, const float* weights, MoeShape s, Team team,
                               bool accumulate) {
    const int64_t n = int64_t(blockIdx.x) * team.groups + threadIdx.x / team.lanes;
    if (n >= s.sequences * s.positions) return;  // a whole warp
    const int64_t experts = s.experts, mine = int64_t(threadIdx.x % team.lanes) * W;
    for (int64_t first = 0; first < s.columns; first += int64_t(team.lanes) * W) {
        const int64_t c = first + mine;
        Floats<W> sum = zeros<W>();
        auto add = [&](int64_t e, int64_t row, int) {
            if (c >= s.columns) return;
            const float weight = weights ? weights[n * experts + e] : 1.0f;
            const Floats<W> v = load<W>(y + row * s.columns + c);
            for (int j = 0; j < W; j++) sum[j] += weight * v[j];
        };
        for_rows(where + n * experts, experts, add, [](int64_t) {});
        if (c >= s.columns) continue;
        T* to = out + n * s.columns + c;
        if (accumulate) {
            const Floats<W> before = load<W>(to);
            for (int j = 0; j < W; j++) sum[j] += before[j];
        }
        store<W>(to, sum);
    }
}

// dweights[n,e] (+)= <dout[n,:], y[where[n,e],:]>, 0 without a row. One warp = one token.
template <class T, int W>
__global__ void weights_backward_kernel(float* dweights, const T* dout, const T* y, const int32_t* where, MoeShape s,
                                        bool accumulate) {
    const int lane = threadIdx.x % warp_size;
    const int64_t n = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / warp_size;
    if (n >= s.sequences * s.positions) return;
    const T* d = dout + n * s.columns;
    float mine = 0;  // of expert first + lane
    auto product = [&](int64_t, int64_t at, int bit) {
        const T* row = y + at * s.columns;
        float sum = 0;
        for (int64_t c = int64_t(lane) * W; c < s.columns; c += int64_t(warp_size) * W) {
            const Floats<W> a = load<W>(d + c), b = load<W>(row + c);
            for (int j = 0; j < W; j++) sum += a[j] * b[j];
        }
        sum = warp_sum(sum);
        if (lane == bit) mine = sum;
    };
    auto write = [&](int64_t first) {
        if (first + lane < s.experts) {
            float* to = dweights + n * s.experts + first + lane;
            *to = accumulate ? *to + mine : mine;
        }
        mine = 0;
    };
    for_rows(where + n * s.experts, s.experts, product, write);
}

// Calls f(T{}, W) with W = the elements that rows of both tensors can be accessed by.
template <class F>
void dispatch_rows(const MoeShape& s, const Tensor& a, const Tensor& b, F&& f) {
    dispatch(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        dispatch_width<T>(s.columns % Pack<T>::size == 0 && aligned(a, b), [&](auto width) { f(zero, width); });
    });
}

}  // namespace

void moe_gather(Tensor gathered, Tensor x, Tensor slots, int64_t experts, Tensor weights, Context& ctx) {
    const MoeShape s = check_gather(gathered, x, slots, experts, weights);
    Op op(ctx, "moe_gather", gather_flops(s, bool(weights)), 0, total_bytes({gathered, x, slots, weights}));
    if (!op.run || s.moved() == 0) return;
    dispatch_rows(s, gathered, x, [&](auto zero, auto width) {
        using T = decltype(zero);
        constexpr int W = width.value;
        const Team team = team_for(s.columns, W);
        launch(ctx, gather_kernel<T, W>, grid_of(ceil_div(s.rows, team.groups)), team.threads(), 0, ptr<T>(gathered),
               ptr<T>(x), ptr<int32_t>(slots), ptr<float>(weights), s, team);
    });
}

void moe_scatter(Tensor out, Tensor y, Tensor where, Tensor weights, bool accumulate, Context& ctx) {
    const MoeShape s = check_scatter(out, y, where, weights);
    Op op(ctx, "moe_scatter", scatter_flops(s, bool(weights)), 0,
          total_bytes({out, accumulate ? out : Tensor(), y, where, weights}));
    if (!op.run || s.tokens() * s.columns == 0) return;
    dispatch_rows(s, out, y, [&](auto zero, auto width) {
        using T = decltype(zero);
        constexpr int W = width.value;
        const Team team = team_for(s.columns, W);
        launch(ctx, scatter_kernel<T, W>, grid_of(ceil_div(s.tokens(), team.groups)), team.threads(), 0, ptr<T>(out),
               ptr<T>(y), ptr<int32_t>(where), ptr<float>(weights), s, team, accumulate);
    });
}

void moe_weights_backward(Tensor dweights, Tensor dout, Tensor y, Tensor where, bool accumulate, Context& ctx) {
    const MoeShape s = check_moe_weights_backward(dweights, dout, y, where);
    Op op(ctx, "moe_weights_backward", moe_weights_flops(s), 0,
          total_bytes({dweights, accumulate ? dweights : Tensor(), dout, y, where}));
    if (!op.run) return;
    dispatch_rows(s, dout, y, [&](auto zero, auto width) {
        using T = decltype(zero);
        constexpr int W = width.value;
        launch(ctx, weights_backward_kernel<T, W>, grid_of(ceil_div(s.tokens(), most_threads / warp_size)),
               most_threads, 0, ptr<float>(dweights), ptr<T>(dout), ptr<T>(y), ptr<int32_t>(where), s, accumulate);
    });
}

}  // namespace llmc
