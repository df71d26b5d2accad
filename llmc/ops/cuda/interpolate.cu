// Weights between two tensors by a learnable scalar, on the GPU.
#include "llmc/ops/checks/mot_variants.h"
#include "llmc/ops/cuda/vector.cuh"

namespace llmc {

namespace {

template <class T>
struct Interpolation {
    const T* w;
    __device__ void operator()(float* out, const float* in) const {
        const float share = to_float(*w);
        out[0] = share * in[0] + (1.0f - share) * in[1];
    }
};

template <class T>
struct InterpolateBackward {
    float *da, *db, *partial;  // partial [blocks]: <dout, a - b> of a block's elements
    const float* dout;
    const T *a, *b, *w;
    InterpolateAccumulate accumulate;
};

// W elements of the gradients; returns their part of <dout, a - b>.
template <int W, class T>
__device__ inline float interpolate_at(const InterpolateBackward<T>& t, int64_t i, float share) {
    const Floats<W> d = load<W>(t.dout + i), a = load<W>(t.a + i), b = load<W>(t.b + i);
    Floats<W> da = t.accumulate.a ? load<W>(t.da + i) : zeros<W>();
    Floats<W> db = t.accumulate.b ? load<W>(t.db + i) : zeros<W>();
    float sum = 0;
    for (int j = 0; j < W; j++) {
        da[j] += share * d[j];
        db[j] += (1.0f - share) * d[j];
        sum += d[j] * (a[j] - b[j]);
    }
    store<W>(t.da + i, da);
    store<W>(t.db + i, db);
    return sum;
}

// The first `packed` elements W at a time; threads walk on by the size of the grid.
template <class T>
__global__ void interpolate_backward_kernel(InterpolateBackward<T> t, int64_t packed, int64_t n) {
    constexpr int W = Pack<T>::size;
    const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
    const float share = to_float(*t.w);
    float sum = 0;
    for (int64_t i = thread * W; i < packed; i += threads * W) sum += interpolate_at<W>(t, i, share);
    for (int64_t i = packed + thread; i < n; i += threads) sum += interpolate_at<1>(t, i, share);
    sum = block_sum(sum);
    if (threadIdx.x == 0) t.partial[blockIdx.x] = sum;
}

__global__ void interpolate_sum_kernel(float* dw, const float* partial, int64_t parts, bool accumulate) {  // one block
    float sum = 0;
    for (int64_t i = threadIdx.x; i < parts; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *dw = accumulate ? *dw + sum : sum;
}

}  // namespace

void interpolate(Tensor out, Tensor a, Tensor b, Tensor w, Context& ctx) {
    check_interpolate(a, b, w);
    check(out, a.dtype, a.shape, "out");
    Op op(ctx, "interpolate", 3 * a.numel(), 0, total_bytes({out, a, b, w}));
    if (!op.run) return;
    dispatch(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        map_elements<T>({out}, {a, b}, Interpolation<T>{ptr<const T>(w)}, ctx);
    });
}

void interpolate_backward(Tensor da, Tensor db, Tensor dw, Tensor dout, Tensor a, Tensor b, Tensor w,
                          InterpolateAccumulate accumulate, Context& ctx) {
    check_interpolate_backward(da, db, dw, dout, a, b, w);
    const int64_t n = a.numel(), parts = std::min<int64_t>(ceil_div(n, 2048), 512);
    Op op(ctx, "interpolate_backward", 5 * n, parts * int64_t(sizeof(float)), total_bytes({da, db, dw, dout, a, b, w}));
    if (!op.run) return;
    float* partial = static_cast<float*>(op.workspace);
    dispatch(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        const InterpolateBackward<T> t{ptr<float>(da),  ptr<float>(db),  partial,         ptr<const float>(dout),
                                       ptr<const T>(a), ptr<const T>(b), ptr<const T>(w), accumulate};
        const int64_t packed = aligned(da, db, dout, a, b) ? n / Pack<T>::size * Pack<T>::size : 0;
        launch(ctx, interpolate_backward_kernel<T>, grid_of(parts), most_threads, 0, t, packed, n);
    });
    launch(ctx, interpolate_sum_kernel, dim3(1), most_threads, 0, ptr<float>(dw), partial, parts, accumulate.w);
}

}  // namespace llmc
