// Products of ragged rows with one matrix per expert. They are cut into pieces of at most 512 x 512 results, each
// made by one thread: sizes that are new with every step cost nothing to prepare, experts of any sizes keep all threads
// busy, and the bits do not depend on the number of threads.
//
// dev/bench/bench_ragged.cpp, balanced experts of C = 512, 8192 rows in all, one thread, in ms:
//                                   forward  input gradient  weight gradient     batched at capacity 1.25
//     32 experts of 2048, f32          75          73               73               92     100      89
//                         bf16         42          39               39               47      50      48
//     256 experts of 256, f32          20          12               10               18      20      12
//                         bf16         11           9                9                9      11       8
// By the library alone, float32 took 80, 73, 80 and 20, 12, 12 in the same minutes.
#include <exception>

#include "llmc/ops/checks/activation.h"
#include "llmc/ops/cpu/activation.h"
#include "llmc/ops/cpu/backend.h"
#include "llmc/ops/cpu/gemm_loops.h"
#include "llmc/ops/cpu/gemm_widened.h"

namespace llmc {

int64_t ragged_tile() { return 1; }  // no expert's rows need to be padded

namespace {

constexpr int64_t most_results = 512;  // rows and columns of a piece

// How the experts' products are cut: first[e] is the number of expert e's first piece, in all first[E].
struct Pieces {
    const RaggedProblem& p;
    const int32_t* offsets;
    int64_t* first;

    int64_t rows_of(int64_t e) const { return offsets[e + 1] - offsets[e]; }
    int64_t results(int64_t e) const { return p.sums ? p.of_expert.m : rows_of(e); }
    int64_t parts_of_m(int64_t e) const { return (results(e) + most_results - 1) / most_results; }
    int64_t parts_of_n() const { return (p.of_expert.n + most_results - 1) / most_results; }
    int64_t count() const { return first[p.experts]; }

    Pieces(const RaggedProblem& problem, const Tensor& offset, void* memory)
        : p(problem), offsets(ptr<const int32_t>(offset)), first(static_cast<int64_t*>(memory)) {
        first[0] = 0;
        for (int64_t e = 0; e < p.experts; e++) {
            if (offsets[e] < (e ? offsets[e - 1] : 0) || offsets[e + 1] < offsets[e] || offsets[e + 1] > p.rows)
                run_error("matmul_ragged: ", offset.name, " must start at 0, never decrease, and not exceed ", p.rows);
            first[e + 1] = first[e] + parts_of_m(e) * parts_of_n();
        }
    }
};

// One piece: a product, and where its operands begin, in elements.
struct Piece {
    GemmProblem product;
    int64_t a, b, c;
};

Piece piece_of(const Pieces& pieces, int64_t number) {
    const RaggedProblem& p = pieces.p;
    const int64_t e = std::upper_bound(pieces.first, pieces.first + p.experts + 1, number) - pieces.first - 1;
    const int64_t in_expert = number - pieces.first[e], parts = pieces.parts_of_n();
    auto [m0, m1] = part_of(pieces.results(e), in_expert / parts, pieces.parts_of_m(e));
    auto [n0, n1] = part_of(p.of_expert.n, in_expert % parts, parts);
    GemmProblem q = p.of_expert;
    const int64_t row = pieces.offsets[e], matrix = e * p.stride_of_experts();
    q.m = m1 - m0, q.n = n1 - n0;
    if (p.sums) {
        q.k = pieces.rows_of(e);
        return {q, row * q.lda + m0, row * q.ldb + n0, matrix + m0 * q.ldc + n0};
    }
    return {q, (row + m0) * q.lda, matrix + (q.transpose_b ? n0 * q.ldb : n0), (row + m0) * q.ldc + n0};
}

// out = 0 where a sum is over nothing: libraries do not take a size 0.
void clear(const Piece& piece, const Tensor& out) {
    const int64_t size = size_of(out.dtype);
    if (piece.product.accumulate) return;
    for (int64_t row = 0; row < piece.product.m; row++)
        std::memset(static_cast<char*>(out.data) + (piece.c + row * piece.product.ldc) * size, 0,
                    size_t(piece.product.n * size));
}

// Calls f(piece) for all pieces that are sums over something, on all threads. What f throws is thrown in the end.
template <class F>
void for_all(const Pieces& pieces, const Tensor& out, int threads, F f) {
    std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic) num_threads(int(std::clamp <int64_t>(pieces.count(), 1, threads)))
    for (int64_t i = 0; i < pieces.count(); i++) {
        const Piece piece = piece_of(pieces, i);
        try {
            if (piece.product.k > 0)
                f(piece);
            else
                clear(piece, out);
        } catch (...) {
#pragma omp critical
            failure = std::current_exception();
        }
    }
    if (failure) std::rethrow_exception(failure);
}

void multiply_f64(const Pieces& pieces, const Tensor& out, const Tensor& a, const Tensor& b, Context& ctx) {
    for_all(pieces, out, ctx.threads, [&](const Piece& piece) {
        gemm_loops<double>(piece.product, ptr<double>(a) + piece.a, ptr<double>(b) + piece.b, nullptr,
                           ptr<double>(out) + piece.c, 1);
    });
}

void multiply_by_library(const Pieces& pieces, const Tensor& out, const Tensor& a, const Tensor& b, Context& ctx) {
    const GemmOfAnySize library(ctx.backend->gemm, pieces.p.of_expert);
    auto at = [](const Tensor& t, int64_t element) { return static_cast<char*>(t.data) + element * size_of(t.dtype); };
    for_all(pieces, out, ctx.threads, [&](const Piece& piece) {
        library.multiply(piece.product, at(a, piece.a), at(b, piece.b), at(out, piece.c));
    });
}

// bf16 where the library has none. Each thread has room for the float32 copies of the largest piece.
void multiply_through_f32(const Pieces& pieces, const Tensor& out, const Tensor& a, const Tensor& b, Context& ctx) {
    GemmProblem wide = pieces.p.of_expert;
    wide.in = wide.out = DType::f32;
    const GemmOfAnySize library(ctx.backend->gemm, wide);
    int64_t room = 0;
    for (int64_t i = 0; i < pieces.count(); i++) room = std::max(room, widened_floats(piece_of(pieces, i).product));
    std::vector<float>& buffer = ctx.backend->widened;
    if (int64_t(buffer.size()) < room * ctx.threads) buffer.resize(size_t(room * ctx.threads));
    for_all(pieces, out, ctx.threads, [&](const Piece& piece) {
        multiply_widened(piece.product, ptr<bf16>(a) + piece.a, ptr<bf16>(b) + piece.b, nullptr,
                         static_cast<char*>(out.data) + piece.c * size_of(out.dtype),
                         buffer.data() + omp_get_thread_num() * room, 1,
                         [&](const GemmProblem& p, const float* fa, const float* fb, const float*, float* fc) {
                             library.multiply(p, fa, fb, fc);
                         });
    });
}

int64_t workspace_bytes(const RaggedProblem& p) { return (p.experts + 1) * int64_t(sizeof(int64_t)); }

// float32: pieces by the faster kernel; the thread that computes a piece's rows also applies the activation.
void ragged_f32(const RaggedProblem& p, Tensor out, Tensor product, Tensor a, Tensor b, Tensor offsets,
                const MatmulOptions& options, Context& ctx) {
    Op op(ctx, "matmul_ragged", p.flops + epilogue_flops("matmul_ragged", options) * p.pairs * p.of_expert.n,
          workspace_bytes(p), matmul_bytes(out, a, b, options) + offsets.bytes() + options.value.bytes());
    if (!op.run) return;
    const Pieces pieces(p, offsets, op.workspace);
    const Epilogue epilogue(out, product, options, p.of_expert.ldc);
    const GemmOfAnySize library(ctx.backend->gemm, p.of_expert);
    for_all(pieces, product, ctx.threads, [&](const Piece& piece) {
        const GemmProblem& q = piece.product;
        const float *from_a = ptr<float>(a) + piece.a, *from_b = ptr<float>(b) + piece.b;
        float* c = ptr<float>(product) + piece.c;
        if (is_packed(q)) {
            const PackedProduct packed{q, ctx.backend->packed[size_t(omp_get_thread_num())]};
            return packed.multiply(c, from_a, from_b, nullptr, q.m, q.n, epilogue);
        }
        library.multiply(q, from_a, from_b, c);
        for (int64_t row = 0; row < q.m; row++) epilogue(c + row * q.ldc, q.n);
    });
}

}  // namespace

void matmul_ragged(Tensor out, Tensor a, Tensor b, Tensor offsets, const MatmulOptions& options, Context& ctx) {
    const RaggedProblem p = check_matmul_ragged(out, a, b, offsets, options);
    const bool forward = options.activation != Activation::none, backward = options.backward != Activation::none;
    const Tensor product = forward && options.pre ? options.pre : out;
    if (a.dtype == DType::f32) return ragged_f32(p, out, product, a, b, offsets, options, ctx);
    int64_t owned = p.rows;
    {
        Op op(ctx, "matmul_ragged", p.flops, workspace_bytes(p), matmul_bytes(out, a, b, options) + offsets.bytes());
        if (op.run) {
            const Pieces pieces(p, offsets, op.workspace);
            owned = pieces.offsets[p.experts];
            switch (p.of_expert.in) {
                case DType::f64: multiply_f64(pieces, product, a, b, ctx); break;
                case DType::bf16:
                    if (gemm_has_bf16(ctx.backend->gemm)) multiply_by_library(pieces, product, a, b, ctx);
                    else multiply_through_f32(pieces, product, a, b, ctx);
                    break;
                case DType::f32:  // ragged_f32
                case DType::i32: run_error("matmul_ragged has no kernel here for ", name_of(p.of_expert.in));
            }
        }
    }
    auto rows = [owned](const Tensor& t) { return t ? t.slice(0, owned) : t; };
    if (forward) activation_forward(rows(out), rows(product), options.activation, ctx);
    if (backward)
        activation_backward(rows(out), rows(options.value), rows(out), rows(options.pre), options.backward, ctx);
}

}  // namespace llmc
