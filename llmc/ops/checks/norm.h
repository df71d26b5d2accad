// What norm and add check, whatever the backend.
#pragma once
#include "llmc/ops/checks/common.h"

namespace llmc {

struct NormShape {
    int64_t rows, columns;
};

// Shape of one value per row of x.
inline Shape leading(const Shape& x) {
    Shape s = x;
    if (s.rank > 0) s.dim[size_t(--s.rank)] = 0;
    return s;
}

// What forward and backward have in common: rows of x, one value of mean (layernorm) and of rstd per row.
inline NormShape check_norm_input(const Tensor& x) {
    check(x, x.dtype, x.shape, "x");
    const int64_t columns = last_dim(x);
    return {columns ? x.numel() / columns : 0, columns};
}
inline void check_norm_statistics(const Tensor& mean, const Tensor& rstd, const Tensor& x, Norm kind) {
    const DType statistics = arithmetic_dtype(x.dtype);
    if (kind == Norm::layernorm) check(mean, statistics, leading(x.shape), "mean");
    check(rstd, statistics, leading(x.shape), "rstd");
}

// sum and branch are those of residual_norm_forward, or not given.
inline NormShape check_norm_forward(const Tensor& sum, const Tensor& out, const Tensor& mean, const Tensor& rstd,
                                    const Tensor& x, const Tensor& branch, const Tensor& weight, const Tensor& bias,
                                    Norm kind) {
    const NormShape s = check_norm_input(x);
    check(out, x.dtype, x.shape, "out");
    if (branch) check(branch, x.dtype, x.shape, "branch"), check(sum, x.dtype, x.shape, "sum");
    check_norm_statistics(mean, rstd, x, kind);
    check(weight, x.dtype, {s.columns}, "weight");
    if (bias) check(bias, x.dtype, {s.columns}, "bias");
    return s;
}
inline void check_residual(const Tensor& branch) {
    if (!branch) run_error("residual_norm_forward: branch was not given");
}
inline int64_t norm_forward_flops(const Tensor& x, const Tensor& branch) { return (branch ? 8 : 7) * x.numel(); }

inline NormShape check_norm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& dout,
                                     const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                                     Norm kind) {
    const NormShape s = check_norm_input(x);
    check(dx, x.dtype, x.shape, "dx");
    check(dout, x.dtype, x.shape, "dout");
    check_norm_statistics(mean, rstd, x, kind);
    check(weight, x.dtype, {s.columns}, "weight");
    check(dweight, arithmetic_dtype(x.dtype), {s.columns}, "dweight");
    if (dbias) check(dbias, arithmetic_dtype(x.dtype), {s.columns}, "dbias");
    return s;
}
inline int64_t norm_backward_flops(const Tensor& x) { return 15 * x.numel(); }
inline int64_t norm_backward_bytes(const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& dout,
                                   const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                                   bool accumulate_dx) {
    return total_bytes({dx, accumulate_dx ? dx : Tensor{}, dweight, dbias, dout, x, mean, rstd, weight});
}

inline void check_add(const Tensor& out, const Tensor& a, const Tensor& b) {
    check(a, a.dtype, a.shape, "a");
    check(b, a.dtype, a.shape, "b");
    check(out, a.dtype, a.shape, "out");
}

}  // namespace llmc
