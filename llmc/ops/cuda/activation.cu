// Activations and gated activations: one pass over memory each, arithmetic in float. One thread = one 128-bit pack of
// each tensor at a time.
#include "llmc/ops/checks/activation.h"
#include "llmc/ops/cuda/activation.cuh"
#include "llmc/ops/cuda/vector.cuh"

namespace llmc {

namespace {

// out = f(x)
template <class Kind>
struct Forward {
    __device__ void operator()(float* out, const float* in) const { out[0] = Kind::value(in[0]); }
};
// dx = dout f'(x); in: x, dout
template <class Kind>
struct Backward {
    __device__ void operator()(float* out, const float* in) const { out[0] = in[1] * Kind::slope(in[0]); }
};
// And value = f(x).
template <class Kind>
struct BackwardWithValue {
    __device__ void operator()(float* out, const float* in) const {
        Backward<Kind>{}(out, in);
        out[1] = Kind::value(in[0]);
    }
};
// out = f(gate) up; in: gate, up
template <class Kind>
struct GatedForward {
    __device__ void operator()(float* out, const float* in) const { out[0] = Kind::value(in[0]) * in[1]; }
};
// dgate = dout up f'(gate), dup = dout f(gate); in: gate, up, dout
template <class Kind>
struct GatedBackward {
    __device__ void operator()(float* out, const float* in) const {
        out[0] = in[2] * in[1] * Kind::slope(in[0]);
        out[1] = in[2] * Kind::value(in[0]);
    }
};
// And value = f(gate) up.
template <class Kind>
struct GatedBackwardWithValue {
    __device__ void operator()(float* out, const float* in) const {
        const float value = Kind::value(in[0]);
        out[0] = in[2] * in[1] * Kind::slope(in[0]);
        out[1] = in[2] * value;
        out[2] = in[1] * value;
    }
};

// Checks, the Op, the choice of kind and type: all that the ops share.
template <template <class> class F, size_t inputs, size_t outputs>
void elementwise(const char* name, const Tensor (&out)[outputs], const Tensor (&in)[inputs], Activation kind,
                 int64_t rest, Context& ctx) {
    Op op(ctx, name, check_elementwise(name, out, in, kind, rest), 0, elementwise_bytes(out, in));
    if (!op.run) return;
    dispatch(in[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        switch (kind) {
            case Activation::relu: return map_elements<T>(out, in, F<Relu>{}, ctx);
            case Activation::gelu: return map_elements<T>(out, in, F<Gelu>{}, ctx);
            case Activation::gelu_erf: return map_elements<T>(out, in, F<GeluErf>{}, ctx);
            case Activation::silu: return map_elements<T>(out, in, F<Silu>{}, ctx);
            case Activation::none: return;  // refused by the check
        }
    });
}

}  // namespace

void activation_forward(Tensor out, Tensor x, Activation kind, Context& ctx) {
    elementwise<Forward>("activation_forward", {out}, {x}, kind, 0, ctx);
}

void activation_backward(Tensor dx, Tensor value, Tensor dout, Tensor x, Activation kind, Context& ctx) {
    if (value) elementwise<BackwardWithValue>("activation_backward", {dx, value}, {x, dout}, kind, 2, ctx);
    else elementwise<Backward>("activation_backward", {dx}, {x, dout}, kind, 1, ctx);
}

void gated_forward(Tensor out, Tensor gate, Tensor up, Activation kind, Context& ctx) {
    elementwise<GatedForward>("gated_forward", {out}, {gate, up}, kind, 1, ctx);
}

void gated_backward(Tensor dgate, Tensor dup, Tensor value, Tensor dout, Tensor gate, Tensor up, Activation kind,
                    Context& ctx) {
    const char* name = "gated_backward";
    if (value) elementwise<GatedBackwardWithValue>(name, {dgate, dup, value}, {gate, up, dout}, kind, 4, ctx);
    else elementwise<GatedBackward>(name, {dgate, dup}, {gate, up, dout}, kind, 3, ctx);
}

}  // namespace llmc
