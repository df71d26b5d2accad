// Matrix products by cuBLASLt: what the ops of this backend call inside their Op.
#pragma once
#include "llmc/ops/checks/matmul.h"

namespace llmc {

// cuBLASLt's scratch, part of the workspace of every op that multiplies. NVIDIA advises 32 MiB from Hopper on.
constexpr int64_t gemm_workspace_bytes = int64_t(32) << 20;

// What is done with a product before it is stored; see MatmulOptions.
struct GemmEpilogue {
    const void* bias = nullptr;  // [n] in the type of the output
    Activation activation = Activation::none, backward = Activation::none;
    void* pre = nullptr;         // like the output, contiguous
};

// out = epilogue(op(a) op(b)) in one launch; no size is 0. False, and nothing enqueued, if cuBLASLt has no such
// epilogue for this problem; without an epilogue always true (or RunError). p.bias is not looked at.
bool gemm(const GemmProblem& p, const void* a, const void* b, void* out, const GemmEpilogue& epilogue, void* workspace,
          Context& ctx);

// The product alone, of any size, 0 included (matmul.cu).
void gemm_any(const GemmProblem& p, const void* a, const void* b, void* out, void* workspace, Context& ctx);

}  // namespace llmc
