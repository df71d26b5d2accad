// Helpers of all files of the CPU backend: arithmetic on elements, dispatch over element types.
#pragma once
#include <omp.h>

#include <cmath>
#include <cstring>

#include "llmc/ops/checks/common.h"

namespace llmc {

// Arithmetic type of an element type: float for f32 and bf16, double for f64.
template <class T> struct arithmetic { using type = float; };
template <> struct arithmetic<double> { using type = double; };
template <class T> using arithmetic_t = typename arithmetic<T>::type;

// to = value, rounded to the type of `to`. In loops, instead of `to = T(value)`: GCC 12 does not vectorise the
// temporary bf16.
inline void put(float& to, float value) { to = value; }
inline void put(double& to, double value) { to = value; }
inline void put(bf16& to, float value) { to.bits = bf16::round(value); }

// Prefetches n elements from x on into the second-level cache. The addresses need not be valid.
template <class T>
inline void fetch_ahead(const T* x, int64_t n) {
    for (int64_t j = 0; j < n; j += 64 / int64_t(sizeof(T))) __builtin_prefetch(x + j, 0, 2);
}

// Calls f(T{}) with T = float, bf16 or double, according to the activation type.
template <class F>
void dispatch(DType act, F&& f) {
    switch (act) {
        case DType::f32: return f(float{});
        case DType::bf16: return f(bf16{});
        case DType::f64: return f(double{});
        case DType::i32: break;
    }
    run_error(act == DType::i32 ? "i32" : "an unknown dtype", " is not an activation type");
}

}  // namespace llmc
