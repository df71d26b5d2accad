// gemm.h by cuBLASLt. Host code only.
//
// cuBLASLt thinks in columns: a row-major [M,N] is its column-major [N,M]. So it is asked for
//     out^T [N,M] = op(b)^T [N,K] op(a)^T [K,M],
// with our b as its A and our a as its B; transposes, and with them all memory, stay as they are.
//
// The algorithm for a problem is the first answer of cuBLASLt's heuristic: no timing, so every run takes the same one
// and, on one kind of GPU, gives the same bits. It is asked once per kind of problem.
#include <cublasLt.h>

#include <array>
#include <optional>

#include "llmc/ops/cuda/backend.h"
#include "llmc/ops/cuda/gemm.h"

namespace llmc {

namespace {

void check_cublas(cublasStatus_t status, const GemmProblem& p) {
    if (status != CUBLAS_STATUS_SUCCESS)
        run_error("matmul ", p.text(), ": cuBLASLt says ", cublasLtGetStatusName(status), ": ",
                  cublasLtGetStatusString(status));
}

struct Destroy {
    void operator()(cublasLtMatmulDesc_t d) const { cublasLtMatmulDescDestroy(d); }
    void operator()(cublasLtMatrixLayout_t d) const { cublasLtMatrixLayoutDestroy(d); }
    void operator()(cublasLtMatmulPreference_t d) const { cublasLtMatmulPreferenceDestroy(d); }
};
template <class Pointer>
using Owned = std::unique_ptr<std::remove_pointer_t<Pointer>, Destroy>;

template <class T>
void set(const Owned<cublasLtMatmulDesc_t>& d, cublasLtMatmulDescAttributes_t attribute, T value,
         const GemmProblem& p) {
    check_cublas(cublasLtMatmulDescSetAttribute(d.get(), attribute, &value, sizeof value), p);
}
template <class T>
void set(const Owned<cublasLtMatrixLayout_t>& d, cublasLtMatrixLayoutAttribute_t attribute, T value,
         const GemmProblem& p) {
    check_cublas(cublasLtMatrixLayoutSetAttribute(d.get(), attribute, &value, sizeof value), p);
}
template <class T>
void set(const Owned<cublasLtMatmulPreference_t>& d, cublasLtMatmulPreferenceAttributes_t attribute, T value,
         const GemmProblem& p) {
    check_cublas(cublasLtMatmulPreferenceSetAttribute(d.get(), attribute, &value, sizeof value), p);
}

// Largest power of two up to 256 that divides the addresses of all matrices of a batch.
uint32_t alignment_of(const void* data, int64_t batch, int64_t stride, DType dtype) {
    uint64_t bits = reinterpret_cast<uintptr_t>(data) | 256;
    if (batch > 1) bits |= uint64_t(stride * size_of(dtype));
    return uint32_t(bits & -bits);
}

cudaDataType_t cuda_type(DType dtype) {
    switch (dtype) {
        case DType::f32: return CUDA_R_32F;
        case DType::bf16: return CUDA_R_16BF;
        case DType::f64:
        case DType::i32: break;
    }
    run_error("matrix products of dtype ", name_of(dtype), " are not for GPUs: f32 and bf16 are");
}

// The name of our epilogue in cuBLASLt, if it has one and the documented conditions for it hold.
std::optional<cublasLtEpilogue_t> find_epilogue(const GemmProblem& p, const GemmEpilogue& e, bool fuse_gelu) {
    const bool gelu = e.activation == Activation::gelu, dgelu = e.backward == Activation::gelu;
    if (e.bias && (p.in != p.out || reinterpret_cast<uintptr_t>(e.bias) % 16 != 0)) return {};
    // The second matrix: leading dimension and batch stride are multiples of 8.
    if (e.pre && (p.n % 8 != 0 || reinterpret_cast<uintptr_t>(e.pre) % 16 != 0)) return {};
    // The library's GELU is the tanh form, like ours; its accuracy in f32 is not documented.
    if ((gelu || dgelu) && !(fuse_gelu && p.out == DType::bf16)) return {};
    if (dgelu) return CUBLASLT_EPILOGUE_DGELU;
    if (gelu && e.pre) return e.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    if (gelu) return e.bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    // Not CUBLASLT_EPILOGUE_RELU: users report that it turns NaN into 0 (NVIDIA's documentation says max(x, 0) and
    // nothing about NaN), which would hide a model that has diverged. Its gradient, CUBLASLT_EPILOGUE_DRELU, wants a
    // bit mask that only that epilogue writes.
    if (e.activation != Activation::none || e.backward != Activation::none) return {};
    return e.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

// Everything that the choice of an algorithm depends on.
struct Key {
    GemmProblem problem;
    cublasLtEpilogue_t epilogue;
    std::array<uint32_t, 3> alignment;  // of a, b, out
    auto operator<=>(const Key&) const = default;
};

// A problem in cuBLASLt's words, with its algorithm. Addresses of bias and pre are set before each use.
struct Plan {
    Owned<cublasLtMatmulDesc_t> operation;
    Owned<cublasLtMatrixLayout_t> a, b, out;
    cublasLtMatmulAlgo_t algorithm{};
    size_t workspace = 0;
    bool found = false;  // false: cuBLASLt cannot do this
};

Owned<cublasLtMatrixLayout_t> layout(const GemmProblem& p, DType dtype, int64_t rows, int64_t columns, int64_t ld,
                                     int64_t stride) {
    cublasLtMatrixLayout_t raw = nullptr;
    check_cublas(cublasLtMatrixLayoutCreate(&raw, cuda_type(dtype), uint64_t(rows), uint64_t(columns), ld), p);
    Owned<cublasLtMatrixLayout_t> result(raw);
    if (p.batch > 1) {
        set(result, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, int32_t(p.batch), p);
        set(result, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride, p);
    }
    return result;
}

// CUBLAS_COMPUTE_32F: float accumulators, and for f32 no TF32.
Plan describe(const GemmProblem& p, cublasLtEpilogue_t epilogue) {
    Plan plan;
    cublasLtMatmulDesc_t raw = nullptr;
    check_cublas(cublasLtMatmulDescCreate(&raw, CUBLAS_COMPUTE_32F, CUDA_R_32F), p);
    plan.operation.reset(raw);
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, int32_t(p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N), p);
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, int32_t(p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N), p);
    set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t(epilogue), p);
    const bool tb = p.transpose_b, ta = p.transpose_a;
    plan.a = layout(p, p.in, tb ? p.k : p.n, tb ? p.n : p.k, p.ldb, p.stride_b);
    plan.b = layout(p, p.in, ta ? p.m : p.k, ta ? p.k : p.m, p.lda, p.stride_a);
    plan.out = layout(p, p.out, p.n, p.m, p.ldc, p.stride_c);
    return plan;
}

// Addresses go in before the heuristic is asked: it reads their alignment.
void set_addresses(const Plan& plan, const GemmProblem& p, const GemmEpilogue& e) {
    if (e.bias) set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, e.bias, p);
    if (!e.pre) return;
    set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, e.pre, p);
    set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.n, p);
    if (p.batch > 1) set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, p.m * p.n, p);
}

void choose_algorithm(Plan& plan, const Key& key, cublasLtHandle_t cublas) {
    const GemmProblem& p = key.problem;
    cublasLtMatmulPreference_t raw = nullptr;
    check_cublas(cublasLtMatmulPreferenceCreate(&raw), p);
    const Owned<cublasLtMatmulPreference_t> preference(raw);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(gemm_workspace_bytes), p);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.alignment[1], p);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.alignment[0], p);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.alignment[2], p);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.alignment[2], p);
    // A long sum may be cut into parts, but bf16 is storage: parts are not added up in it.
    if (p.out == DType::bf16)
        set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE),
            p);

    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(cublas, plan.operation.get(), plan.a.get(), plan.b.get(), plan.out.get(),
                                       plan.out.get(), preference.get(), 1, &result, &count);
    // For an epilogue that it does not have, it may also report an invalid value. Other errors occur again in the plain
    // product.
    if (status != CUBLAS_STATUS_NOT_SUPPORTED && key.epilogue == CUBLASLT_EPILOGUE_DEFAULT) check_cublas(status, p);
    plan.found = status == CUBLAS_STATUS_SUCCESS && count > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    plan.algorithm = result.algo;
    plan.workspace = result.workspaceSize;
}

}  // namespace

struct MatmulCache {
    std::map<Key, Plan> plans;
};

bool gemm(const GemmProblem& p, const void* a, const void* b, void* out, const GemmEpilogue& epilogue, void* workspace,
          Context& ctx) {
    const std::optional<cublasLtEpilogue_t> name = find_epilogue(p, epilogue, ctx.backend->fuse_gelu);
    if (!name) return false;
    Backend& backend = *ctx.backend;
    if (!backend.matmuls) backend.matmuls = std::make_shared<MatmulCache>();
    const Key key{p, *name, {alignment_of(a, p.batch, p.stride_a, p.in), alignment_of(b, p.batch, p.stride_b, p.in),
                             alignment_of(out, p.batch, p.stride_c, p.out)}};
    auto [entry, is_new] = backend.matmuls->plans.try_emplace(key);
    Plan& plan = entry->second;
    if (is_new) plan = describe(p, *name);
    set_addresses(plan, p, epilogue);
    if (is_new) choose_algorithm(plan, key, backend.cublas);

    cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (plan.found) {
        const float one = 1, beta = p.accumulate ? 1 : 0;
        ctx.launches++;
        status = cublasLtMatmul(backend.cublas, plan.operation.get(), &one, b, plan.a.get(), a, plan.b.get(), &beta,
                                out, plan.out.get(), out, plan.out.get(), &plan.algorithm, workspace, plan.workspace,
                                backend.stream);
    }
    if (status == CUBLAS_STATUS_NOT_SUPPORTED && *name != CUBLASLT_EPILOGUE_DEFAULT) {
        plan.found = false;  // without asking again
        return false;
    }
    check_cublas(status, p);
    return true;
}

}  // namespace llmc
