// Activations and their slopes, element by element, in float: for the kernels that apply them.
#pragma once
#include "llmc/ops/cuda/gpu.cuh"
#include "llmc/ops/ops.h"

namespace llmc {

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

// Where the kind is known only when the kernel runs. All threads take the same branch.
__device__ inline float activation_value(Activation kind, float x) {
    switch (kind) {
        case Activation::relu:
            return Relu::value(x);
        case Activation::gelu:
            return Gelu::value(x);
        case Activation::gelu_erf:
            return GeluErf::value(x);
        case Activation::silu:
            return Silu::value(x);
        case Activation::none:
            break;
    }
    return x;
}
__device__ inline float activation_slope(Activation kind, float x) {
    switch (kind) {
        case Activation::relu:
            return Relu::slope(x);
        case Activation::gelu:
            return Gelu::slope(x);
        case Activation::gelu_erf:
            return GeluErf::slope(x);
        case Activation::silu:
            return Silu::slope(x);
        case Activation::none:
            break;
    }
    return 1;
}

}  // namespace llmc
