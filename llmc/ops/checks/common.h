// Checks that the ops of all backends share: shapes, dtypes, and messages that name the wrong tensor. The checks of
// each family of ops are in the other headers of this directory, so that every backend reports the same errors in the
// same words.
#pragma once
#include <algorithm>
#include <utility>

#include "llmc/ops/ops.h"

namespace llmc {

// The tensor's elements; nullptr if the tensor is not given.
template <class T> T* ptr(const Tensor& t) { return static_cast<T*>(t.data); }

// Length of the last axis; 0 for a tensor that is not given, so that a later check reports its shape.
inline int64_t last_dim(const Tensor& t) { return t.shape.rank > 0 ? t.shape[-1] : 0; }

// The least memory traffic of an op with these inputs and outputs, in bytes. Tensors that are not given count as 0.
inline int64_t total_bytes(std::initializer_list<Tensor> tensors) {
    int64_t bytes = 0;
    for (const Tensor& t : tensors) bytes += t ? t.bytes() : 0;
    return bytes;
}

// RunError naming the tensor unless it has this shape; this dtype; both, and is contiguous. `what` says the tensor's
// role.
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

// Range [begin, end) of part number `part` if [0, n) is divided into `parts` nearly equal parts: for threads, and for
// the fixed chunks of reductions.
inline std::pair<int64_t, int64_t> part_of(int64_t n, int64_t part, int64_t parts) {
    return {n * part / parts, n * (part + 1) / parts};
}

// The smallest multiple of `multiple` that is at least n.
inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace llmc
