// What the files of the CPU backend share: typed access to tensors, dispatch over element types, shape checks.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "llmc/ops/ops.h"

namespace llmc {

// Arithmetic type of an element type: float for f32 and bf16, double for f64.
template <class T> struct arithmetic { using type = float; };
template <> struct arithmetic<double> { using type = double; };
template <class T> using arithmetic_t = typename arithmetic<T>::type;
// dtype of statistics, gradients of parameters and softmax weights beside activations of this dtype.
inline DType arithmetic_dtype(DType act) { return act == DType::f64 ? DType::f64 : DType::f32; }

// to = value, rounded to the type of `to`. In loops, instead of `to = T(value)`: GCC 12 does not vectorise the
// temporary bf16.
inline void put(float& to, float value) { to = value; }
inline void put(double& to, double value) { to = value; }
inline void put(bf16& to, float value) { to.bits = bf16::round(value); }

// The tensor's elements. nullptr if the tensor was not given.
template <class T> T* ptr(const Tensor& t) { return static_cast<T*>(t.data); }

// Calls f(T{}) with T = float, bf16 or double, as the activation type says.
template <class F>
void dispatch(DType act, F&& f) {
    switch (act) {
        case DType::f32: return f(float{});
        case DType::bf16: return f(bf16{});
        case DType::f64: return f(double{});
        default: run_error("dtype ", name_of(act), " is not an activation type");
    }
}

// Length of the last axis; 0 for a tensor that was not given, whose shape the checks then name.
inline int64_t last_dim(const Tensor& t) { return t.shape.rank > 0 ? t.shape[-1] : 0; }

inline void check_shape(const Tensor& t, const Shape& want, const char* what) {
    if (!(t.shape == want)) run_error(what, " ", t.name, " has shape ", t.shape.text(), ", expected ", want.text());
}
inline void check_dtype(const Tensor& t, DType want, const char* what) {
    if (t.dtype != want) run_error(what, " ", t.name, " has dtype ", name_of(t.dtype), ", expected ", name_of(want));
}
inline void check(const Tensor& t, DType dtype, const Shape& shape, const char* what) {
    check_dtype(t, dtype, what);
    check_shape(t, shape, what);
    if (!t.contiguous()) run_error(what, " ", t.name, " must be contiguous");
}

// Half-open part number `part` of [0, n) cut into `parts` nearly equal parts: work shares and fixed reduction chunks.
inline std::pair<int64_t, int64_t> part_of(int64_t n, int64_t part, int64_t parts) {
    return {n * part / parts, n * (part + 1) / parts};
}

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace llmc
