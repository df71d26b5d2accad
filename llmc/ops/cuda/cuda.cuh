// Helpers of all CUDA files: launching, dispatch over element types, reductions inside warps and blocks.
#pragma once
#include "llmc/ops/cuda/backend.h"
#include "llmc/ops/cuda/gpu.cuh"

namespace llmc {

constexpr int warp_size = 32;

// n / by, rounded up.
__host__ __device__ inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Enqueues kernel(args...) on the Context's stream. RunError if the launch is refused.
template <class... Params, class... Args>
void launch(Context& ctx, void (*kernel)(Params...), dim3 grid, int block, int64_t smem, Args&&... args) {
    ctx.launches += grid.x > 0 && grid.y > 0 && grid.z > 0;
    check_cuda(enqueue(kernel, grid, dim3(unsigned(block)), size_t(smem), ctx.backend->stream,
                       static_cast<Args&&>(args)...),
               "launch");
}

// A grid of n blocks along x, where the hardware allows 2^31 - 1.
inline dim3 grid_of(int64_t blocks) {
    if (blocks > 0x7fffffff) run_error("a kernel would need ", blocks, " blocks, more than CUDA allows");
    return dim3(unsigned(blocks));
}

// True if 128-bit accesses may begin at the start of all these tensors (of those that are given).
template <class... Tensors>
bool aligned(const Tensors&... tensors) {
    return ((reinterpret_cast<uintptr_t>(tensors.data) % 16 == 0) && ...);
}

// Calls f(T{}) with T = float or nv_bf16, according to the activation type. There are no f64 kernels.
template <class F>
void dispatch(DType act, F&& f) {
    switch (act) {
        case DType::f32: return f(float{});
        case DType::bf16: return f(nv_bf16{});
        case DType::f64:
        case DType::i32: break;
    }
    run_error("dtype ", name_of(act), " is not an activation type of the CUDA backend: f32 and bf16 are");
}

// ---------------------------------------------------------------------------------------------------------- reductions
// The order is fixed, so every run gives the same result. All 32 lanes must call these, and all get the result.
template <class A>
__device__ inline A warp_sum(A x) {
    for (int offset = warp_size / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(full_mask, x, offset);
    return x;
}
__device__ inline float warp_max(float x) {
    for (int offset = warp_size / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(full_mask, x, offset));
    return x;
}

// All threads of a block must call this, and all get the sum. The size of the block must be a multiple of 32. Contains
// two block barriers.
template <class A>
__device__ inline A block_sum(A x) {
    SHARED(A, partial, [warp_size]);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size, warps = blockDim.x / warp_size;
    x = warp_sum(x);
    __syncthreads();  // an earlier call may still be read
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    A sum = 0;
    for (int i = 0; i < warps; i++) sum += partial[i];
    return sum;
}

}  // namespace llmc
