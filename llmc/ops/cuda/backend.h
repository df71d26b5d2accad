// The CUDA backend's state behind a Context.
#pragma once
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <map>
#include <memory>

#include "llmc/ops/checks/common.h"

namespace llmc {

struct MatmulCache;  // gemm.cu: the algorithm that cuBLASLt's heuristic chose, by problem
struct Staging;      // memory.cu: pinned host memory that uploads pass through

struct Backend {
    cudaStream_t stream = nullptr;
    cudaStream_t communication = nullptr;  // made by the first Comm of several ranks
    cublasLtHandle_t cublas = nullptr;
    bool fuse_gelu = false;  // into products: pays on Hopper and Blackwell, not on older GPUs
    std::shared_ptr<MatmulCache> matmuls;
    std::shared_ptr<Staging> staging;
    std::map<void*, int64_t> allocations;  // live device memory
};

// RunError with CUDA's own words if `status` is an error.
void check_cuda(cudaError_t status, const char* what);

}  // namespace llmc
