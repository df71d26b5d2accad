// 64-byte vectors for register-blocked kernels, where loops that the compiler vectorises cannot promise that accumulators stay
// in registers. GCC's vector types: one AVX-512 register, or split by the compiler on narrower machines.
#pragma once
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

template <class A> struct Lanes {
    typedef A type __attribute__((vector_size(64)));
};
template <class A> using Vec = typename Lanes<A>::type;              // A = float or double
template <class A> constexpr int lanes = int(64 / sizeof(A));

typedef uint16_t HalfBits __attribute__((vector_size(32)));          // 16 bf16
typedef uint32_t FloatBits __attribute__((vector_size(64)));         // 16 f32

inline void load(Vec<float>& v, const float* p) { std::memcpy(&v, p, sizeof v); }
inline void load(Vec<double>& v, const double* p) { std::memcpy(&v, p, sizeof v); }
inline void load(Vec<float>& v, const bf16* p) {
    HalfBits half;
    std::memcpy(&half, p, sizeof half);
    FloatBits bits = __builtin_convertvector(half, FloatBits) << 16;
    std::memcpy(&v, &bits, sizeof v);
}

inline void store(float* p, const Vec<float>& v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, const Vec<double>& v) { std::memcpy(p, &v, sizeof v); }
inline void store(bf16* p, const Vec<float>& v) {                    // rounds as bf16::round
    FloatBits bits;
    std::memcpy(&bits, &v, sizeof bits);
    FloatBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
    rounded = (bits & 0x7fffffff) > 0x7f800000 ? nan : rounded;
    HalfBits half = __builtin_convertvector(rounded, HalfBits);
    std::memcpy(static_cast<void*>(p), &half, sizeof half);
}

// The first n lanes only.
template <class T, class A>
void store_some(T* p, const Vec<A>& v, int64_t n) {
    for (int64_t i = 0; i < n; i++) p[i] = T(v[i]);
}

}  // namespace llmc
