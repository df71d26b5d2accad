// LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019) on the GPU, the residual addition in front of them,
// and add.
#include "llmc/ops/checks/norm.h"
#include "llmc/ops/cuda/vector.cuh"

namespace llmc {

namespace {

// Dynamic shared memory: what every GPU since the A100 gives one block, and what a kernel gets that keeps its rows or
// sums elsewhere because they are longer.
constexpr int64_t most_shared = 96 * 1024, least_shared = 16;

template <int W>
__device__ inline float sum_of(const Floats<W>& x) {
    float sum = 0;
    for (int j = 0; j < W; j++) sum += x[j];
    return sum;
}

template <class T>
struct NormForward {
    T *sum, *out;        // sum, branch: nullptr without the residual addition
    float *mean, *rstd;  // mean: nullptr for rmsnorm
    const T *x, *branch, *weight, *bias;
    int64_t columns;
    float eps;
    bool in_shared;  // a row fits into shared memory
};

// One row of the input to the first pass: x, or sum = x + branch as it is stored. Kept in `tile` for the other passes.
template <int W, class T>
__device__ inline Floats<W> first_look(const NormForward<T>& a, int64_t at, int64_t c, T* tile) {
    Floats<W> x = load<W>(a.x + at + c);
    if (a.branch) {
        const Floats<W> b = load<W>(a.branch + at + c);
        for (int j = 0; j < W; j++) x[j] = to_float(from_float<T>(x[j] + b[j]));
        store<W>(a.sum + at + c, x);
    }
    if (a.in_shared) store<W>(tile + c, x);
    return x;
}

// out = (x - mean) rstd weight + bias, rstd = 1 / sqrt(mean of (x - mean)^2 + eps); rmsnorm: mean = 0. One block = one
// row [C]; a thread comes back to the elements that it has read itself, so the row in shared memory needs no barrier.
// Two passes for the statistics: subtracting the mean first keeps a small variance exact. A row too long for shared
// memory is read again from where the first pass found or put it.
template <class T, int W>
__global__ void norm_forward_kernel(NormForward<T> a) {
    DYN_SHARED(T, tile);
    const int64_t at = blockIdx.x * a.columns, step = int64_t(blockDim.x) * W, begin = threadIdx.x * W;
    const T* row = a.in_shared ? tile : (a.branch ? a.sum : a.x) + at;
    float total = 0, square = 0;
    for (int64_t c = begin; c < a.columns; c += step) total += sum_of(first_look<W>(a, at, c, tile));
    const float mean = a.mean ? block_sum(total) / float(a.columns) : 0.0f;
    for (int64_t c = begin; c < a.columns; c += step) {
        const Floats<W> x = load<W>(row + c);
        for (int j = 0; j < W; j++) square += (x[j] - mean) * (x[j] - mean);
    }
    const float rstd = 1.0f / sqrtf(block_sum(square) / float(a.columns) + a.eps);
    for (int64_t c = begin; c < a.columns; c += step) {
        Floats<W> x = load<W>(row + c);
        const Floats<W> w = load<W>(a.weight + c), b = a.bias ? load<W>(a.bias + c) : zeros<W>();
        for (int j = 0; j < W; j++) x[j] = (x[j] - mean) * rstd * w[j] + b[j];
        store<W>(a.out + at + c, x);
    }
    if (threadIdx.x == 0) {
        if (a.mean) a.mean[blockIdx.x] = mean;
        a.rstd[blockIdx.x] = rstd;
    }
}

void forward(const char* name, Tensor sum, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor branch, Tensor weight,
             Tensor bias, Norm kind, double eps, Context& ctx) {
    const NormShape s = check_norm_forward(sum, out, mean, rstd, x, branch, weight, bias, kind);
    Op op(ctx, name, norm_forward_flops(x, branch), 0,
          total_bytes({x, branch, sum, out, mean, rstd, weight, bias}));
    if (!op.run) return;
    dispatch(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        const int64_t row_bytes = s.columns * int64_t(sizeof(T));
        const NormForward<T> a{branch ? ptr<T>(sum) : nullptr,
                               ptr<T>(out),
                               kind == Norm::layernorm ? ptr<float>(mean) : nullptr,
                               ptr<float>(rstd),
                               ptr<const T>(x),
                               ptr<const T>(branch),
                               ptr<const T>(weight),
                               ptr<const T>(bias),
                               s.columns,
                               float(eps),
                               row_bytes <= most_shared};
        const bool packed = s.columns % Pack<T>::size == 0 && aligned(sum, out, x, branch, weight, bias);
        dispatch_width<T>(packed, [&](auto width) {
            constexpr int W = decltype(width)::value;
            launch(ctx, norm_forward_kernel<T, W>, grid_of(s.rows), team_for(s.columns, W).lanes,
                   a.in_shared ? row_bytes : least_shared, a);
        });
    });
}

}  // namespace

void norm_forward(Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor weight, Tensor bias, Norm kind, double eps,
                  Context& ctx) {
    forward("norm_forward", {}, out, mean, rstd, x, {}, weight, bias, kind, eps, ctx);
}

void residual_norm_forward(Tensor sum, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor branch, Tensor weight,
                           Tensor bias, Norm kind, double eps, Context& ctx) {
    check_residual(branch);
    forward("residual_norm_forward", sum, out, mean, rstd, x, branch, weight, bias, kind, eps, ctx);
}

namespace {

// How the rows are cut for the sums over rows: `blocks` contiguous parts, none empty, fixed by the shape alone.
struct NormParts {
    int64_t blocks, stride;  // stride: floats from one part's dweight to its dbias
    NormParts(int64_t rows, int64_t columns)
        : blocks(std::min<int64_t>(ceil_div(rows, 4), 512)), stride(round_up(columns, 16)) {}
    int64_t floats() const { return blocks * 2 * stride; }
};

template <class T>
struct NormBackward {
    T* dx;
    float* partial;  // [blocks, 2, stride]: dweight, dbias of each block's rows
    const T *dout, *x, *weight;
    const float *mean, *rstd;  // mean: nullptr for rmsnorm
    int64_t rows, columns, stride;
    Team team;
    bool in_shared;  // the sums of the block fit into shared memory
    bool accumulate;
};

// What the gradient of one row needs besides its elements: n = (x - mean) rstd, d = dout weight.
struct RowTerms {
    float mean, rstd, mean_d, mean_dn;
};

// The terms of row n. Called by one warp; valid in all lanes.
template <int W, class T>
__device__ inline RowTerms row_terms(const NormBackward<T>& a, int64_t n) {
    const float mean = a.mean ? a.mean[n] : 0.0f, rstd = a.rstd[n];
    const T *x = a.x + n * a.columns, *dout = a.dout + n * a.columns;
    float sum_d = 0, sum_dn = 0;
    for (int64_t c = threadIdx.x % warp_size * W; c < a.columns; c += warp_size * W) {
        const Floats<W> xs = load<W>(x + c), dy = load<W>(dout + c), w = load<W>(a.weight + c);
        for (int j = 0; j < W; j++) {
            const float d = dy[j] * w[j];
            sum_d += d;
            sum_dn += d * (xs[j] - mean) * rstd;
        }
    }
    sum_d = warp_sum(sum_d), sum_dn = warp_sum(sum_dn);
    return {mean, rstd, a.mean ? sum_d / float(a.columns) : 0.0f, sum_dn / float(a.columns)};
}

// dx of columns [c, c + W) of one row: rstd (d - mean(d) - n mean(d n)); rmsnorm has no mean(d). Adds the row's share
// of the weights' gradients, dout n and dout, to dweight and dbias.
template <int W, class T>
__device__ inline void row_gradient(const NormBackward<T>& a, int64_t at, const RowTerms& t, const Floats<W>& w,
                                    Floats<W>& dweight, Floats<W>& dbias) {
    const Floats<W> x = load<W>(a.x + at), dout = load<W>(a.dout + at);
    Floats<W> dx = a.accumulate ? load<W>(a.dx + at) : zeros<W>();
    for (int j = 0; j < W; j++) {
        const float n = (x[j] - t.mean) * t.rstd;
        dx[j] += t.rstd * (dout[j] * w[j] - t.mean_d - n * t.mean_dn);
        dweight[j] += dout[j] * n;
        dbias[j] += dout[j];
    }
    store<W>(a.dx + at, dx);
}

// One block = a contiguous part of the rows, as many at a time as it has warps. First each warp computes the terms of
// one row; then each thread takes its columns of all these rows, which now come from the nearest cache. A thread adds
// to its own sums only, group by group of the team; they live in shared memory if they fit, else in the workspace.
template <class T, int W>
__global__ void norm_backward_kernel(NormBackward<T> a) {
    DYN_SHARED(float, tile);
    SHARED(RowTerms, terms, [most_threads / warp_size]);
    const int warp = threadIdx.x / warp_size, warps = blockDim.x / warp_size;
    const int lane = threadIdx.x % a.team.lanes, group = threadIdx.x / a.team.lanes;
    const int64_t first = a.rows * blockIdx.x / gridDim.x, end = a.rows * (blockIdx.x + 1) / gridDim.x;
    float* total = a.partial + blockIdx.x * 2 * a.stride;
    float* sums = a.in_shared ? tile + group * 2 * a.stride : total;  // there is one group if they are not shared
    const int64_t begin = int64_t(lane) * W, step = int64_t(a.team.lanes) * W;
    for (int64_t c = begin; c < a.columns; c += step)
        store<W>(sums + c, zeros<W>()), store<W>(sums + a.stride + c, zeros<W>());

    for (int64_t n = first; n < end; n += warps) {
        const int here = int(min(int64_t(warps), end - n));
        if (warp < here) {
            const RowTerms mine = row_terms<W>(a, n + warp);
            if (threadIdx.x % warp_size == 0) terms[warp] = mine;
        }
        __syncthreads();
        for (int64_t c = begin; c < a.columns; c += step) {
            const Floats<W> w = load<W>(a.weight + c);
            Floats<W> dweight = load<W>(sums + c), dbias = load<W>(sums + a.stride + c);
            for (int r = group; r < here; r += a.team.groups)
                row_gradient<W>(a, (n + r) * a.columns + c, terms[r], w, dweight, dbias);
            store<W>(sums + c, dweight), store<W>(sums + a.stride + c, dbias);
        }
        __syncthreads();
    }

    if (!a.in_shared) return;
    for (int64_t i = threadIdx.x; i < 2 * a.columns; i += blockDim.x) {
        const int64_t c = i < a.columns ? i : i - a.columns + a.stride;
        float sum = 0;
        for (int g = 0; g < a.team.groups; g++) sum += tile[g * 2 * a.stride + c];
        total[c] = sum;
    }
}

constexpr int sum_warps = 16;

// dweight[c] (+)= sum over blocks of partial[block, 0, c]; dbias[c] (+)= that of partial[block, 1, c]. One block = 32
// columns of one of the two (blockIdx.y); its warps take turns at the parts and are then added in order.
__global__ void norm_sum_kernel(float* dweight, float* dbias, const float* partial, int64_t parts, int64_t columns,
                                int64_t stride, bool accumulate) {
    SHARED(float, sums, [sum_warps][warp_size]);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const int64_t c = int64_t(blockIdx.x) * warp_size + lane;
    float* out = blockIdx.y == 0 ? dweight : dbias;
    float sum = 0;
    if (c < columns)
#pragma unroll 4
        for (int64_t part = warp; part < parts; part += sum_warps) sum += partial[(2 * part + blockIdx.y) * stride + c];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= columns) return;
    float total = accumulate ? out[c] : 0.0f;
    for (int w = 0; w < sum_warps; w++) total += sums[w][lane];
    out[c] = total;
}

}  // namespace

void norm_backward(Tensor dx, Tensor dweight, Tensor dbias, Tensor dout, Tensor x, Tensor mean, Tensor rstd,
                   Tensor weight, Norm kind, bool accumulate_dx, bool accumulate, Context& ctx) {
    const NormShape s = check_norm_backward(dx, dweight, dbias, dout, x, mean, rstd, weight, kind);
    const NormParts parts(s.rows, s.columns);
    Op op(ctx, "norm_backward", norm_backward_flops(x), parts.floats() * int64_t(sizeof(float)),
          norm_backward_bytes(dx, dweight, dbias, dout, x, mean, rstd, weight, accumulate_dx));
    if (!op.run) return;
    float* partial = static_cast<float*>(op.workspace);
    dispatch(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        const bool packed = s.columns % Pack<T>::size == 0 && aligned(dx, dout, x, weight);
        dispatch_width<T>(packed, [&](auto width) {
            constexpr int W = decltype(width)::value;
            const Team team = team_for(s.columns, W);
            const int64_t sum_bytes = team.groups * 2 * parts.stride * int64_t(sizeof(float));
            const NormBackward<T> a{ptr<T>(dx),
                                    partial,
                                    ptr<const T>(dout),
                                    ptr<const T>(x),
                                    ptr<const T>(weight),
                                    kind == Norm::layernorm ? ptr<const float>(mean) : nullptr,
                                    ptr<const float>(rstd),
                                    s.rows,
                                    s.columns,
                                    parts.stride,
                                    team,
                                    sum_bytes <= most_shared,
                                    accumulate_dx};
            launch(ctx, norm_backward_kernel<T, W>, grid_of(parts.blocks), team.threads(),
                   a.in_shared ? sum_bytes : least_shared, a);
        });
    });
    const dim3 grid(grid_of(ceil_div(s.columns, warp_size)).x, dbias ? 2 : 1);
    launch(ctx, norm_sum_kernel, grid, sum_warps * warp_size, 0, ptr<float>(dweight), ptr<float>(dbias), partial,
           parts.blocks, s.columns, parts.stride, accumulate);
}

namespace {

struct Sum {
    __device__ void operator()(float* out, const float* in) const { out[0] = in[0] + in[1]; }
};

}  // namespace

void add(Tensor out, Tensor a, Tensor b, Context& ctx) {
    check_add(out, a, b);
    Op op(ctx, "add", a.numel(), 0, total_bytes({out, a, b}));
    if (!op.run) return;
    dispatch(a.dtype, [&](auto zero) { map_elements<decltype(zero)>({out}, {a, b}, Sum{}, ctx); });
}

}  // namespace llmc
