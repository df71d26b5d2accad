// What the router of sparse experts is worth and costs, on the GPU: gates that sum to one, load balancing, z-loss. All
// f32, sums over tokens in double.
#include "llmc/ops/checks/moe.h"
#include "llmc/ops/cuda/vector.cuh"

namespace llmc {

namespace {

constexpr int64_t most_sum_blocks = 1024;  // a fixed number: the order of the sums must not depend on the device

// Rows [E] of tokens: a few neighbouring lanes, a power of two, share a row, W floats at a time. A thread meets the
// experts first(W), first(W) + step(W), ... < experts.
struct RowLanes {
    int64_t tokens, experts;
    int lanes;
    __device__ int64_t token() const { return (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / lanes; }
    __device__ int64_t first(int width) const { return int64_t(threadIdx.x % lanes) * width; }
    __device__ int64_t step(int width) const { return int64_t(lanes) * width; }
    __device__ float sum(float x) const {  // over the lanes of a row
        for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(full_mask, x, offset);
        return x;
    }
    __device__ float max(float x) const {
        for (int offset = lanes / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(full_mask, x, offset));
        return x;
    }
    int64_t blocks() const { return ceil_div(tokens * lanes, most_threads); }
};

RowLanes row_lanes(const MoeShape& s, int width) {
    int lanes = 1;
    while (lanes < warp_size && lanes * width < s.experts) lanes *= 2;
    return {s.tokens(), s.experts, lanes};
}

// Bit j: expert j of W neighbours was chosen.
template <int W>
__device__ inline uint32_t chosen_bits(const int32_t* where) {
    if constexpr (W == 1) {
        return *where != -1;
    } else {
        const Pack<int32_t> pack = load_pack(where);
        uint32_t bits = 0;
        for (int j = 0; j < W; j++) bits |= uint32_t(pack[j] != -1) << j;
        return bits;
    }
}

// The sum of probs over the chosen experts of a token, to all lanes of its row. A whole warp calls it.
template <int W>
__device__ inline float sum_of_chosen(const float* probs, const int32_t* where, int64_t n, const RowLanes& r) {
    float sum = 0;
    for (int64_t e = r.first(W); n < r.tokens && e < r.experts; e += r.step(W)) {
        const Floats<W> p = load<W>(probs + n * r.experts + e);
        const uint32_t chosen = chosen_bits<W>(where + n * r.experts + e);
        for (int j = 0; j < W; j++) sum += chosen >> j & 1 ? p[j] : 0;
    }
    return r.sum(sum);
}

// gates[n,e] = probs[n,e] / sum over the chosen, 0 if not chosen. The lanes of a row = one token.
template <int W>
__global__ void renormalize_kernel(float* gates, const float* probs, const int32_t* where, RowLanes r) {
    const int64_t n = r.token();
    const float sum = sum_of_chosen<W>(probs, where, n, r);
    for (int64_t e = r.first(W); n < r.tokens && e < r.experts; e += r.step(W)) {
        const int64_t at = n * r.experts + e;
        Floats<W> p = load<W>(probs + at);
        const uint32_t chosen = chosen_bits<W>(where + at);
        for (int j = 0; j < W; j++) p[j] = chosen >> j & 1 ? p[j] / sum : 0;
        store<W>(gates + at, p);
    }
}

// dprobs[n,e] = (dgates[n,e] - sum of gates dgates) / sum of probs, sums over the chosen; 0 if not chosen. The lanes of
// a row = one token. dprobs may be dgates: a thread reads before it writes, and sums are made before.
template <int W>
__global__ void renormalize_backward_kernel(float* dprobs, const float* dgates, const float* gates, const float* probs,
                                            const int32_t* where, RowLanes r) {
    const int64_t n = r.token();
    const float sum = sum_of_chosen<W>(probs, where, n, r);
    float mean = 0;
    for (int64_t e = r.first(W); n < r.tokens && e < r.experts; e += r.step(W)) {
        const int64_t at = n * r.experts + e;
        const Floats<W> g = load<W>(gates + at), dg = load<W>(dgates + at);
        const uint32_t chosen = chosen_bits<W>(where + at);
        for (int j = 0; j < W; j++) mean += chosen >> j & 1 ? g[j] * dg[j] : 0;
    }
    mean = r.sum(mean);
    for (int64_t e = r.first(W); n < r.tokens && e < r.experts; e += r.step(W)) {
        const int64_t at = n * r.experts + e;
        Floats<W> d = load<W>(dgates + at);
        const uint32_t chosen = chosen_bits<W>(where + at);
        for (int j = 0; j < W; j++) d[j] = chosen >> j & 1 ? (d[j] - mean) / sum : 0;
        store<W>(dprobs + at, d);
    }
}

// partial[block] = {sum of counts_e probs[n,e] over the block's elements, its filled slots}. A thread walks on by the
// size of the grid, and its expert with it.
__global__ void balance_kernel(double2* partial, const float* probs, const int32_t* counts, const int32_t* slots,
                               int64_t pairs, int64_t experts, int64_t rows) {
    const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
    const int64_t step = threads % experts;
    double sum = 0, filled = 0;
    int64_t e = thread % experts;
    for (int64_t i = thread; i < pairs; i += threads) {
        sum += double(probs[i]) * counts[e];
        e += step;
        if (e >= experts) e -= experts;
    }
    for (int64_t i = thread; i < rows; i += threads) filled += slots[i] >= 0;
    sum = block_sum(sum), filled = block_sum(filled);
    if (threadIdx.x == 0) partial[blockIdx.x] = {sum, filled};
}

// stats = loss, share of dropped pairs, smallest and largest load. One warp.
__global__ void finish_balance_kernel(double* stats, const double2* partial, int64_t blocks, const int32_t* counts,
                                      int64_t experts, int64_t tokens) {
    double sum = 0, filled = 0, chosen = 0;
    int32_t least = INT32_MAX, most = 0;
    for (int64_t b = threadIdx.x; b < blocks; b += warp_size) sum += partial[b].x, filled += partial[b].y;
    for (int64_t e = threadIdx.x; e < experts; e += warp_size) {
        chosen += counts[e];
        least = min(least, counts[e]), most = max(most, counts[e]);
    }
    sum = warp_sum(sum), filled = warp_sum(filled), chosen = warp_sum(chosen);
    for (int offset = warp_size / 2; offset > 0; offset /= 2) {
        least = min(least, __shfl_xor_sync(full_mask, least, offset));
        most = max(most, __shfl_xor_sync(full_mask, most, offset));
    }
    if (threadIdx.x != 0) return;
    const double n = double(tokens), each = double(experts);
    stats[0] = tokens > 0 ? each * sum / n / n : 0;
    stats[1] = chosen > 0 ? (chosen - filled) / chosen : 0;
    stats[2] = chosen > 0 ? least * each / chosen : 0;
    stats[3] = chosen > 0 ? most * each / chosen : 0;
}

// dprobs[n,e] += factor counts_e. One thread = one element.
__global__ void balance_backward_kernel(float* dprobs, const int32_t* counts, double factor, int64_t pairs,
                                        int64_t experts) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < pairs) dprobs[i] += float(factor * counts[i % experts]);
}

// lse[n] = log sum exp of logits[n,:], partial[block] = the sum of lse^2 over the block's tokens. The lanes of a row =
// one token at a time; the block walks on by the size of the grid. A NaN slips through the maximum, but not through the
// sum.
template <int W>
__global__ void z_loss_kernel(double* partial, float* lse, const float* logits, RowLanes r) {
    const int64_t at_once = blockDim.x / r.lanes;
    double squares = 0;
    for (int64_t block = blockIdx.x * at_once; block < r.tokens; block += gridDim.x * at_once) {
        const int64_t n = block + threadIdx.x / r.lanes, end = n < r.tokens ? r.experts : 0;
        const float* row = logits + n * r.experts;
        float top = -INFINITY, sum = 0;
        for (int64_t e = r.first(W); e < end; e += r.step(W)) {
            const Floats<W> l = load<W>(row + e);
            for (int j = 0; j < W; j++) top = fmaxf(top, l[j]);
        }
        top = r.max(top);
        for (int64_t e = r.first(W); e < end; e += r.step(W)) {
            const Floats<W> l = load<W>(row + e);
            for (int j = 0; j < W; j++) sum += expf(l[j] - top);
        }
        const float value = top + logf(r.sum(sum));
        if (n < r.tokens && r.first(1) == 0) {
            lse[n] = value;
            squares += double(value) * value;
        }
    }
    squares = block_sum(squares);
    if (threadIdx.x == 0) partial[blockIdx.x] = squares;
}

// loss = the mean over tokens. One warp.
__global__ void finish_z_loss_kernel(double* loss, const double* partial, int64_t blocks, int64_t tokens) {
    double sum = 0;
    for (int64_t b = threadIdx.x; b < blocks; b += warp_size) sum += partial[b];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) *loss = tokens > 0 ? sum / double(tokens) : 0;
}

// dlogits[n,e] += factor lse[n] probs[n,e]. One thread = W neighbours of one row.
template <int W>
__global__ void z_loss_backward_kernel(float* dlogits, const float* lse, const float* probs, float factor,
                                       int64_t pairs, int64_t experts) {
    const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * W;
    if (i >= pairs) return;
    const float scale = factor * lse[int32_t(i) / int32_t(experts)];
    const Floats<W> p = load<W>(probs + i);
    Floats<W> d = load<W>(dlogits + i);
    for (int j = 0; j < W; j++) d[j] += scale * p[j];
    store<W>(dlogits + i, d);
}

// Calls f(W): rows of E floats of these tensors can be met W at a time.
template <class F, class... Tensors>
void dispatch_experts(const MoeShape& s, F&& f, const Tensors&... tensors) {
    dispatch_width<float>(s.experts % Pack<float>::size == 0 && aligned(tensors...), f);
}

}  // namespace

void moe_renormalize(Tensor gates, Tensor probs, Tensor where, Context& ctx) {
    const MoeShape s = check_renormalize(gates, probs, where);
    check_f32(probs, "probs");
    Op op(ctx, "moe_renormalize", renormalize_flops(s), 0, total_bytes({gates, probs, where}));
    if (!op.run) return;
    auto run = [&](auto width) {
        constexpr int W = width.value;
        const RowLanes r = row_lanes(s, W);
        launch(ctx, renormalize_kernel<W>, grid_of(r.blocks()), most_threads, 0, ptr<float>(gates), ptr<float>(probs),
               ptr<int32_t>(where), r);
    };
    dispatch_experts(s, run, gates, probs, where);
}

void moe_renormalize_backward(Tensor dprobs, Tensor dgates, Tensor gates, Tensor probs, Tensor where, Context& ctx) {
    const MoeShape s = check_renormalize_backward(dprobs, dgates, gates, probs, where);
    check_f32(probs, "probs");
    Op op(ctx, "moe_renormalize_backward", renormalize_backward_flops(s), 0,
          total_bytes({dprobs, dgates, gates, probs, where}));
    if (!op.run) return;
    auto run = [&](auto width) {
        constexpr int W = width.value;
        const RowLanes r = row_lanes(s, W);
        launch(ctx, renormalize_backward_kernel<W>, grid_of(r.blocks()), most_threads, 0, ptr<float>(dprobs),
               ptr<float>(dgates), ptr<float>(gates), ptr<float>(probs), ptr<int32_t>(where), r);
    };
    dispatch_experts(s, run, dprobs, dgates, gates, probs, where);
}

void moe_balance(Tensor stats, Tensor probs, Tensor counts, Tensor slots, Context& ctx) {
    const MoeShape s = check_balance(stats, probs, counts, slots);
    check_f32(probs, "probs");
    const int64_t blocks = std::min<int64_t>(ceil_div(std::max(s.pairs(), s.rows), most_threads), most_sum_blocks);
    Op op(ctx, "moe_balance", balance_flops(s), blocks * int64_t(sizeof(double2)),
          total_bytes({stats, probs, counts, slots}));
    if (!op.run) return;
    double2* partial = static_cast<double2*>(op.workspace);
    launch(ctx, balance_kernel, grid_of(blocks), most_threads, 0, partial, ptr<float>(probs), ptr<int32_t>(counts),
           ptr<int32_t>(slots), s.pairs(), s.experts, s.rows);
    launch(ctx, finish_balance_kernel, 1, warp_size, 0, ptr<double>(stats), partial, blocks, ptr<int32_t>(counts),
           s.experts, s.tokens());
}

void moe_balance_backward(Tensor dprobs, Tensor counts, double scale, Context& ctx) {
    const MoeShape s = check_balance_backward(dprobs, counts);
    check_f32(dprobs, "dprobs");
    Op op(ctx, "moe_balance_backward", balance_flops(s), 0, total_bytes({dprobs, dprobs, counts}));
    if (!op.run) return;
    const double n = double(s.tokens()), factor = scale * double(s.experts) / (n * n);
    launch(ctx, balance_backward_kernel, grid_of(ceil_div(s.pairs(), most_threads)), most_threads, 0,
           ptr<float>(dprobs), ptr<int32_t>(counts), factor, s.pairs(), s.experts);
}

void moe_z_loss(Tensor loss, Tensor lse, Tensor logits, Context& ctx) {
    const MoeShape s = check_z_loss(loss, lse, logits);
    check_f32(logits, "logits");
    Op op(ctx, "moe_z_loss", z_loss_flops(s), most_sum_blocks * int64_t(sizeof(double)),
          total_bytes({loss, lse, logits}));
    if (!op.run) return;
    double* partial = static_cast<double*>(op.workspace);
    auto run = [&](auto width) {
        constexpr int W = width.value;
        const RowLanes r = row_lanes(s, W);
        const int64_t blocks = std::min(r.blocks(), most_sum_blocks);
        launch(ctx, z_loss_kernel<W>, grid_of(blocks), most_threads, 0, partial, ptr<float>(lse), ptr<float>(logits),
               r);
        if (loss) launch(ctx, finish_z_loss_kernel, 1, warp_size, 0, ptr<double>(loss), partial, blocks, s.tokens());
    };
    dispatch_experts(s, run, logits);
}

void moe_z_loss_backward(Tensor dlogits, Tensor lse, Tensor probs, double scale, Context& ctx) {
    const MoeShape s = check_z_loss_backward(dlogits, lse, probs);
    check_f32(probs, "probs");
    Op op(ctx, "moe_z_loss_backward", z_loss_backward_flops(s), 0, total_bytes({dlogits, dlogits, lse, probs}));
    if (!op.run) return;
    const float factor = float(scale * 2 / double(s.tokens()));
    auto run = [&](auto width) {
        constexpr int W = width.value;
        launch(ctx, z_loss_backward_kernel<W>, grid_of(ceil_div(s.pairs() / W, most_threads)), most_threads, 0,
               ptr<float>(dlogits), ptr<float>(lse), ptr<float>(probs), factor, s.pairs(), s.experts);
    };
    dispatch_experts(s, run, dlogits, probs);
}

}  // namespace llmc
