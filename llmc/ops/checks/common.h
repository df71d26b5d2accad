// What the ops of all backends check alike, and how: shapes, dtypes, and messages that name the wrong tensor. The
// checks of one op family stand in the other headers of this directory, so that every backend refuses the same in the
// same words.
#pragma once
#include <algorithm>
#include <utility>

#include "llmc/ops/ops.h"

namespace llmc {

// dtype of statistics, gradients of parameters and softmax weights beside activations of this dtype.
inline DType arithmetic_dtype(DType act) { return act == DType::f64 ? DType::f64 : DType::f32; }

// The tensor's elements. nullptr if the tensor was not given.
template <class T> T* ptr(const Tensor& t) { return static_cast<T*>(t.data); }

// Length of the last axis; 0 for a tensor that was not given, whose shape the checks then name.
inline int64_t last_dim(const Tensor& t) { return t.shape.rank > 0 ? t.shape[-1] : 0; }

// What an op must move at least. Tensors that were not given weigh nothing.
inline int64_t total_bytes(std::initializer_list<Tensor> tensors) {
    int64_t bytes = 0;
    for (const Tensor& t : tensors) bytes += t ? t.bytes() : 0;
    return bytes;
}

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
