// The output layer with its loss. For each chunk of rows: logits = x W^T, their softmax and cross-entropy, the gradient
// in the same memory, and from it the chunk's dx = dlogits W and dW += dlogits^T x.
//
// What moves: each logit is written once as f32, read twice (the second time partly from the L2 cache), overwritten by
// its gradient, and read by two products. The full [N,V] never exists.
#include <cfloat>

#include "llmc/ops/checks/head.h"
#include "llmc/ops/cuda/cuda.cuh"
#include "llmc/ops/cuda/gemm.h"

namespace llmc {

namespace {

// Elements of a chunk of logits: 1 GB. Every chunk reads and writes all of dweight once, so few large ones are best.
constexpr int64_t chunk_elements = int64_t(256) << 20;
constexpr int largest_block = 1024;

// All threads of a block get the maximum. A NaN is passed over. One barrier: for one call in a kernel.
__device__ inline float block_max(float x) {
    SHARED(float, partial, [warp_size]);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size, warps = blockDim.x / warp_size;
    x = warp_max(x);
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    return warp_max(partial[lane < warps ? lane : 0]);
}

// Maximum and sum over j of exp(row[j] - maximum), in one pass (Milakov & Gimelshein 2018): where a larger maximum
// turns up, the sum so far is scaled down to it. All threads of the block get both. NaN or +infinity make the sum NaN.
struct MaxSum { float most, sum; };

__device__ inline MaxSum max_and_sum(const float* row, int64_t n) {
    constexpr int width = Pack<float>::size;
    float most = -FLT_MAX, sum = 0;  // finite: -infinity - -infinity would be NaN
    for (int64_t j = int64_t(threadIdx.x) * width; j < n; j += int64_t(blockDim.x) * width) {
        Pack<float> x = load_pack(row + j);
        for (int k = 0; k < width; k++)
            if (j + k >= n) x[k] = -INFINITY;  // behind the row: no share in the sum
        const float before = most;
        for (int k = 0; k < width; k++) most = fmaxf(most, x[k]);
        sum *= expf(before - most);
        for (int k = 0; k < width; k++) sum += expf(x[k] - most);
    }
    const float block_most = block_max(most);
    return {block_most, block_sum(sum * expf(most - block_most))};
}

// gradient[j] = dloss (softmax(row)[j] - (j == target)), or 0 for all j if `counted` is false. The gradient lies in the
// memory of the row. As bf16 it is half as long, so a tile's gradient overwrites logits of tiles before it, and of its
// own: everybody has read those at the barrier.
template <class T>
__device__ inline void write_gradient(float* row, int64_t n, MaxSum of, int32_t target, float dloss, bool counted) {
    constexpr int width = Pack<T>::size, pack = Pack<float>::size;
    T* gradient = reinterpret_cast<T*>(row);
    const float scale = dloss / of.sum;
    for (int64_t first = 0; first < n; first += int64_t(blockDim.x) * width) {
        const int64_t j = first + int64_t(threadIdx.x) * width;
        float x[width] = {};
        if (j < n && counted)
            for (int i = 0; i < width; i += pack) {
                const Pack<float> logits = load_pack(row + j + i);
                for (int k = 0; k < pack; k++) x[i + k] = logits[k];
            }
        __syncthreads();
        if (j < n) {
            Pack<T> g;
            for (int k = 0; k < width; k++)
                g[k] = from_float<T>(!counted ? 0.0f : expf(x[k] - of.most) * scale - (j + k == target ? dloss : 0.0f));
            store_pack(gradient + j, g);
        }
    }
}

// losses[row] = log sum_j exp(logits[row, j]) - logits[row, target], and with `gradients` the gradient as T in place of
// the logits. One block = one row of `n` logits, rows `ld` floats apart. Target -1: not counted, loss 0, no gradient.
// Any other target outside the vocabulary is no token: a NaN loss shows it.
template <class T>
__global__ void __launch_bounds__(largest_block)
    cross_entropy_kernel(float* losses, float* logits, const int32_t* targets, int64_t n, int64_t ld, float dloss,
                         bool gradients) {
    float* row = logits + blockIdx.x * ld;
    const int32_t target = targets[blockIdx.x];
    const bool counted = target >= 0 && target < n;  // the same for the whole block
    MaxSum of{0, 1};
    float loss = target == -1 ? 0.0f : NAN;
    if (counted) {
        const float wanted = row[target];
        of = max_and_sum(row, n);  // its barriers stand between reading `wanted` and overwriting it
        loss = logf(of.sum) + (of.most - wanted);
    }
    if (threadIdx.x == 0) losses[blockIdx.x] = loss;
    if (gradients) write_gradient<T>(row, n, of, target, dloss, counted);
}

template <class T>
void cross_entropy(float* losses, float* logits, const int32_t* targets, int64_t rows, const HeadShape& s, double dloss,
                   bool gradients, Context& ctx) {
    const int64_t threads = round_up(ceil_div(s.vocabulary, Pack<T>::size), warp_size);
    launch(ctx, cross_entropy_kernel<T>, grid_of(rows), int(std::min<int64_t>(threads, largest_block)), 0, losses,
           logits, targets, s.vocabulary, s.ld(), float(dloss), gradients);
}

// A product of contiguous matrices; `in` to `out`.
GemmProblem product(int64_t m, int64_t n, int64_t k, DType in, DType out) {
    return {.batch = 1, .m = m, .n = n, .k = k, .in = in, .out = out, .transpose_a = false, .transpose_b = false,
            .lda = k, .ldb = n, .ldc = n, .stride_a = 0, .stride_b = 0, .stride_c = 0,
            .accumulate = false, .bias = false};
}

}  // namespace

void head_loss(Tensor losses, Tensor dx, Tensor dweight, Tensor x, Tensor weight, Tensor targets, double dloss,
               bool accumulate, Context& ctx) {
    const HeadShape s = check_head(losses, dx, dweight, x, weight, targets);
    const int64_t C = s.model, V = s.vocabulary, chunk = s.chunk(chunk_elements), logits_bytes = chunk * s.ld() * 4;
    const DType act = x.dtype;
    const bool gradients = dx || dweight;
    dispatch(act, [](auto) {});  // refuses f64
    const int64_t products = 1 + (dx ? 1 : 0) + (dweight ? 1 : 0);
    // A chunk is too large for any cache: logits are written and read, their gradient is written and read twice.
    const int64_t logits_traffic = s.rows * s.ld() * (8 + (gradients ? size_of(act) * products : 0));
    const int64_t dweight_traffic = dweight ? 2 * ceil_div(s.rows, std::max<int64_t>(chunk, 1)) * dweight.bytes() : 0;
    Op op(ctx, "head_loss", s.flops(products), logits_bytes + gemm_workspace_bytes,
          total_bytes({losses, dx, x, weight, targets}) + logits_traffic + dweight_traffic);
    if (!op.run) return;
    float* logits = static_cast<float*>(op.workspace);  // [chunk, ld], later their gradient [chunk, dlogits_ld] act
    void* workspace = static_cast<char*>(op.workspace) + logits_bytes;
    const int64_t dlogits_ld = s.ld() * 4 / size_of(act);

    // With no rows at all one empty chunk still gives dweight its zeros.
    int64_t first = 0;
    do {
        const int64_t count = std::min(chunk, s.rows - first);
        const char* rows = ptr<char>(x) + first * C * size_of(act);
        GemmProblem forward = product(count, V, C, act, DType::f32);
        forward.transpose_b = true, forward.ldb = C, forward.ldc = s.ld();
        gemm_any(forward, rows, weight.data, logits, workspace, ctx);

        dispatch(act, [&](auto zero) {
            cross_entropy<decltype(zero)>(ptr<float>(losses) + first, logits, ptr<int32_t>(targets) + first, count, s,
                                          dloss, gradients, ctx);
        });
        if (dx) {
            GemmProblem backward = product(count, C, V, act, act);
            backward.lda = dlogits_ld;
            gemm_any(backward, logits, weight.data, ptr<char>(dx) + first * C * size_of(act), workspace, ctx);
        }
        if (dweight) {
            GemmProblem backward = product(V, C, count, act, DType::f32);
            backward.transpose_a = true, backward.lda = dlogits_ld, backward.accumulate = accumulate || first > 0;
            gemm_any(backward, logits, rows, dweight.data, workspace, ctx);
        }
        first += count;
    } while (first < s.rows);
}

}  // namespace llmc
