// What the optimizer's ops check, whatever the backend.
#pragma once
#include "llmc/ops/checks/common.h"

namespace llmc {

inline StepState* step_state(const Tensor& step) { return ptr<StepState>(step); }

inline void check_step(const Tensor& step) { check(step, DType::i32, step_state_tensor(nullptr).shape, "step"); }

inline void check_losses(const Tensor& step, const Tensor& losses, const Tensor& targets) {
    check_step(step);
    check(losses, arithmetic_dtype(losses.dtype), losses.shape, "losses");
    check(targets, DType::i32, losses.shape, "targets");
}

inline void check_grad(const Tensor& step, const Tensor& grad) {
    check_step(step);
    check(grad, arithmetic_dtype(grad.dtype), grad.shape, "grad");
}

inline void check_adamw(const Tensor& param, const Tensor& compute_copy, const Tensor& m, const Tensor& v,
                        const Tensor& grad, const Tensor& step, int64_t decayed) {
    check_step(step);
    const int64_t n = param.numel();
    const DType arithmetic_type = arithmetic_dtype(param.dtype);
    check(param, param.dtype, {n}, "param");
    check(m, arithmetic_type, {n}, "m");
    check(v, arithmetic_type, {n}, "v");
    check(grad, arithmetic_type, {n}, "grad");
    if (compute_copy) check(compute_copy, DType::bf16, {n}, "compute_copy");
    if (decayed < 0 || decayed > n)
        run_error("adamw_update: ", decayed, " elements to decay, but param ", param.name, " has ", n);
}

}  // namespace llmc
