// cuBLASLt for the emulator, put in at link time: those functions of the toolkit's cublasLt.h that the CUDA backend
// calls, on the CPU. It is stricter than the library: what NVIDIA documents as a condition is checked, whether the GPU
// would have minded or not. CUBLASLT_LOG_LEVEL=1, the library's own variable, makes it say on standard error what it
// refuses and why.
//
// EMU_CUBLASLT_EPILOGUES=0: the heuristic finds no algorithm with an epilogue, as on a GPU that lacks them.
#include "dev/emu/cublaslt.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "dev/emu/stream.h"

struct cublasLtContext {};  // the handle

namespace emu {
namespace {

cublasStatus_t refuse(cublasStatus_t status, const char* why) {
    const char* level = getenv("CUBLASLT_LOG_LEVEL");
    if (level && atoi(level) > 0) fprintf(stderr, "emulator: cuBLASLt: %s: %s\n", cublasLtGetStatusName(status), why);
    return status;
}
cublasStatus_t invalid(const char* why) { return refuse(CUBLAS_STATUS_INVALID_VALUE, why); }
cublasStatus_t unsupported(const char* why) { return refuse(CUBLAS_STATUS_NOT_SUPPORTED, why); }

// ------------------------------------------------------------------------------------------- descriptors, attributes
struct Operation {
    int32_t compute, scale;
    int32_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
    uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    char *bias = nullptr, *aux = nullptr;
    int64_t bias_stride = 0, aux_ld = 0, aux_stride = 0;
    int32_t bias_type = -1, aux_type = -1;  // -1: as the output
};
struct Layout {
    uint32_t type;
    uint64_t rows, columns;
    int64_t ld;
    int32_t order = CUBLASLT_ORDER_COL, batch = 1;
    int64_t stride = 0;
};
struct Preference {
    uint64_t workspace = 0;
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
    uint32_t alignment[4] = {256, 256, 256, 256};  // of A, B, C, D
};

struct Field {
    int attribute;
    size_t offset, bytes;
};
#define FIELD(attribute, type, member) Field{attribute, offsetof(type, member), sizeof(type::member)}

constexpr Field find(std::initializer_list<Field> fields, int attribute) {
    for (const Field& f : fields)
        if (f.attribute == attribute) return f;
    return {};
}
constexpr Field field_of(const Operation*, int attribute) {
    return find({FIELD(CUBLASLT_MATMUL_DESC_TRANSA, Operation, transpose_a),
                 FIELD(CUBLASLT_MATMUL_DESC_TRANSB, Operation, transpose_b),
                 FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE, Operation, epilogue),
                 FIELD(CUBLASLT_MATMUL_DESC_BIAS_POINTER, Operation, bias),
                 FIELD(CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, Operation, bias_stride),
                 FIELD(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, Operation, bias_type),
                 FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, Operation, aux),
                 FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, Operation, aux_ld),
                 FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, Operation, aux_stride),
                 FIELD(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, Operation, aux_type)},
                attribute);
}
constexpr Field field_of(const Layout*, int attribute) {
    return find({FIELD(CUBLASLT_MATRIX_LAYOUT_TYPE, Layout, type),
                 FIELD(CUBLASLT_MATRIX_LAYOUT_ORDER, Layout, order),
                 FIELD(CUBLASLT_MATRIX_LAYOUT_ROWS, Layout, rows),
                 FIELD(CUBLASLT_MATRIX_LAYOUT_COLS, Layout, columns),
                 FIELD(CUBLASLT_MATRIX_LAYOUT_LD, Layout, ld),
                 FIELD(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, Layout, batch),
                 FIELD(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, Layout, stride)},
                attribute);
}
constexpr Field field_of(const Preference*, int attribute) {
    return find({FIELD(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, Preference, workspace),
                 FIELD(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, Preference, reductions),
                 FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, Preference, alignment[0]),
                 FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, Preference, alignment[1]),
                 FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, Preference, alignment[2]),
                 FIELD(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, Preference, alignment[3])},
                attribute);
}

template <class T>
cublasStatus_t set_attribute(T* object, int attribute, const void* value, size_t bytes) {
    const Field field = field_of(object, attribute);
    if (!object || !value) return invalid("an attribute of or from nothing");
    if (field.bytes == 0) return unsupported("this attribute is not emulated");
    if (bytes != field.bytes) return invalid("an attribute has another size");
    memcpy(reinterpret_cast<char*>(object) + field.offset, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

template <class T>
cublasStatus_t get_attribute(T* object, int attribute, void* value, size_t bytes, size_t* written) {
    const Field field = field_of(object, attribute);
    if (!object || (bytes == 0 ? !written : !value)) return invalid("an attribute of or to nothing");
    if (field.bytes == 0) return unsupported("this attribute is not emulated");
    if (written) *written = field.bytes;
    if (bytes == 0) return CUBLAS_STATUS_SUCCESS;
    if (bytes != field.bytes) return invalid("an attribute has another size");
    memcpy(value, reinterpret_cast<char*>(object) + field.offset, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

Operation* inside(cublasLtMatmulDesc_t d) { return reinterpret_cast<Operation*>(d); }
Layout* inside(cublasLtMatrixLayout_t d) { return reinterpret_cast<Layout*>(d); }
Preference* inside(cublasLtMatmulPreference_t d) { return reinterpret_cast<Preference*>(d); }

// ---------------------------------------------------------------------------------------------------------- checks
cublasStatus_t check_layout(const Layout& x) {
    if (x.order != CUBLASLT_ORDER_COL) return unsupported("a matrix is not stored in columns");
    if (x.rows == 0 || x.columns == 0 || x.batch < 1) return invalid("an empty matrix");
    if (x.ld < int64_t(x.rows)) return invalid("a leading dimension is smaller than the number of rows");
    return CUBLAS_STATUS_SUCCESS;
}

// float32, or bfloat16 with an output of either type; scaled and summed in float32.
cublasStatus_t check_types(const Operation& o, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    if (o.compute != CUBLAS_COMPUTE_32F || o.scale != CUDA_R_32F) return unsupported("not summed in float");
    if (a.type != b.type || c.type != d.type) return unsupported("A and B, or C and D, differ in type");
    if (a.type != CUDA_R_32F && a.type != CUDA_R_16BF) return unsupported("type of A");
    if (d.type != CUDA_R_32F && (d.type != CUDA_R_16BF || a.type != CUDA_R_16BF)) return unsupported("type of D");
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t check_shapes(const Operation& o, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    for (const Layout* x : {&a, &b, &c, &d}) {
        if (const cublasStatus_t status = check_layout(*x)) return status;
        if (x->batch != d.batch) return invalid("batches of different sizes");
    }
    const bool ta = o.transpose_a != CUBLAS_OP_N, tb = o.transpose_b != CUBLAS_OP_N;
    if ((ta ? a.columns : a.rows) != d.rows || (tb ? b.rows : b.columns) != d.columns) return invalid("shape of D");
    if ((ta ? a.rows : a.columns) != (tb ? b.columns : b.rows)) return invalid("A and B do not fit");
    if (c.rows != d.rows || c.columns != d.columns) return invalid("C and D differ in shape");
    if (d.batch > 1 && d.stride == 0) return invalid("all matrices of a batch are written to one place");
    return CUBLAS_STATUS_SUCCESS;
}

bool has_bias(uint32_t epilogue) { return epilogue & CUBLASLT_EPILOGUE_BIAS; }
bool has_aux(uint32_t epilogue) { return epilogue & 128; }

cublasStatus_t check_epilogue(const Operation& o, const Layout& d) {
    switch (o.epilogue) {
        case CUBLASLT_EPILOGUE_DEFAULT: return CUBLAS_STATUS_SUCCESS;
        case CUBLASLT_EPILOGUE_RELU: case CUBLASLT_EPILOGUE_BIAS: case CUBLASLT_EPILOGUE_RELU_BIAS:
        case CUBLASLT_EPILOGUE_GELU: case CUBLASLT_EPILOGUE_GELU_BIAS: case CUBLASLT_EPILOGUE_GELU_AUX:
        case CUBLASLT_EPILOGUE_GELU_AUX_BIAS: case CUBLASLT_EPILOGUE_DGELU: break;
        default: return unsupported("this epilogue is not emulated");
    }
    if (has_bias(o.epilogue)) {
        if (!o.bias) return invalid("no bias");
        if (o.bias_type != -1 && o.bias_type != int32_t(d.type)) return unsupported("the bias has not the type of D");
    }
    if (has_aux(o.epilogue)) {
        if (!o.aux) return invalid("no second matrix");
        if (o.aux_type != -1 && o.aux_type != int32_t(d.type)) return unsupported("type of the second matrix");
        if (o.aux_ld % 8 != 0 || o.aux_ld < int64_t(d.rows)) return invalid("leading dimension of the second matrix");
        if (d.batch > 1 && o.aux_stride % 8 != 0) return invalid("batch stride of the second matrix");
    }
    const char* epilogues = getenv("EMU_CUBLASLT_EPILOGUES");
    if (epilogues && atoi(epilogues) == 0) return unsupported("EMU_CUBLASLT_EPILOGUES=0");
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t check_problem(const Operation& o, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    if (const cublasStatus_t status = check_types(o, a, b, c, d)) return status;
    if (const cublasStatus_t status = check_shapes(o, a, b, c, d)) return status;
    return check_epilogue(o, d);
}

// ------------------------------------------------------------------------------------------------------- algorithm
// What an "algorithm" knows: the problem it was chosen for, the alignments it may rely on, and its workspace.
struct Algorithm {
    uint64_t problem;
    uint32_t alignment[4];
    uint64_t workspace;
};
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

uint64_t fingerprint(const Operation& o, std::initializer_list<const Layout*> layouts) {
    uint64_t hash = 0xcbf29ce484222325;
    auto mix = [&](uint64_t word) { hash = (hash ^ word) * 0x100000001b3, hash ^= hash >> 29; };
    for (uint64_t word : {uint64_t(o.transpose_a), uint64_t(o.transpose_b), uint64_t(o.epilogue)}) mix(word);
    for (const Layout* x : layouts)
        for (uint64_t word : {uint64_t(x->type), x->rows, x->columns, uint64_t(x->ld), uint64_t(x->batch),
                              uint64_t(x->stride)})
            mix(word);
    return hash;
}

Matrix matrix(const Layout& x, const void* data) {
    return {.type = cudaDataType(x.type), .rows = int64_t(x.rows), .columns = int64_t(x.columns), .ld = x.ld,
            .batch = x.batch, .stride = x.stride, .data = static_cast<char*>(const_cast<void*>(data))};
}

bool aligned(const Matrix& x, uint32_t alignment) {
    const uint64_t step = x.batch > 1 ? uint64_t(x.stride * x.element_size()) : 0;
    return (reinterpret_cast<uintptr_t>(x.data) | step) % alignment == 0;
}
bool overlap(const Matrix& x, const void* data, int64_t bytes) {
    const char* other = static_cast<const char*>(data);
    return x.data < other + bytes && other < x.data + x.bytes();
}

// From its first byte to its last.
bool on_device(const Matrix& x) {
    cudaPointerAttributes first{}, last{};
    return cudaPointerGetAttributes(&first, x.data) == cudaSuccess && first.type == cudaMemoryTypeDevice &&
           cudaPointerGetAttributes(&last, x.data + x.bytes() - 1) == cudaSuccess && last.type == cudaMemoryTypeDevice;
}

// The product with all its addresses, if they are what the algorithm expects.
cublasStatus_t check_addresses(const Product& p, const Algorithm& algorithm, void* workspace, size_t bytes) {
    if (!p.a.data || !p.b.data || !p.d.data || (p.beta != 0 && !p.c.data)) return invalid("a matrix is nowhere");
    const Matrix* all[] = {&p.a, &p.b, &p.c, &p.d};
    for (int i = 0; i < 4; i++)
        if (!aligned(*all[i], algorithm.alignment[i])) return invalid("a matrix is aligned less than was promised");
    for (const Matrix* x : {&p.a, &p.b, &p.c, &p.d, &p.bias, &p.aux})
        if (x->data && !on_device(*x)) return invalid("a matrix reaches out of device memory");
    if (bytes < algorithm.workspace || (algorithm.workspace > 0 && !workspace)) return invalid("too little workspace");
    if (reinterpret_cast<uintptr_t>(workspace) % 256 != 0) return invalid("the workspace is not 256-byte aligned");
    if (overlap(p.d, p.a.data, p.a.bytes()) || overlap(p.d, p.b.data, p.b.bytes())) return invalid("D overlaps A or B");
    if (p.beta != 0 && p.c.data != p.d.data && overlap(p.d, p.c.data, p.c.bytes())) return invalid("C is not quite D");
    if (p.c.data == p.d.data && (p.c.ld != p.d.ld || p.c.stride != p.d.stride)) return invalid("C is D laid out anew");
    for (const Matrix* x : {&p.a, &p.b, &p.d})
        if (overlap(*x, workspace, int64_t(bytes))) return invalid("the workspace overlaps a matrix");
    if (p.aux.data && overlap(p.d, p.aux.data, p.aux.bytes())) return invalid("D overlaps the second matrix");
    return CUBLAS_STATUS_SUCCESS;
}

}  // namespace
}  // namespace emu

// ------------------------------------------------------------------------------------------------ exported functions
using namespace emu;

extern "C" {

size_t cublasLtGetVersion() { return CUBLAS_VERSION; }

const char* cublasLtGetStatusName(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
        case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
        case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
        case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
        case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
        default: return "another cublasStatus_t";
    }
}
const char* cublasLtGetStatusString(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS: return "success";
        case CUBLAS_STATUS_NOT_INITIALIZED: return "the library was not initialized";
        case CUBLAS_STATUS_INVALID_VALUE: return "an unsupported value or parameter was passed to the function";
        case CUBLAS_STATUS_NOT_SUPPORTED: return "the functionality requested is not supported";
        case CUBLAS_STATUS_EXECUTION_FAILED: return "the program failed to execute";
        default: return "unknown";
    }
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
    int devices = 0;
    if (!handle) return invalid("nowhere to put the handle");
    if (cudaGetDeviceCount(&devices) != cudaSuccess) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no device");
    *handle = new cublasLtContext;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, cublasComputeType_t compute, cudaDataType_t scale) {
    *d = reinterpret_cast<cublasLtMatmulDesc_t>(new Operation{.compute = compute, .scale = scale});
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    delete inside(d);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
    return set_attribute(inside(d), attribute, value, bytes);
}
cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute,
                                              void* value, size_t bytes, size_t* written) {
    return get_attribute(inside(d), attribute, value, bytes, written);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* d, cudaDataType type, uint64_t rows, uint64_t columns,
                                          int64_t ld) {
    *d = reinterpret_cast<cublasLtMatrixLayout_t>(
        new Layout{.type = uint32_t(type), .rows = rows, .columns = columns, .ld = ld});
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t d) {
    delete inside(d);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t d, cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, size_t bytes) {
    return set_attribute(inside(d), attribute, value, bytes);
}
cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t d, cublasLtMatrixLayoutAttribute_t attribute,
                                                void* value, size_t bytes, size_t* written) {
    return get_attribute(inside(d), attribute, value, bytes, written);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* d) {
    *d = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t d) {
    delete inside(d);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t d,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
    return set_attribute(inside(d), attribute, value, bytes);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int* count) {
    if (!handle) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no handle");
    if (!operation || !a || !b || !c || !d || !preference || wanted < 1 || !results || !count)
        return invalid("the heuristic is not told everything");
    *count = 0;
    const Operation& o = *inside(operation);
    const Layout &la = *inside(a), &lb = *inside(b), &lc = *inside(c), &ld = *inside(d);
    if (const cublasStatus_t status = check_problem(o, la, lb, lc, ld)) return status;
    Algorithm algorithm{.problem = fingerprint(o, {&la, &lb, &lc, &ld}), .alignment = {}, .workspace = 0};
    for (int i = 0; i < 4; i++) {
        algorithm.alignment[i] = inside(preference)->alignment[i];
        if (algorithm.alignment[i] == 0 || (algorithm.alignment[i] & (algorithm.alignment[i] - 1)))
            return invalid("an alignment is not a power of two");
    }
    // Some algorithms need scratch: here, for want of a reason, a float per row of D.
    algorithm.workspace = std::min<uint64_t>(ld.rows * 4, inside(preference)->workspace);
    results[0] = {};
    memcpy(&results[0].algo, &algorithm, sizeof algorithm);
    results[0].workspaceSize = algorithm.workspace;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    results[0].wavesCount = 1;
    *count = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t layout_a, const void* b, cublasLtMatrixLayout_t layout_b,
                              const void* beta, const void* c, cublasLtMatrixLayout_t layout_c, void* d,
                              cublasLtMatrixLayout_t layout_d, const cublasLtMatmulAlgo_t* algo, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    if (!handle) return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no handle");
    if (!operation || !alpha || !beta || !layout_a || !layout_b || !layout_c || !layout_d)
        return invalid("an argument is missing");
    if (!algo) return unsupported("without an algorithm the library would ask its heuristic at every call");
    const Operation& o = *inside(operation);
    const Layout &la = *inside(layout_a), &lb = *inside(layout_b), &lc = *inside(layout_c), &ld = *inside(layout_d);
    if (const cublasStatus_t status = check_problem(o, la, lb, lc, ld)) return status;
    Algorithm algorithm;
    memcpy(&algorithm, algo, sizeof algorithm);
    if (algorithm.problem != fingerprint(o, {&la, &lb, &lc, &ld}))
        return invalid("the algorithm is for another problem");

    // All is copied now: the caller may change its descriptors and scalars before the work is done.
    Product p{.a = matrix(la, a), .b = matrix(lb, b), .c = matrix(lc, c), .d = matrix(ld, d), .aux = {},
              .transpose_a = o.transpose_a != CUBLAS_OP_N, .transpose_b = o.transpose_b != CUBLAS_OP_N,
              .alpha = *static_cast<const float*>(alpha), .beta = *static_cast<const float*>(beta),
              .epilogue = cublasLtEpilogue_t(o.epilogue), .bias = {}};
    if (has_aux(o.epilogue)) p.aux = p.d, p.aux.ld = o.aux_ld, p.aux.stride = o.aux_stride, p.aux.data = o.aux;
    if (has_bias(o.epilogue)) p.bias = p.d, p.bias.columns = 1, p.bias.stride = o.bias_stride, p.bias.data = o.bias;
    if (const cublasStatus_t status = check_addresses(p, algorithm, workspace, workspace_bytes)) return status;
    const cudaError_t error = post(stream, [p, workspace, bytes = algorithm.workspace] {
        if (bytes > 0) memset(workspace, 0xff, bytes);  // nobody else may keep anything there
        multiply(p);
    });
    return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : refuse(CUBLAS_STATUS_EXECUTION_FAILED, "the stream");
}

}  // extern "C"
