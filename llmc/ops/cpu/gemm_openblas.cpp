// GEMMs by OpenBLAS, where oneDNN is missing: float32, then a pass for the bias.
#include <cblas.h>

#include <cstdlib>
#include <limits>

#include "llmc/ops/cpu/cpu.h"
#include "llmc/ops/cpu/gemm.h"

// Parts of OpenBLAS that choose its kernels; they exist where it was built for many processors (DYNAMIC_ARCH).
extern "C" void gotoblas_dynamic_init() __attribute__((weak));
extern "C" void gotoblas_dynamic_quit() __attribute__((weak));

namespace llmc {

struct GemmLibrary { int threads; };

namespace {

// On a processor it does not know by number, OpenBLAS takes its oldest kernels (Prescott, SSE3): 45 GFLOP/s where
// SkylakeX kernels make 220. So it is told what the processor can do, once, unless the user has decided
// (OPENBLAS_CORETYPE).
bool choose_kernels() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!avx2 || std::string(openblas_get_corename()) != "Prescott" || std::getenv("OPENBLAS_CORETYPE")) return false;
    if (!gotoblas_dynamic_init || !gotoblas_dynamic_quit) return false;
    setenv("OPENBLAS_CORETYPE", avx512 ? "SkylakeX" : "Haswell", 1);
    gotoblas_dynamic_quit();
    gotoblas_dynamic_init();
    unsetenv("OPENBLAS_CORETYPE");
    return true;
#else
    return false;
#endif
}

}  // namespace

GemmLibrary* gemm_create(int threads) {
    [[maybe_unused]] static const bool chosen = choose_kernels();
    openblas_set_num_threads(threads);
    return new GemmLibrary{threads};
}

void gemm_destroy(GemmLibrary* library) { delete library; }

// "OpenBLAS 0.3.21, SkylakeX kernels"
const char* gemm_library() {
    static const std::string name = [] {
        std::istringstream config(openblas_get_config());  // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ..."
        std::string library, version;
        config >> library >> version;
        return library + " " + version + ", " + openblas_get_corename() + " kernels";
    }();
    return name.c_str();
}

bool gemm_has_bf16(GemmLibrary*) { return false; }

std::string gemm_implementation(GemmLibrary*, const GemmProblem&) { return openblas_get_corename(); }

namespace {

// c (+)= op(a) op(b), one matrix of the problem.
void multiply_matrix(const GemmProblem& p, const float* a, const float* b, float* c) {
    for (int64_t size : {p.m, p.n, p.k, p.lda, p.ldb, p.ldc})
        if (size > std::numeric_limits<blasint>::max())
            run_error("OpenBLAS cannot multiply ", p.text(), ": a size does not fit");
    cblas_sgemm(CblasRowMajor, p.transpose_a ? CblasTrans : CblasNoTrans, p.transpose_b ? CblasTrans : CblasNoTrans,
                blasint(p.m), blasint(p.n), blasint(p.k), 1.0f, a, blasint(p.lda), b, blasint(p.ldb),
                p.accumulate ? 1.0f : 0.0f, c, blasint(p.ldc));
}

}  // namespace

void gemm(GemmLibrary* library, const GemmProblem& p, const void* a, const void* b, const void* bias, void* c) {
    for (int64_t batch = 0; batch < p.batch; batch++)
        multiply_matrix(p, static_cast<const float*>(a) + batch * p.stride_a,
                        static_cast<const float*>(b) + batch * p.stride_b, static_cast<float*>(c) + batch * p.stride_c);
    if (!p.bias) return;
    const float* add = static_cast<const float*>(bias);
#pragma omp parallel for schedule(static) num_threads(library->threads)
    for (int64_t row = 0; row < p.batch * p.m; row++) {
        float* out = static_cast<float*>(c) + row / p.m * p.stride_c + row % p.m * p.ldc;
        for (int64_t j = 0; j < p.n; j++) out[j] += add[j];
    }
}

// OpenBLAS has threads of its own, which know nothing of ours: they rest while ours multiply.
GemmOfAnySize::GemmOfAnySize(GemmLibrary* library, const GemmProblem&) : library(library) {
    openblas_set_num_threads(1);
}
GemmOfAnySize::~GemmOfAnySize() { openblas_set_num_threads(library->threads); }

void GemmOfAnySize::multiply(const GemmProblem& p, const void* a, const void* b, void* c) const {
    multiply_matrix(p, static_cast<const float*>(a), static_cast<const float*>(b), static_cast<float*>(c));
}

}  // namespace llmc
