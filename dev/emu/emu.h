// Runs CUDA kernels on the CPU, for tests: README.md says how. Included only by llmc/ops/cuda/gpu.cuh, when nvcc is not
// compiling. The toolkit's own headers give types, bf16 arithmetic and the declarations of the runtime, whose functions
// dev/emu implements under the same names; this header gives what belongs to the compiler or the device.
#pragma once
#ifdef __CUDACC__
#error "emu.h is for g++; nvcc does not need it"
#endif

// The toolkit declares threadIdx and the others as constants; this switches that off. (An error about them means that
// cuda_runtime.h was included before gpu.cuh.)
#define __DEVICE_LAUNCH_PARAMETERS_H__
#include <cuda_runtime.h>
#include <cuda_bf16.h>

// The compiler's words.
#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __grid_constant__
#undef __launch_bounds__
#undef __shared__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ use_SHARED_or_DYN_SHARED_for_shared_memory  // so that a bare one does not compile

#include <functional>
#include <tuple>
#include <type_traits>

#include "dev/emu/device.h"
#include "dev/emu/intrinsics.h"

// ------------------------------------------------------------------------------------------------------ shared memory
// SHARED(float, tile, [32][33]); one fresh piece of memory per block and place in the source, filled with junk
#define SHARED(T, name, ...)                                                                                      \
    using name##_shared = T __VA_ARGS__;                                                                          \
    auto& name = *static_cast<name##_shared*>(emu::static_shared(                                                 \
        [] { static const char place = 0; return static_cast<const void*>(&place); }(), sizeof(name##_shared)))
// DYN_SHARED(float, tile); T* tile = the `smem` bytes given to launch()
#define DYN_SHARED(T, name) T* name = static_cast<T*>(emu::dynamic_shared())

// -------------------------------------------------------------------------------------------------------------- launch
namespace emu {

struct Launch {
    dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
    const void* kernel;
};
// Enqueues it; `thread` is what each CUDA thread does. In launch.cpp.
cudaError_t launch(const Launch& launch, std::function<void()> thread);

template <class... Params, class... Args>
cudaError_t launch_kernel(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
    static_assert(sizeof...(Params) == sizeof...(Args), "wrong number of kernel arguments");
    static_assert((std::is_trivially_copyable_v<std::decay_t<Params>> && ...), "kernel arguments are copied as bytes");
    static_assert(!(std::is_reference_v<Params> || ...), "kernel arguments are passed by value");
    if (config->numAttrs != 0) return cudaErrorNotSupported;
    std::tuple<std::decay_t<Params>...> values(static_cast<Params>(args)...);
    return launch({config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream,
                   reinterpret_cast<const void*>(kernel)},
                  [kernel, values] { std::apply(kernel, values); });
}

}  // namespace emu

// The toolkit's template of this name ends in an untyped C call.
#define cudaLaunchKernelEx emu::launch_kernel
