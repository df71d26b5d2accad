// W neighbouring elements at a time, and the elementwise kernel. Kernels over rows are written once, for any width W:
// W = Pack<T>::size where rows and addresses allow 128-bit accesses, W = 1 elsewhere.
#pragma once
#include <type_traits>

#include "llmc/ops/cuda/cuda.cuh"

namespace llmc {

// ---------------------------------------------------------------------------------------------------- W at a time
template <int W>
struct Floats {
    float v[W];
    __device__ float& operator[](int i) { return v[i]; }
    __device__ const float& operator[](int i) const { return v[i]; }
};

template <int W>
__device__ inline Floats<W> zeros() {
    Floats<W> x;
    for (int j = 0; j < W; j++) x[j] = 0;
    return x;
}

// Elements p[0 .. W) as floats. If W is a multiple of Pack<T>::size, p must be 16-byte aligned.
template <int W, class T>
__device__ inline Floats<W> load(const T* p) {
    Floats<W> x;
    if constexpr (W % Pack<T>::size == 0) {
        for (int k = 0; k < W; k += Pack<T>::size) {
            const Pack<T> pack = load_pack(p + k);
            for (int j = 0; j < Pack<T>::size; j++) x[k + j] = to_float(pack[j]);
        }
    } else {
        for (int j = 0; j < W; j++) x[j] = to_float(p[j]);
    }
    return x;
}
template <int W, class T>
__device__ inline void store(T* p, const Floats<W>& x) {
    if constexpr (W % Pack<T>::size == 0) {
        for (int k = 0; k < W; k += Pack<T>::size) {
            Pack<T> pack;
            for (int j = 0; j < Pack<T>::size; j++) pack[j] = from_float<T>(x[k + j]);
            store_pack(p + k, pack);
        }
    } else {
        for (int j = 0; j < W; j++) p[j] = from_float<T>(x[j]);
    }
}

// Calls f(width) with width.value = Pack<T>::size or 1.
template <class T, class F>
void dispatch_width(bool packed, F&& f) {
    if (packed) return f(std::integral_constant<int, Pack<T>::size>{});
    f(std::integral_constant<int, 1>{});
}

// ----------------------------------------------------------------------------------------------------- rows of threads
// How a block of at most 256 threads works on rows: `groups` rows at a time, each with `lanes` threads, a multiple of a
// warp. Thread i is lane i % lanes of group i / lanes; its columns begin at lane * W, then every lanes * W.
constexpr int most_threads = 256;
struct Team {
    int lanes, groups;
    int threads() const { return lanes * groups; }
};
inline Team team_for(int64_t columns, int width) {
    const int64_t wanted = round_up(std::max<int64_t>(1, ceil_div(columns, width)), warp_size);
    const int lanes = int(std::min<int64_t>(wanted, most_threads));
    return {lanes, most_threads / lanes};
}

// --------------------------------------------------------------------------------------------------------- elementwise
// Equally long arrays. Each element is read before it is written by the same thread, so outputs may be inputs.
template <class T, int inputs, int outputs>
struct Arrays {
    const T* in[inputs];
    T* out[outputs];
};

template <int W, class T, int inputs, int outputs, class F>
__device__ inline void map_at(const Arrays<T, inputs, outputs>& a, int64_t i, F f) {
    Floats<W> in[inputs], out[outputs];
    for (int k = 0; k < inputs; k++) in[k] = load<W>(a.in[k] + i);
    for (int j = 0; j < W; j++) {
        float x[inputs], y[outputs];
        for (int k = 0; k < inputs; k++) x[k] = in[k][j];
        f(y, x);
        for (int k = 0; k < outputs; k++) out[k][j] = y[k];
    }
    for (int k = 0; k < outputs; k++) store<W>(a.out[k] + i, out[k]);
}

// f(y, x): outputs y[...] from inputs x[...] of one element. The first `packed` of n elements are moved in packs. A
// thread walks on by the size of the grid.
template <class T, int inputs, int outputs, class F>
__global__ void map_kernel(Arrays<T, inputs, outputs> a, int64_t packed, int64_t n, F f) {
    constexpr int W = Pack<T>::size;
    const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = thread * W; i < packed; i += threads * W) map_at<W>(a, i, f);
    for (int64_t i = packed + thread; i < n; i += threads) map_at<1>(a, i, f);
}

// Applies f to all elements of equally shaped tensors of type T. F is a struct, since nvcc takes no lambda here.
template <class T, size_t inputs, size_t outputs, class F>
void map_elements(const Tensor (&out)[outputs], const Tensor (&in)[inputs], F f, Context& ctx) {
    constexpr int64_t most_blocks = 2048;
    const int64_t n = in[0].numel();
    Arrays<T, int(inputs), int(outputs)> a;
    bool packable = true;
    for (size_t k = 0; k < inputs; k++) a.in[k] = ptr<const T>(in[k]), packable = packable && aligned(in[k]);
    for (size_t k = 0; k < outputs; k++) a.out[k] = ptr<T>(out[k]), packable = packable && aligned(out[k]);
    const int64_t width = packable ? Pack<T>::size : 1, blocks = ceil_div(ceil_div(n, width), most_threads);
    launch(ctx, map_kernel<T, int(inputs), int(outputs), F>, grid_of(std::min(blocks, most_blocks)), most_threads, 0, a,
           packable ? n / width * width : 0, n, f);
}

}  // namespace llmc
