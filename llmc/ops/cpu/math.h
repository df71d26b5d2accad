// exp and sigmoid without branches, so that GCC vectorises the loops that call them (`#pragma omp simd`; the
// compiler needs -fno-math-errno -fno-trapping-math). float: polynomials, about one unit in the last place. double: the
// standard library.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace llmc {

// e^x within 1.5 ulp for x in (-86.99, 89], +inf where that overflows; exactly 0 for x in [-87.5, -86.99] (results
// under 1.7e-38); NaN for NaN. Anything for other x.
// x = n ln 2 + r with integer n, |r| <= ln 2 / 2, so e^x = 2^n e^r.
inline float exp_unchecked(float x) {
    // Adding 1.5 * 2^23 rounds to an integer that then sits in the low bits; + 126 makes it the exponent field of
    // 2^(n-1).
    constexpr float round_magic = 12582912.0f + 126.0f;
    constexpr float log2_e = 1.44269504088896341f;
    constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440054690583e-4f;  // n * ln2_high is exact
    const float shifted = x * log2_e + round_magic;
    const float n = shifted - round_magic;
    const float r = (x - n * ln2_high) - n * ln2_low;
    // Minimax for (e^r - 1 - r) / r^2, weighted for the relative error of q = e^r - 1: 1.7e-8.
    float p = 0.00138825097f;
    p = p * r + 0.00836658012f;
    p = p * r + 0.0416672006f;
    p = p * r + 0.166665435f;
    p = p * r + 0.49999997f;
    const float q = p * (r * r) + r;
    // 2^(n-1), 0 for n = -126: half of the scale keeps n = 128 within the exponent field.
    const float half_scale = std::bit_cast<float>(std::bit_cast<uint32_t>(shifted) << 23);
    return (q * half_scale + half_scale) * 2.0f;
}
inline double exp_unchecked(double x) { return std::exp(x); }

// The same for any x up to 89: what is below -87.5, and -inf, also gives exactly 0, so that no denormals slow the
// callers down. Softmaxes, whose exponents are differences from a maximum, need no more.
inline float exp_up_to_89(float x) { return exp_unchecked(x < -87.5f ? -87.5f : x); }
inline double exp_up_to_89(double x) { return std::exp(x); }

// The same for every x: overflow and +inf give +inf.
inline float fast_exp(float x) {
    const float y = exp_up_to_89(x);
    return x > 89.0f ? std::numeric_limits<float>::infinity() : y;  // of what exp_unchecked made of it, nothing is left
}
inline double fast_exp(double x) { return std::exp(x); }

// 1 / (1 + e^-x). 0.5 (1 + tanh u) = sigmoid(2u) is the accurate way to write the tanh form of gelu for negative u.
template <class F> inline F fast_sigmoid(F x) { return F(1) / (F(1) + fast_exp(-x)); }

}  // namespace llmc
