// Activations and their slopes in float64, as papers write them.
#pragma once
#include <algorithm>
#include <cmath>

#include "llmc/ops/ops.h"

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

}  // namespace llmc::test
