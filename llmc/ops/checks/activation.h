// What activations and gated activations check, whatever the backend.
#pragma once
#include "llmc/ops/checks/common.h"

namespace llmc {

// What a value of an activation, its slope or both at once cost in operations, roughly. RunError if there is nothing to
// apply.
inline int64_t activation_flops(const char* name, Activation kind) {
    switch (kind) {
        case Activation::relu: return 1;
        case Activation::gelu: return 14;
        case Activation::gelu_erf: return 24;
        case Activation::silu: return 12;
        case Activation::none: break;
    }
    run_error(name, " was given no activation to apply");
}

// Operations per result of what a product applies besides: an activation, or the gradient of one.
inline int64_t epilogue_flops(const char* name, const MatmulOptions& o) {
    if (o.activation != Activation::none) return activation_flops(name, o.activation);
    return o.backward != Activation::none ? activation_flops(name, o.backward) + (o.value ? 2 : 1) : 0;
}

// All tensors of these ops have the dtype and shape of the first input. Returns the FLOPs of an op that per element
// evaluates the activation, its slope or both at once, and does `rest` operations more.
template <size_t inputs, size_t outputs>
int64_t check_elementwise(const char* name, const Tensor (&out)[outputs], const Tensor (&in)[inputs], Activation kind,
                          int64_t rest) {
    const Tensor& x = in[0];
    for (const Tensor& t : in) check(t, x.dtype, x.shape, name);
    for (const Tensor& t : out) check(t, x.dtype, x.shape, name);
    return (activation_flops(name, kind) + rest) * x.numel();
}

template <size_t inputs, size_t outputs>
int64_t elementwise_bytes(const Tensor (&out)[outputs], const Tensor (&in)[inputs]) {
    return int64_t(inputs) * in[0].bytes() + int64_t(outputs) * out[0].bytes();
}

}  // namespace llmc
