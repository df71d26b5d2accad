// For functions that decide something and that the kernels of every backend call: they are written once, in plain C++,
// and nvcc compiles them for both sides.
#pragma once

#ifdef __CUDACC__
#define LLMC_HOST_DEVICE __host__ __device__
#else
#define LLMC_HOST_DEVICE
#endif
