// The optimizer on the GPU: the sums of a step, the decision about its update, AdamW (Loshchilov & Hutter 2019). What
// changes from step to step is read from the StepState on the device, so a captured graph of a step can be replayed.
#include "llmc/ops/checks/decide_step.h"
#include "llmc/ops/checks/optimizer.h"
#include "llmc/ops/cuda/update.cuh"

namespace llmc {

namespace {

__global__ void step_begin_kernel(StepState* step, double lr) {  // one thread
    if (threadIdx.x > 0) return;
    step->lr = lr;
    step->loss_sum = 0;
    step->loss_count = 0;
    step->grad_square_sum = 0;
}

// loss_sum += sum of losses [n], loss_count += how many targets are >= 0. One block for all: n is the number of tokens
// of a micro-batch.
constexpr int loss_threads = 512;
__global__ void loss_kernel(StepState* step, const float* losses, const int32_t* targets, int64_t n) {
    double sum = 0;
    int64_t count = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        sum += double(losses[i]);
        count += targets[i] >= 0;
    }
    sum = block_sum(sum);
    count = block_sum(count);
    if (threadIdx.x > 0) return;
    step->loss_sum += sum;
    step->loss_count += double(count);
}

// Where a gradient [n] is cut for the sum of its squares: `blocks` parts of `part` elements, fixed by n alone.
struct SquareParts {
    int64_t blocks, part;
    explicit SquareParts(int64_t n)
        : blocks(std::min<int64_t>(ceil_div(n, 8192), 1024)), part(blocks ? round_up(ceil_div(n, blocks), 4) : 0) {}
};

// partial[block] = sum of x[i]^2 over the block's part of x [n], exact products added in double.
template <int W>
__global__ void square_sum_kernel(double* partial, const float* x, int64_t part, int64_t n) {
    const int64_t first = blockIdx.x * part, end = min(n, first + part);
    const int64_t whole = first + max(end - first, int64_t(0)) / W * W;  // up to here in packs
    double sum = 0;
    auto add = [&](float v) { sum += double(v) * double(v); };
#pragma unroll 4
    for (int64_t i = first + threadIdx.x * W; i < whole; i += int64_t(blockDim.x) * W) {
        const Floats<W> v = load<W>(x + i);
        for (int j = 0; j < W; j++) add(v[j]);
    }
    for (int64_t i = whole + threadIdx.x; i < end; i += blockDim.x) add(x[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// grad_square_sum += sum of partial [count]. One block.
__global__ void add_squares_kernel(StepState* step, const double* partial, int64_t count) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) step->grad_square_sum += sum;
}

__global__ void freeze_kernel(float* grad, const StepState* step, int64_t start, int64_t n) {
    if (step->t + step->skipped >= start) return;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x)
        grad[i] = 0;
}

__global__ void step_decide_kernel(StepState* step, double clip, double beta1, double beta2) {  // one thread
    if (threadIdx.x > 0) return;
    StepState s = *step;
    decide_step(s, clip, beta1, beta2);
    *step = s;
}

}  // namespace

void step_begin(Tensor step, double lr, Context& ctx) {
    check_step(step);
    Op op(ctx, "step_begin");
    if (!op.run) return;
    launch(ctx, step_begin_kernel, dim3(1), warp_size, 0, step_state(step), lr);
}

void loss_accumulate(Tensor step, Tensor losses, Tensor targets, Context& ctx) {
    check_losses(step, losses, targets);
    check_dtype(losses, DType::f32, "losses");
    const int64_t n = losses.numel();
    Op op(ctx, "loss_accumulate", n, 0, total_bytes({losses, targets}));
    if (!op.run) return;
    launch(ctx, loss_kernel, dim3(1), loss_threads, 0, step_state(step), ptr<const float>(losses),
           ptr<const int32_t>(targets), n);
}

void grad_norm_accumulate(Tensor step, Tensor grad, Context& ctx) {
    check_grad(step, grad);
    check_dtype(grad, DType::f32, "grad");
    const int64_t n = grad.numel();
    const SquareParts parts(n);
    Op op(ctx, "grad_norm_accumulate", 2 * n, parts.blocks * int64_t(sizeof(double)), grad.bytes());
    if (!op.run) return;
    double* partial = static_cast<double*>(op.workspace);
    dispatch_width<float>(aligned(grad), [&](auto width) {
        launch(ctx, square_sum_kernel<decltype(width)::value>, grid_of(parts.blocks), most_threads, 0, partial,
               ptr<const float>(grad), parts.part, n);
    });
    launch(ctx, add_squares_kernel, dim3(1), most_threads, 0, step_state(step), partial, parts.blocks);
}

void freeze_until(Tensor grad, Tensor step, int64_t start, Context& ctx) {
    check_grad(step, grad);
    check_dtype(grad, DType::f32, "grad");
    const int64_t n = grad.numel();
    Op op(ctx, "freeze_until", 0, 0, grad.bytes());
    if (!op.run) return;
    launch(ctx, freeze_kernel, grid_of(std::min<int64_t>(ceil_div(n, most_threads), 256)), most_threads, 0,
           ptr<float>(grad), step_state(step), start, n);
}

void step_decide(Tensor step, double clip, double beta1, double beta2, Context& ctx) {
    check_step(step);
    Op op(ctx, "step_decide");
    if (!op.run) return;
    launch(ctx, step_decide_kernel, dim3(1), warp_size, 0, step_state(step), clip, beta1, beta2);
}

namespace {

// The numbers of one update in the arithmetic of the parameters.
struct Update {
    bool ok;
    float beta1, beta2, rest1, rest2;         // rest = 1 - beta
    float grad_scale, step_size, root2, eps;  // lr / bias_correction1, 1 / sqrt(bias_correction2)
    float keep;                               // 1 - lr * weight_decay
    int64_t t;
};
__device__ inline Update update_of(const AdamW& o, const StepState& s) {
    return {s.ok != 0,
            float(o.beta1),
            float(o.beta2),
            float(1 - o.beta1),
            float(1 - o.beta2),
            float(s.grad_scale),
            float(s.lr / s.bias_correction1),
            float(1 / sqrt(s.bias_correction2)),
            float(o.eps),
            float(1 - s.lr * o.weight_decay),
            s.t};
}

template <class P>
struct Unit {
    P* param;
    nv_bf16* compute_copy;  // or nullptr
    float *m, *v;
    const float* grad;
    int64_t size, decayed;
    AdamW options;
};

// Returns 0, or NaN if something is not finite.
template <int W, class P>
__device__ inline float update_at(const Unit<P>& a, const Update& u, int64_t i) {
    Floats<W> p = load<W>(a.param + i), m = load<W>(a.m + i), v = load<W>(a.v + i);
    const Floats<W> grad = load<W>(a.grad + i);
    for (int j = 0; j < W; j++) {
        const float g = grad[j] * u.grad_scale;
        m[j] = u.beta1 * m[j] + u.rest1 * g;
        v[j] = u.beta2 * v[j] + u.rest2 * g * g;
        p[j] = p[j] * (i + j < a.decayed ? u.keep : 1.0f) - u.step_size * m[j] / (sqrtf(v[j]) * u.root2 + u.eps);
    }
    const float sum = unfit(p) + unfit(v);
    if constexpr (std::is_same_v<P, nv_bf16>)
        if (a.options.stochastic_rounding)
            p = rounded_stochastically(p, a.options.first_index + i, a.options.seed, u.t);
    store<W>(a.param + i, p);
    store<W>(a.m + i, m);
    store<W>(a.v + i, v);
    if (a.compute_copy) store<W>(a.compute_copy + i, p);
    return sum;
}

//   g = grad * grad_scale;  p *= 1 - lr * weight_decay (elements [0, decayed));  m, v = moving averages of g, g^2;
//   p -= lr * (m / bias_correction1) / (sqrt(v / bias_correction2) + eps);  nothing at all if the step is not ok.
// The first `packed` elements are updated eight at a time; threads walk on by the size of the grid.
template <class P>
__global__ void adamw_kernel(Unit<P> a, StepState* step, int64_t packed) {
    SHARED(Update, shared, [1]);
    if (threadIdx.x == 0) shared[0] = update_of(a.options, *step);  // divisions in double: once per block
    __syncthreads();
    const Update u = shared[0];
    if (!u.ok) return;
    const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
    float sum = 0;
    for (int64_t i = thread * update_width; i < packed; i += threads * update_width)
        sum += update_at<update_width>(a, u, i);
    for (int64_t i = packed + thread; i < a.size; i += threads) sum += update_at<1>(a, u, i);
    report_unfit(sum, step);
}

}  // namespace

void adamw_update(Tensor param, Tensor compute_copy, Tensor m, Tensor v, Tensor grad, Tensor step, int64_t decayed,
                  const AdamW& options, Context& ctx) {
    check_adamw(param, compute_copy, m, v, grad, step, decayed);
    constexpr int64_t most_blocks = 2048;
    const int64_t n = param.numel();
    Op op(ctx, "adamw_update", 15 * n, 0, total_bytes({param, param, compute_copy, m, m, v, v, grad}));
    if (!op.run) return;
    dispatch(param.dtype, [&](auto zero) {
        using P = decltype(zero);
        const Unit<P> a{ptr<P>(param), ptr<nv_bf16>(compute_copy), ptr<float>(m), ptr<float>(v),
                        ptr<const float>(grad), n, decayed, options};
        const bool packable = aligned(param, compute_copy, m, v, grad) && options.first_index % update_width == 0;
        const int64_t blocks = ceil_div(ceil_div(n, packable ? update_width : 1), most_threads);
        launch(ctx, adamw_kernel<P>, grid_of(std::min(blocks, most_blocks)), most_threads, 0, a, step_state(step),
               packable ? n / update_width * update_width : 0);
    });
}

}  // namespace llmc
