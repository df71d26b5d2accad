// Activations of a few elements by one thread: what is applied to the rows of a product as soon as they are done.
#pragma once
#include "llmc/ops/ops.h"

namespace llmc {

// out[j] = f(x[j]). out may be x.
void activate(float* out, const float* x, int64_t n, Activation kind);
// dx[j] = dout[j] f'(x[j]); value[j] = f(x[j]) unless it is nullptr. dx may be dout.
void activate_backward(float* dx, float* value, const float* dout, const float* x, int64_t n, Activation kind);

}  // namespace llmc
