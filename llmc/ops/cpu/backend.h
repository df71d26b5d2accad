// The CPU backend's state behind a Context.
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "llmc/ops/cpu/gemm_packed.h"

namespace llmc {

struct Backend {
    GemmLibrary* gemm = nullptr;
    std::unique_ptr<PackedProduct::Scratch[]> packed;  // what gemm_packed copies, for each thread
    std::vector<float> widened;             // float copies of bf16 matrices, where the GEMM library has no bf16
    std::map<void*, int64_t> allocations;   // live device memory: what the guard protects
    int open_ops = 0;                       // guard: memory is readable while > 0
};

}  // namespace llmc
