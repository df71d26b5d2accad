// GEMMs without any library: correct and threaded, half of oneDNN's speed or less.
#include "llmc/ops/cpu/gemm_loops.h"

namespace llmc {

struct GemmLibrary {
    int threads;
};

GemmLibrary* gemm_create(int threads) { return new GemmLibrary{threads}; }
void gemm_destroy(GemmLibrary* library) { delete library; }
const char* gemm_library() { return "plain loops (no GEMM library)"; }
bool gemm_has_bf16(GemmLibrary*) { return false; }
std::string gemm_implementation(GemmLibrary*, const GemmProblem&) { return "loops"; }

void gemm(GemmLibrary* library, const GemmProblem& p, const void* a, const void* b, const void* bias, void* c) {
    gemm_loops(p, static_cast<const float*>(a), static_cast<const float*>(b), static_cast<const float*>(bias),
               static_cast<float*>(c), library->threads);
}

GemmOfAnySize::GemmOfAnySize(GemmLibrary* library, const GemmProblem&) : library(library) {}
GemmOfAnySize::~GemmOfAnySize() = default;

void GemmOfAnySize::multiply(const GemmProblem& p, const void* a, const void* b, void* c) const {
    gemm_loops<float>(p, static_cast<const float*>(a), static_cast<const float*>(b), nullptr, static_cast<float*>(c),
                      1);
}

}  // namespace llmc
