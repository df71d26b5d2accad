// Learnable temperatures of logits on the GPU. Bound by memory: one pass over [rows, experts] each way.
#include "llmc/ops/checks/mot_variants.h"
#include "llmc/ops/cuda/vector.cuh"

namespace llmc {

namespace {

// Temperatures of the experts: p[e * step], step 0 where all have one.
template <class T>
struct Temperatures {
    const T* p;
    int64_t step;
    bool exponential;

    __device__ float operator()(int64_t e) const {
        const float value = to_float(p[e * step]);
        return exponential ? expf(value - 1.0f) : value;
    }
    template <int W>
    __device__ Floats<W> inverse(int64_t first) const {
        Floats<W> v;
        for (int j = 0; j < W; j++) v[j] = 1.0f / (*this)(first + j);
        return v;
    }
};

// scaled = logits / tau. A group of lanes = one row.
template <class T, int W>
__global__ void temperature_kernel(float* scaled, const float* logits, Temperatures<T> tau, TemperatureShape s,
                                   Team team) {
    const int64_t n = int64_t(blockIdx.x) * team.groups + threadIdx.x / team.lanes;
    if (n >= s.rows) return;
    for (int64_t e = threadIdx.x % team.lanes * W; e < s.experts; e += int64_t(team.lanes) * W) {
        const Floats<W> inverse = tau.template inverse<W>(e);
        Floats<W> x = load<W>(logits + n * s.experts + e);
        for (int j = 0; j < W; j++) x[j] *= inverse[j];
        store<W>(scaled + n * s.experts + e, x);
    }
}

// dlogits = dscaled / tau, and partial[part, e] = sum over the rows of the part of dscaled scaled. One block = a
// contiguous part of the rows; a thread's columns are its own, the groups of the team are added in order.
template <class T, int W>
__global__ void temperature_backward_kernel(float* dlogits, float* partial, const float* dscaled, const float* scaled,
                                            Temperatures<T> tau, TemperatureShape s, Team team) {
    SHARED(float, sums, [most_threads * W]);  // [groups][lanes * W]
    const int lane = threadIdx.x % team.lanes, group = threadIdx.x / team.lanes, width = team.lanes * W;
    const int64_t begin = s.rows * blockIdx.x / gridDim.x, end = s.rows * (blockIdx.x + 1) / gridDim.x;
    for (int64_t first = 0; first < s.experts; first += width) {
        const int64_t e = first + lane * W;
        Floats<W> sum = zeros<W>();
        if (e < s.experts) {
            const Floats<W> inverse = tau.template inverse<W>(e);
            for (int64_t n = begin + group; n < end; n += team.groups) {
                Floats<W> d = load<W>(dscaled + n * s.experts + e);
                const Floats<W> y = load<W>(scaled + n * s.experts + e);
                for (int j = 0; j < W; j++) sum[j] += d[j] * y[j], d[j] *= inverse[j];
                store<W>(dlogits + n * s.experts + e, d);
            }
        }
        store<W>(sums + threadIdx.x * W, sum);
        __syncthreads();
        for (int i = threadIdx.x; i < width && first + i < s.experts; i += blockDim.x) {
            float total = 0;
            for (int g = 0; g < team.groups; g++) total += sums[g * width + i];
            partial[blockIdx.x * s.experts + first + i] = total;
        }
        __syncthreads();
    }
}

// dp (+)= -sum over parts (one temperature: and experts) of partial / tau * dtau/dp. One block = one element of p.
template <class T>
__global__ void temperature_sum_kernel(float* dp, const float* partial, Temperatures<T> tau, TemperatureShape s,
                                       int64_t parts, bool accumulate) {
    const int64_t columns = s.per_expert ? 1 : s.experts;
    float sum = 0;
    for (int64_t i = threadIdx.x; i < parts * columns; i += blockDim.x)
        sum += partial[i / columns * s.experts + blockIdx.x + i % columns];
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    const float gradient = tau.exponential ? -sum : -sum / tau(blockIdx.x);
    dp[blockIdx.x] = accumulate ? dp[blockIdx.x] + gradient : gradient;
}

template <class T>
__global__ void temperature_mean_kernel(double* mean, Temperatures<T> tau, int64_t n) {  // one block
    double sum = 0;
    for (int64_t e = threadIdx.x; e < n; e += blockDim.x) sum += double(tau(e));
    sum = block_sum(sum);
    if (threadIdx.x == 0) *mean = sum / double(n);
}

template <class T>
Temperatures<T> temperatures(const Tensor& p, bool exponential) {
    return {ptr<const T>(p), p.numel() == 1 ? 0 : 1, exponential};
}

}  // namespace

void temperature_forward(Tensor scaled, Tensor logits, Tensor p, bool exponential, Context& ctx) {
    const TemperatureShape s = check_temperatures(scaled, logits, "logits", p);
    Op op(ctx, "temperature_forward", logits.numel(), 0, total_bytes({scaled, logits, p}));
    if (!op.run) return;
    dispatch(p.dtype, [&](auto zero) {
        using T = decltype(zero);
        dispatch_width<float>(s.experts % Pack<float>::size == 0 && aligned(scaled, logits), [&](auto width) {
            constexpr int W = decltype(width)::value;
            const Team team = team_for(s.experts, W);
            launch(ctx, temperature_kernel<T, W>, grid_of(ceil_div(s.rows, team.groups)), team.threads(), 0,
                   ptr<float>(scaled), ptr<const float>(logits), temperatures<T>(p, exponential), s, team);
        });
    });
}

void temperature_backward(Tensor dlogits, Tensor dp, Tensor dscaled, Tensor scaled, Tensor p, bool exponential,
                          bool accumulate, Context& ctx) {
    const TemperatureShape s = check_temperature_backward(dlogits, dp, dscaled, scaled, p);
    const int64_t parts = std::min<int64_t>(ceil_div(s.rows, 32), 512);
    Op op(ctx, "temperature_backward", 3 * scaled.numel(), parts * s.experts * int64_t(sizeof(float)),
          total_bytes({dlogits, dp, dscaled, scaled, p}));
    if (!op.run) return;
    float* partial = static_cast<float*>(op.workspace);
    dispatch(p.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Temperatures<T> tau = temperatures<T>(p, exponential);
        const bool packed = s.experts % Pack<float>::size == 0 && aligned(dlogits, dscaled, scaled);
        dispatch_width<float>(packed, [&](auto width) {
            constexpr int W = decltype(width)::value;
            const Team team = team_for(s.experts, W);
            launch(ctx, temperature_backward_kernel<T, W>, grid_of(parts), team.threads(), 0, ptr<float>(dlogits),
                   partial, ptr<const float>(dscaled), ptr<const float>(scaled), tau, s, team);
        });
        launch(ctx, temperature_sum_kernel<T>, grid_of(p.numel()), most_threads, 0, ptr<float>(dp), partial, tau, s,
               parts, accumulate);
    });
}

void temperature_mean(Tensor mean, Tensor p, bool exponential, Context& ctx) {
    check_temperature_mean(mean, p);
    Op op(ctx, "temperature_mean", p.numel(), 0, total_bytes({mean, p}));
    if (!op.run) return;
    dispatch(p.dtype, [&](auto zero) {
        launch(ctx, temperature_mean_kernel<decltype(zero)>, dim3(1), most_threads, 0, ptr<double>(mean),
               temperatures<decltype(zero)>(p, exponential), p.numel());
    });
}

}  // namespace llmc
