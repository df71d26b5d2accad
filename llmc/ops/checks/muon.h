// What Muon's ops check, whatever the backend.
#pragma once
#include "llmc/ops/checks/optimizer.h"

namespace llmc {

constexpr double matrix_norm_eps = 1e-7;  // added to the norm in normalize_matrices

inline void check_muon_momentum(const Tensor& direction, const Tensor& m, const Tensor& grad, const Tensor& step) {
    const int64_t n = direction.numel();
    check_grad(step, grad);
    check(direction, grad.dtype, {n}, "direction");
    check(m, grad.dtype, {n}, "m");
    check(grad, grad.dtype, {n}, "grad");
}

// Matrices [n,R,K] of a type that sums are taken in.
inline void check_matrices(const Tensor& x, const char* what) {
    if (x.shape.rank != 3) run_error(what, " ", x.name, " has shape ", x.shape.text(), ", expected [n, rows, columns]");
    check(x, arithmetic_dtype(x.dtype), x.shape, what);
}

inline void check_matrix_polynomial(const Tensor& out, const Tensor& s) {
    check_matrices(s, "s");
    check_shape(s, {s.shape[0], s.shape[1], s.shape[1]}, "s");
    check(out, s.dtype, s.shape, "out");
}

inline void check_muon_update(const Tensor& param, const Tensor& compute_copy, const Tensor& direction,
                              const Tensor& step) {
    check_step(step);
    const int64_t n = param.numel();
    check(param, param.dtype, {n}, "param");
    check(direction, arithmetic_dtype(param.dtype), {n}, "direction");
    if (compute_copy) check(compute_copy, DType::bf16, {n}, "compute_copy");
}

}  // namespace llmc
