// What matmul and bias_backward check and share: a product of row-major matrices, as every backend's library gets it.
#pragma once
#include <compare>

#include "llmc/ops/checks/common.h"

namespace llmc {

// Row-major matrices. out[b] (+)= op(A[b]) op(B[b]), b = 0 .. batch-1; op transposes if asked.
struct GemmProblem {
    int64_t batch, m, n, k;
    DType in, out;
    bool transpose_a, transpose_b;
    int64_t lda, ldb, ldc;                 // leading dimensions as stored
    int64_t stride_a, stride_b, stride_c;  // elements between batches
    bool accumulate, bias;                 // bias [n] in the type of `in`

    auto operator<=>(const GemmProblem&) const = default;
    double flops() const { return 2.0 * double(batch) * double(m) * double(n) * double(k); }
    std::string text() const {  // for messages: "F32 [8192x512] x [512x1536] -> F32"
        auto operand = [](int64_t rows, int64_t columns, bool transposed) {
            return transposed ? str("[", columns, "x", rows, "]^T") : str("[", rows, "x", columns, "]");
        };
        return str(name_of(in), batch > 1 ? str(" ", batch, " times") : "", " ", operand(m, k, transpose_a), " x ",
                   operand(k, n, transpose_b), " -> ", name_of(out));
    }
};

// Rows x columns with a leading dimension: a tensor with its leading axes folded into rows, or a batch of matrices.
struct FoldedMatrix { int64_t batch, rows, columns, ld, stride; };

inline FoldedMatrix fold_matrix(const Tensor& t, bool batched) {
    const int rank = t.shape.rank, first = batched ? 1 : 0;
    if (rank == 0) run_error("matmul: ", t.name, " is a scalar, not a matrix");
    FoldedMatrix m{batched ? t.shape[0] : 1, 1, t.shape[-1], t.shape[-1], batched ? t.stride[0] : 0};
    for (int i = first; i < rank - 1; i++) m.rows *= t.shape[i];
    bool regular = m.columns <= 1 || t.stride[-1] == 1;
    int64_t ld = 0;  // rows lie ld apart; axes of length 1 have no say
    for (int64_t i = rank - 2, below = 1; i >= first; below *= t.shape[int(i--)]) {
        if (t.shape[int(i)] == 1) continue;
        if (ld == 0) ld = t.stride[int(i)] / below;
        regular = regular && t.stride[int(i)] == ld * below;
    }
    m.ld = std::max(m.columns, ld);
    if (!regular || (m.rows > 1 && ld < m.columns))
        run_error("matmul: ", t.name, " ", t.shape.text(),
                  " is not stored as rows with one leading dimension (strides ", t.stride.text(), ")");
    return m;
}

// What may be asked for besides the product, and whether its tensors fit `out`, whose rows have n elements.
inline void check_matmul_options(const Tensor& out, const Tensor& a, int64_t n, const MatmulOptions& o) {
    const bool forward = o.activation != Activation::none, backward = o.backward != Activation::none;
    if (o.accumulate && (o.bias || forward || backward))
        run_error("matmul: ", out.name, " cannot accumulate together with a bias or an activation");
    if (backward && (o.bias || forward))
        run_error("matmul: ", out.name, " cannot have a bias or an activation together with the gradient of one");
    if (backward && !o.pre)
        run_error("matmul: ", out.name, " needs `pre`, the values before the activation, for its gradient");
    if (o.pre && !forward && !backward) run_error("matmul: ", o.pre.name, " is given without an activation");
    if (o.value && !backward) run_error("matmul: ", o.value.name, " is given without the gradient of an activation");
    if (o.bias) check(o.bias, a.dtype, {n}, "matmul:");
    for (const Tensor& t : {o.pre, o.value})
        if (t) check(t, out.dtype, out.shape, "matmul:");
    if ((forward || backward) && !out.contiguous())
        run_error("matmul: ", out.name, " must be contiguous where an activation is applied");
}

// The product that out = op(a) op(b) asks for, after all checks.
inline GemmProblem check_matmul(const Tensor& out, const Tensor& a, const Tensor& b, const MatmulOptions& o) {
    const bool batched = out.shape.rank == 3 && a.shape.rank == 3 && b.shape.rank == 3;
    const FoldedMatrix ma = fold_matrix(a, batched), mb = fold_matrix(b, batched), mo = fold_matrix(out, batched);
    const int64_t m = o.transpose_a ? ma.columns : ma.rows, k = o.transpose_a ? ma.rows : ma.columns;
    const int64_t n = o.transpose_b ? mb.rows : mb.columns, k_of_b = o.transpose_b ? mb.columns : mb.rows;
    const char* ta = o.transpose_a ? " transposed" : "";
    const char* tb = o.transpose_b ? " transposed" : "";
    if (k_of_b != k || mb.batch != ma.batch)
        run_error("matmul: ", b.name, " ", b.shape.text(), tb, " does not fit ", a.name, " ", a.shape.text(), ta);
    if (mo.rows != m || mo.columns != n || mo.batch != ma.batch)
        run_error("matmul: ", out.name, " ", out.shape.text(), " cannot hold ", a.name, " ", a.shape.text(), ta,
                  " times ", b.name, " ", b.shape.text(), tb, ", which is ", m, " x ", n);
    if (a.dtype == DType::i32) run_error("matmul: ", a.name, " has dtype I32, not a float type");
    check_dtype(b, a.dtype, "matmul:");
    if (out.dtype != a.dtype && !(a.dtype == DType::bf16 && out.dtype == DType::f32))
        check_dtype(out, a.dtype, "matmul:");
    check_matmul_options(out, a, n, o);
    return {.batch = ma.batch, .m = m, .n = n, .k = k, .in = a.dtype, .out = out.dtype,
            .transpose_a = o.transpose_a, .transpose_b = o.transpose_b, .lda = ma.ld, .ldb = mb.ld, .ldc = mo.ld,
            .stride_a = ma.stride, .stride_b = mb.stride, .stride_c = mo.stride,
            .accumulate = o.accumulate, .bias = bool(o.bias)};
}

inline int64_t matmul_bytes(const Tensor& out, const Tensor& a, const Tensor& b, const MatmulOptions& o) {
    return total_bytes({out, a, b, o.bias, o.pre}) + (o.accumulate ? out.bytes() : 0);
}

// What matmul_ragged is asked for. Rows form: out [R,N] = a [R,K] b_e. Sums form: out_e [M,N] (+)= a_e^T b_e.
struct RaggedProblem {
    bool sums;
    int64_t rows, pairs, experts;  // pairs: the rows that can be filled; others fill up tiles
    GemmProblem of_expert;         // m (rows form) or k (sums form) is the number of an expert's rows: 0 here
    double flops;                  // for the pairs

    int64_t stride_of_experts() const { return sums ? of_expert.m * of_expert.n : of_expert.k * of_expert.n; }
};

inline RaggedProblem check_matmul_ragged(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& offsets,
                                         const MatmulOptions& o) {
    const char* what = "matmul_ragged:";
    const bool sums = out.shape.rank == 3;
    if (a.shape.rank != 2) run_error(what, " ", a.name, " has shape ", a.shape.text(), ", not rows x columns");
    if (offsets.shape.rank != 1 || offsets.shape[0] < 1)
        run_error(what, " ", offsets.name, " has shape ", offsets.shape.text(), ", expected one more than experts");
    if (sums != o.transpose_a || (sums && o.transpose_b))
        run_error(what, " ", out.name,
                  sums ? " is a sum over rows: a is transposed, b is not" : " has the rows of a: a is not transposed");
    if (o.bias) run_error(what, " ", o.bias.name, ": experts have no biases");
    if (sums && (o.activation != Activation::none || o.backward != Activation::none))
        run_error(what, " ", out.name, " is a sum over rows: no activation is applied to it");

    const int64_t rows = a.shape[0], experts = offsets.shape[0] - 1;
    const int64_t n = last_dim(out), m = sums ? a.shape[1] : 0, k = sums ? 0 : a.shape[1];
    if (a.dtype == DType::i32) run_error(what, " ", a.name, " has dtype I32, not a float type");
    check(offsets, DType::i32, {experts + 1}, what);
    check(a, a.dtype, a.shape, what);
    check(b, a.dtype, sums ? Shape{rows, n} : o.transpose_b ? Shape{experts, n, k} : Shape{experts, k, n}, what);
    const bool widened = a.dtype == DType::bf16 && out.dtype == DType::f32;
    check(out, widened ? DType::f32 : a.dtype, sums ? Shape{experts, m, n} : Shape{rows, n}, what);
    check_matmul_options(out, a, n, o);
    const int64_t pairs = std::max<int64_t>(0, rows - experts * (ragged_tile() - 1));
    return {.sums = sums,
            .rows = rows,
            .pairs = pairs,
            .experts = experts,
            .of_expert = {.batch = 1,
                          .m = m,
                          .n = n,
                          .k = k,
                          .in = a.dtype,
                          .out = out.dtype,
                          .transpose_a = o.transpose_a,
                          .transpose_b = o.transpose_b,
                          .lda = a.shape[1],
                          .ldb = b.shape[-1],
                          .ldc = n,
                          .stride_a = 0,
                          .stride_b = 0,
                          .stride_c = 0,
                          .accumulate = o.accumulate,
                          .bias = false},
            .flops = 2.0 * double(o.expected_rows ? o.expected_rows : pairs) * double(m + k) * double(n)};
}

inline void check_bias_backward(const Tensor& dbias, const Tensor& dout) {
    if (!dout.contiguous()) run_error("bias_backward: ", dout.name, " must be contiguous");
    check(dbias, arithmetic_dtype(dout.dtype), {dout.columns()}, "bias_backward:");
}

}  // namespace llmc
