// Activations and gated activations: one pass over memory each, arithmetic in float. One thread = one 128-bit pack of
// each tensor at a time.
#include "llmc/ops/checks/activation.h"
#include "llmc/ops/cuda/vector.cuh"

namespace llmc {

namespace {

// x within [-limit, limit]; NaN stays NaN.
__device__ inline float clamp(float x, float limit) {
    x = x > limit ? limit : x;
    return x < -limit ? -limit : x;
}

// Each kind has value(x) = f(x) and slope(x) = f'(x).

struct Relu {  // max(x, 0); NaN stays NaN
    static __device__ float value(float x) { return x < 0 ? 0.0f : x; }
    static __device__ float slope(float x) { return x > 0 ? 1.0f : 0.0f; }
};

// 0.5 x (1 + tanh u) = x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3): the sigmoid keeps digits where tanh u = -1.
struct Gelu {
    static constexpr float two_root = 1.5957691216057308f, cubic = 0.044715f;  // 2 sqrt(2/pi)
    static __device__ float value(float x) { return x / (1 + expf(-two_root * (x + cubic * x * x * x))); }
    static __device__ float slope(float x) {
        x = clamp(x, 10);  // f' is 0 or 1 there to all digits, e finite
        const float e = expf(-two_root * (x + cubic * x * x * x));
        const float s = 1 / (1 + e);  // 1 - s = e s without cancellation
        return s + x * s * (e * s) * two_root * (1 + 3 * cubic * x * x);
    }
};

struct GeluErf {  // x Phi(x), Phi the distribution function of the standard normal
    static constexpr float inverse_root_pi = 0.5641895835477563f;

    // Phi(x) = erfc(z) / 2, z = -x / sqrt(2). In the left tail erfc magnifies the rounding error of z some 40 times, so
    // what is missing in z is added to first order: erfc'(z) = -2 / sqrt(pi) e^(-z^2).
    static __device__ float phi(float x) {
        constexpr float root_half = 0.70710678118654752f, root_half_rest = 1.2101617e-8f;  // their sum is sqrt(1/2)
        x = clamp(x, 15);  // 0 or 1 there to all digits, z finite
        const float z = -x * root_half, missing = fmaf(-x, root_half, -z) - x * root_half_rest;
        return 0.5f * erfcf(z) - missing * inverse_root_pi * expf(-z * z);
    }
    static __device__ float value(float x) { return x * phi(x); }
    static __device__ float slope(float x) {
        const float near = clamp(x, 100);  // infinity times density 0 would be NaN
        return phi(x) + near * expf(-0.5f * near * near) * (inverse_root_pi * 0.70710678118654752f);
    }
};

struct Silu {  // x sigmoid(x)
    static __device__ float value(float x) { return x / (1 + expf(-x)); }
    static __device__ float slope(float x) {
        x = clamp(x, 87);
        const float e = expf(-x), s = 1 / (1 + e);
        return s + x * s * (e * s);
    }
};

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

// Checks, the Op, the choice of kind and type: all that the four ops share.
template <template <class> class F, size_t inputs, size_t outputs>
void elementwise(const char* name, const Tensor (&out)[outputs], const Tensor (&in)[inputs], Activation kind,
                 int64_t evaluations, int64_t rest, Context& ctx) {
    Op op(ctx, name, check_elementwise(name, out, in, kind, evaluations, rest), 0, elementwise_bytes(out, in));
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
    elementwise<Forward>("activation_forward", {out}, {x}, kind, 1, 0, ctx);
}

void activation_backward(Tensor dx, Tensor dout, Tensor x, Activation kind, Context& ctx) {
    elementwise<Backward>("activation_backward", {dx}, {x, dout}, kind, 1, 1, ctx);
}

void gated_forward(Tensor out, Tensor gate, Tensor up, Activation kind, Context& ctx) {
    elementwise<GatedForward>("gated_forward", {out}, {gate, up}, kind, 1, 1, ctx);
}

void gated_backward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up, Activation kind, Context& ctx) {
    elementwise<GatedBackward>("gated_backward", {dgate, dup}, {gate, up, dout}, kind, 2, 3, ctx);
}

}  // namespace llmc
