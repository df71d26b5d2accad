// Activations and their slopes in float64, as papers write them.
#pragma once
#include <algorithm>
#include <cmath>

#include "dev/test/reference.h"

namespace llmc::test {

inline double value_of(Activation kind, double x) {
    switch (kind) {
        case Activation::relu: return std::max(x, 0.0);
        case Activation::gelu: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        case Activation::gelu_erf: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
        case Activation::silu: return x / (1 + std::exp(-x));
        case Activation::none: break;
    }
    return x;
}
inline double slope_of(Activation kind, double x) {
    const double root = std::sqrt(2 / M_PI), t = std::tanh(root * (x + 0.044715 * x * x * x)),
                 sigmoid = 1 / (1 + std::exp(-x));
    switch (kind) {
        case Activation::relu: return x > 0;
        case Activation::gelu: return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x);
        case Activation::gelu_erf:
            return 0.5 * (1 + std::erf(x / std::sqrt(2.0))) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
        case Activation::silu: return sigmoid * (1 + x * (1 - sigmoid));
        case Activation::none: break;
    }
    return 1;
}

// f of the first `count` sums, or of all; the others stay. An element is as exact as its sum, times the largest slope,
// 1.13: for far negative values f is small because terms of their size cancel. The sum may be stored in between.
inline testing::AssertionResult close_activated(const Vector& got, const Sums& before, Activation kind, DType dtype,
                                                double tol, int64_t count = -1) {
    Vector want = before.value, bounds = sum_bounds(dtype, before);
    const size_t n = count < 0 ? want.size() : size_t(count);
    for (size_t i = 0; i < n; i++) {
        want[i] = value_of(kind, want[i]);
        bounds[i] = 1.13 * bounds[i] + 2 * roundoff(dtype) * std::abs(want[i]);
    }
    if (auto ok = close(got, want, tol); !ok) return ok;
    return within(got, want, bounds);
}
// f of the first `count` of x, or of all; the others stay. An element is as exact as its x.
inline Sums activated(const Vector& x, Activation kind, int64_t count = -1) {
    Sums sums{x, magnitudes(x)};
    const size_t n = count < 0 ? x.size() : size_t(count);
    for (size_t i = 0; i < n; i++) sums.value[i] = value_of(kind, x[i]);
    return sums;
}
// The first `count` sums, or all, times the slope of f at x, whose error is that of a value near 1.
inline Sums through_slope(Sums sums, Activation kind, const Vector& x, int64_t count = -1) {
    const size_t n = count < 0 ? sums.value.size() : size_t(count);
    for (size_t i = 0; i < n; i++) {
        sums.value[i] *= slope_of(kind, x[i]);
        sums.terms[i] *= 1.13;
    }
    return sums;
}

}  // namespace llmc::test
