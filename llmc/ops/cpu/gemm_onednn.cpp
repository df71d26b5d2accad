// GEMMs by oneDNN: https://oneapi-src.github.io/oneDNN/dev_guide_matmul.html. Builds with 2.x and 3.x.
//
// One rule for all problems: operands go in as they lie in memory, a transpose being a pair of swapped strides, and the
// experts of a layer as one batched primitive. Measured on two cores with an FMA peak of 340 (f32, GFLOP/s):
//                             forward  input gradient  weight gradient   alternative
//     [8192 x 512] to 1536        224             241              223   143  weight gradient with dout^T copied first
//     [8192 x 512] to 2048        232             244              227   158  the same
//     [8192 x 2048] to 512        255             243              240   205  the same
//     [8192 x 768] to 3072        225             206              228   149  the same
//     [512 x 512] to 50257        209             245              209   126  the same
//     32 x [64 x 512] to 128      262             220              206   231 171 191  one primitive per expert
//     8 x [1024 x 512] to 2048    228             232              221   223 237 219  the same
// bf16 on AVX-512 BF16: 133 to 160 everywhere. (On AVX-512, most products in f32 do not come here: gemm_packed.h,
// gemm_few_rows.h.)
//
// Where sizes are new with every call (experts that own as many rows as they need), a primitive takes them when it
// runs, and every thread makes products of its own.
#include <omp.h>

#include <dnnl.hpp>

#include <map>
#include <unordered_map>
#include <vector>

#include "llmc/ops/cpu/gemm.h"

namespace llmc {

namespace {

using dnnl::matmul;
using dnnl::memory;

struct Primitive {
    matmul primitive;
    memory a, b, bias, c, scratchpad;
    std::unordered_map<int, memory> arguments;
    std::string implementation;
    size_t scratchpad_bytes = 0;
};

struct PrimitiveOfAnySize {
    matmul primitive;
    memory::desc scratchpad;
};

// oneDNN takes its number of threads from OpenMP, when a primitive is made and when it runs.
struct ThreadScope {
    int before = omp_get_max_threads();
    explicit ThreadScope(int threads) { omp_set_num_threads(threads); }
    ~ThreadScope() { omp_set_num_threads(before); }
    ThreadScope(const ThreadScope&) = delete;
    ThreadScope& operator=(const ThreadScope&) = delete;
};

}  // namespace

struct GemmLibrary {
    int threads = 1;
    dnnl::engine engine{dnnl::engine::kind::cpu, 0};
    dnnl::stream stream{engine};
    std::map<GemmProblem, Primitive> primitives;
    std::map<GemmProblem, PrimitiveOfAnySize> of_any_size;  // by types, transposes, accumulate: a handful
    std::vector<char> scratchpad;
};

namespace {

memory::data_type data_type(DType t) {
    switch (t) {
        case DType::f32: return memory::data_type::f32;
        case DType::bf16: return memory::data_type::bf16;
        case DType::f64:
        case DType::i32: break;
    }
    run_error("oneDNN multiplies no matrices of dtype ", name_of(t));
}

// One matrix of the problem, or a stack of them. What is 0 here is told when the primitive runs.
memory::desc matrix(const GemmProblem& p, DType dtype, int64_t rows, int64_t columns, bool transposed, int64_t ld,
                    int64_t stride) {
    auto size = [](int64_t n) { return n == 0 ? DNNL_RUNTIME_DIM_VAL : n; };
    ld = size(ld);
    memory::dims dims = {size(rows), size(columns)}, strides = {transposed ? 1 : ld, transposed ? ld : 1};
    if (p.batch > 1) dims.insert(dims.begin(), p.batch), strides.insert(strides.begin(), stride);
    return {dims, data_type(dtype), strides};
}

memory::desc left_of(const GemmProblem& p) {
    return matrix(p, p.in, p.m, p.k, p.transpose_a, p.lda, p.stride_a);
}
memory::desc right_of(const GemmProblem& p) {
    return matrix(p, p.in, p.k, p.n, p.transpose_b, p.ldb, p.stride_b);
}
memory::desc result_of(const GemmProblem& p) { return matrix(p, p.out, p.m, p.n, false, p.ldc, p.stride_c); }

matmul::primitive_desc describe(const GemmProblem& p, const dnnl::engine& engine) {
    memory::desc a = left_of(p), b = right_of(p), c = result_of(p);
    memory::desc bias;
    if (p.bias) {
        memory::dims dims(p.batch > 1 ? 3 : 2, 1), strides(dims.size(), p.n);
        dims.back() = p.n, strides.back() = 1;
        bias = memory::desc(dims, data_type(p.in), strides);
    }
    dnnl::post_ops after;
    if (p.accumulate) after.append_sum(1.0f);
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    attr.set_post_ops(after);
#if DNNL_VERSION_MAJOR >= 3
    if (p.bias) return matmul::primitive_desc(engine, a, b, bias, c, attr);
    return matmul::primitive_desc(engine, a, b, c, attr);
#else
    return matmul::primitive_desc(p.bias ? matmul::desc(a, b, bias, c) : matmul::desc(a, b, c), attr, engine);
#endif
}

Primitive make_primitive(const GemmProblem& p, const dnnl::engine& engine) {
    matmul::primitive_desc pd = describe(p, engine);
    Primitive made;
    made.primitive = matmul(pd);
    made.implementation = pd.impl_info_str();
    made.scratchpad_bytes = pd.scratchpad_desc().get_size();
    made.a = memory(pd.src_desc(), engine, nullptr);
    made.b = memory(pd.weights_desc(), engine, nullptr);
    made.c = memory(pd.dst_desc(), engine, nullptr);
    made.scratchpad = memory(pd.scratchpad_desc(), engine, nullptr);
    made.arguments = {{DNNL_ARG_SRC, made.a}, {DNNL_ARG_WEIGHTS, made.b}, {DNNL_ARG_DST, made.c},
                      {DNNL_ARG_SCRATCHPAD, made.scratchpad}};
    if (p.bias) {
        made.bias = memory(pd.bias_desc(), engine, nullptr);
        made.arguments[DNNL_ARG_BIAS] = made.bias;
    }
    return made;
}

Primitive& primitive_for(GemmLibrary* library, const GemmProblem& p) {
    auto found = library->primitives.find(p);
    if (found != library->primitives.end()) return found->second;
    if (library->primitives.size() >= 1000) library->primitives.clear();  // generation makes new shapes without end
    Primitive made = make_primitive(p, library->engine);
    // Some slack so that the scratchpad can be aligned.
    if (library->scratchpad.size() < made.scratchpad_bytes + 64) library->scratchpad.resize(made.scratchpad_bytes + 64);
    return library->primitives.emplace(p, std::move(made)).first->second;
}

}  // namespace

GemmLibrary* gemm_create(int threads) {
    auto* library = new GemmLibrary;
    library->threads = threads;
    return library;
}

void gemm_destroy(GemmLibrary* library) { delete library; }

const char* gemm_library() {
    static const std::string name = [] {
        const dnnl::version_t* v = dnnl::version();
        return str("oneDNN ", v->major, ".", v->minor, ".", v->patch);
    }();
    return name.c_str();
}

// oneDNN multiplies bf16 from AVX-512 on; below, it has only its slow reference code or nothing.
bool gemm_has_bf16(GemmLibrary*) { return dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core; }

void gemm(GemmLibrary* library, const GemmProblem& p, const void* a, const void* b, const void* bias, void* c) {
    ThreadScope scope(library->threads);
    try {
        Primitive& found = primitive_for(library, p);
        found.a.set_data_handle(const_cast<void*>(a));
        found.b.set_data_handle(const_cast<void*>(b));
        found.c.set_data_handle(c);
        if (p.bias) found.bias.set_data_handle(const_cast<void*>(bias));
        auto address = reinterpret_cast<uintptr_t>(library->scratchpad.data());
        found.scratchpad.set_data_handle(reinterpret_cast<void*>((address + 63) / 64 * 64));
        found.primitive.execute(library->stream, found.arguments);
    } catch (const dnnl::error& e) {
        run_error(gemm_library(), " cannot multiply ", p.text(), ": ", e.what());
    }
}

GemmOfAnySize::GemmOfAnySize(GemmLibrary* library, const GemmProblem& p) : library(library) {
    const GemmProblem kind{.batch = 1, .m = 0, .n = 0, .k = 0, .in = p.in, .out = p.out,
                           .transpose_a = p.transpose_a, .transpose_b = p.transpose_b, .lda = 0, .ldb = 0, .ldc = 0,
                           .stride_a = 0, .stride_b = 0, .stride_c = 0, .accumulate = p.accumulate, .bias = false};
    auto found = library->of_any_size.find(kind);
    if (found == library->of_any_size.end()) {
        const ThreadScope scope(1);
        const auto pd = describe(kind, library->engine);
        const PrimitiveOfAnySize made{dnnl::matmul(pd), pd.scratchpad_desc()};
        found = library->of_any_size.emplace(kind, made).first;
    }
    prepared = &found->second;
}
GemmOfAnySize::~GemmOfAnySize() = default;

// Inside a parallel region of OpenMP, oneDNN starts no threads of its own, but a region of one thread is none to it.
void GemmOfAnySize::multiply(const GemmProblem& p, const void* a, const void* b, void* c) const {
    const ThreadScope scope(1);
    auto at = [this](const memory::desc& d, const void* data) {
        return memory(d, library->engine, const_cast<void*>(data));
    };
    const auto& of_any_size = *static_cast<const PrimitiveOfAnySize*>(prepared);
    try {
        of_any_size.primitive.execute(library->stream,
                                      {{DNNL_ARG_SRC, at(left_of(p), a)},
                                       {DNNL_ARG_WEIGHTS, at(right_of(p), b)},
                                       {DNNL_ARG_DST, at(result_of(p), c)},
                                       {DNNL_ARG_SCRATCHPAD, memory(of_any_size.scratchpad, library->engine)}});
    } catch (const dnnl::error& e) {
        run_error(gemm_library(), " cannot multiply ", p.text(), ": ", e.what());
    }
}

std::string gemm_implementation(GemmLibrary* library, const GemmProblem& p) {
    ThreadScope scope(library->threads);
    return primitive_for(library, p).implementation;
}

}  // namespace llmc
