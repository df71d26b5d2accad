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
#include "llmc/base/tensor.h"
#include "llmc/base/words.h"

namespace llmc {

enum class PrecisionMode { fp32, bf16_mixed, bf16, fp64 };
template <>
inline constexpr std::array words_of<PrecisionMode> = {"fp32", "bf16-mixed", "bf16", "fp64"};

struct Precision {
    PrecisionMode mode;
    DType param, act, grad;
    bool compute_copy() const { return param != act; }

    static Precision of(PrecisionMode mode) {
        switch (mode) {
            case PrecisionMode::fp32:
                return {mode, DType::f32, DType::f32, DType::f32};
            case PrecisionMode::bf16_mixed:
                return {mode, DType::f32, DType::bf16, DType::f32};
            case PrecisionMode::bf16:
                return {mode, DType::bf16, DType::bf16, DType::f32};
            case PrecisionMode::fp64:
                return {mode, DType::f64, DType::f64, DType::f64};
        }
        run_error("unknown precision mode ", int(mode));
    }
};

}  // namespace llmc
