// Which element type each role has, by the name of --precision.
//
//                 parameters   compute copy   activations, residual stream   gradients, moments, reductions
//   fp32          f32          -              f32                            f32
//   bf16-mixed    f32          bf16           bf16                           f32
//   bf16          bf16         -              bf16                           f32
//   fp64          f64          -              f64                            f64    (CPU only, for tests)
//
// Norm, softmax and loss arithmetic is f32 (f64) in every mode.
#pragma once
#include <string>

#include "llmc/base/tensor.h"

namespace llmc {

struct Precision {
    std::string name;
    DType param, act, grad;
    bool compute_copy() const { return param != act; }

    static Precision from_name(const std::string& name) {
        if (name == "fp32") return {name, DType::f32, DType::f32, DType::f32};
        if (name == "bf16-mixed") return {name, DType::f32, DType::bf16, DType::f32};
        if (name == "bf16") return {name, DType::bf16, DType::bf16, DType::f32};
        if (name == "fp64") return {name, DType::f64, DType::f64, DType::f64};
        input_error("--precision ", name, " is unknown: use fp32, bf16-mixed, bf16 or fp64");
    }
};

}  // namespace llmc
