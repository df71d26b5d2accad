// The one portability header of the kernels. nvcc compiles them for the GPU; g++ compiles the same sources against
// dev/emu, which runs them on the CPU for tests. Kernels include nothing else that knows the difference: here stand the
// only #ifdef about it, the only inline PTX and the only launch.
//
// Rules for a kernel that can be tested (docs/cuda.md): SHARED or DYN_SHARED for shared memory, launch() instead of
// <<<>>>, explicit masks in warp operations, no return before a block barrier, no spinning on memory.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_runtime.h>
// SHARED(float, tile, [32][33]);  static shared memory, 16-byte aligned, contents undefined
#define SHARED(T, name, ...) __shared__ __align__(16) T name __VA_ARGS__
// DYN_SHARED(float, tile);        T* tile = the `smem` bytes given to launch()
#define DYN_SHARED(T, name)                                              \
    extern __shared__ __align__(128) unsigned char dynamic_shared_memory[]; \
    T* name = reinterpret_cast<T*>(dynamic_shared_memory)
#else
#include "dev/emu/emu.h"
#endif

namespace llmc {

using nv_bf16 = __nv_bfloat16;

constexpr unsigned full_mask = 0xffffffffu;

// --------------------------------------------------------------------------------------------------------- arithmetic
// bf16 is storage: arithmetic is float.
__host__ __device__ inline float to_float(float x) { return x; }
__host__ __device__ inline float to_float(nv_bf16 x) { return __bfloat162float(x); }
template <class T> __host__ __device__ inline T from_float(float x);
template <> __host__ __device__ inline float from_float<float>(float x) { return x; }
template <> __host__ __device__ inline nv_bf16 from_float<nv_bf16>(float x) { return __float2bfloat16(x); }

// ------------------------------------------------------------------------------------------------------ 128-bit access
// 16 bytes of T in one memory transaction: 4 floats or 8 bf16. The address must be 16-byte aligned.
template <class T>
struct alignas(16) Pack {
    static constexpr int size = 16 / int(sizeof(T));
    T v[size];
    __device__ T& operator[](int i) { return v[i]; }
    __device__ const T& operator[](int i) const { return v[i]; }
};

// Two readings of the same 16 bytes: one as elements, one as the vector type that loads and stores understand.
template <class T>
__device__ inline Pack<T> pack_of(int4 bits) {
    Pack<T> p;
    static_assert(sizeof p == sizeof bits);
    memcpy(&p, &bits, sizeof p);
    return p;
}
template <class T>
__device__ inline int4 bits_of(const Pack<T>& p) {
    int4 bits;
    memcpy(&bits, &p, sizeof p);
    return bits;
}

template <class T>
__device__ inline Pack<T> load_pack(const T* p) {
    return pack_of<T>(*reinterpret_cast<const int4*>(p));
}
template <class T>
__device__ inline void store_pack(T* p, const Pack<T>& v) {
    *reinterpret_cast<int4*>(p) = bits_of(v);
}

// ------------------------------------------------------------------------------------------ tensor cores, async copies
// One warp's fragments of D[16,8] += A[16,16] B[16,8], bf16 with float accumulators. Lane l holds, with row = l / 4 and
// pair = 2 * (l % 4), packed low half first (PTX ISA, mma.m16n8k16):
//   A: r[0] = A[row][pair..], r[1] = A[row + 8][pair..], r[2] = A[row][pair + 8..], r[3] = A[row + 8][pair + 8..]
//   B: r[0] = B[pair..][row], r[1] = B[pair + 8..][row]
//   C, D: f[0], f[1] = D[row][pair..], f[2], f[3] = D[row + 8][pair..]
struct MmaA { uint32_t r[4]; };
struct MmaB { uint32_t r[2]; };
struct MmaC { float f[4]; };

#ifdef __CUDACC__

__device__ inline uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ inline void mma_m16n8k16(MmaC& d, const MmaA& a, const MmaB& b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d.f[0]), "+f"(d.f[1]), "+f"(d.f[2]), "+f"(d.f[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
}

// Four 8x8 matrices of 16-bit elements from shared memory. Lane l gives the address of row l % 8 of matrix l / 8
// (16-byte aligned) and gets of matrix i, in r[i], the elements [l / 4][2 (l % 4)..]; transposed: [2 (l % 4)..][l / 4].
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16 bytes from global to shared memory without a register in between; zeros if not valid (the global address is then
// not read). Done after cp_async_commit() and cp_async_wait<n>(): at most n younger groups of this thread are still
// under way. Other threads need a barrier after the wait.
__device__ inline void cp_async16(void* shared, const void* global, bool valid = true) {
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n>
__device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

#else
#include "dev/emu/tensor_core.inc"
#endif

// Two floats as one register of two bf16, the first in the low half: how fragments are packed.
__device__ inline uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &two, sizeof bits);
    return bits;
}

// -------------------------------------------------------------------------------------------------------------- launch
// Enqueues kernel(args...) on `grid` blocks of `block` threads with `smem` bytes of dynamic shared memory. Nothing is
// launched for an empty grid.
template <class... Params, class... Args>
inline cudaError_t enqueue(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem, cudaStream_t stream,
                           Args&&... args) {
    static_assert(sizeof...(Params) == sizeof...(Args), "wrong number of kernel arguments");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
    if (smem > 48 * 1024) {  // more than this must be asked for, kernel by kernel
        const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                       cudaFuncAttributeMaxDynamicSharedMemorySize, int(smem));
        if (error != cudaSuccess) return error;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

}  // namespace llmc
