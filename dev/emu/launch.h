// Launches: what is allowed, how many there were, what kernels are called.
#pragma once
#include <cuda_runtime_api.h>

#include <string>

namespace emu {

constexpr size_t default_shared_bytes = 48 << 10, max_shared_bytes = 227 << 10;

unsigned long launch_number();                // of the running launch, from 1
std::string kernel_name(const void* kernel);  // asks addr2line; slow
cudaError_t set_dynamic_shared_limit(const void* kernel, int bytes);

}  // namespace emu
