// The interface to a GEMM library. Exactly one of gemm_onednn.cpp, gemm_openblas.cpp, gemm_plain.cpp is linked.
#pragma once
#include "llmc/ops/checks/matmul.h"

namespace llmc {

struct GemmLibrary;                      // handles and cached primitives; lives in the Backend
GemmLibrary* gemm_create(int threads);
void gemm_destroy(GemmLibrary*);
const char* gemm_library();              // name and version, e.g. "oneDNN 2.6.3"
// in, out: f32, or bf16 where gemm_has_bf16 (f64 is for gemm_any); no size is 0. Its own scratch (a few MB at most)
// belongs to the library handle, so it is not for calls from several threads at a time.
void gemm(GemmLibrary*, const GemmProblem&, const void* a, const void* b, const void* bias, void* c);
bool gemm_has_bf16(GemmLibrary*);
// The library's name of its implementation for this problem (oneDNN: impl_info_str); for tests and benchmarks.
std::string gemm_implementation(GemmLibrary*, const GemmProblem&);

// Products of any sizes, with the types, the transposes and `accumulate` of `kind`, each made by one thread; several
// threads may make theirs at a time. Nothing is prepared or kept for a size, so they may be new with every call. No
// batch, no bias, no size 0. While one of these exists, gemm() is not called.
class GemmOfAnySize {
  public:
    GemmOfAnySize(GemmLibrary*, const GemmProblem& kind);
    ~GemmOfAnySize();
    GemmOfAnySize(const GemmOfAnySize&) = delete;
    GemmOfAnySize& operator=(const GemmOfAnySize&) = delete;
    void multiply(const GemmProblem&, const void* a, const void* b, void* c) const;

  private:
    GemmLibrary* library;
    const void* prepared = nullptr;  // by the library, once for every kind
};

// The function for ops, to be called inside their Op: any float type (f64 by plain loops, bf16 through f32 where the
// library has none) and any size, 0 included.
void gemm_any(const GemmProblem&, const void* a, const void* b, const void* bias, void* c, Context& ctx);

}  // namespace llmc
