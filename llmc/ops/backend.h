// What a backend provides besides the ops of ops.h: the few pieces below, from which context.cpp and memory.cpp build
// everything about a Context that is the same on every device.
#pragma once
#include "llmc/ops/ops.h"

namespace llmc {

// A counting Context never computes: its Backend may be made where there is no device at all.
Backend* backend_create(const ContextOptions& options, int threads);

// Around every op that runs, also nested ones: ranges for profilers, the guard.
void backend_op_begins(const char* name, Context& ctx);
void backend_op_ends(Context& ctx);
void backend_range_begins(const char* name);
void backend_range_ends();

void* backend_alloc(int64_t bytes, Context& ctx);  // at least one byte; nullptr if the device has not enough
void backend_free(void* data, int64_t bytes, Context& ctx);

// The tensors were checked; not called while counting.
void backend_upload(Tensor dst, const void* host, Context& ctx);
void backend_download(void* host, Tensor src, Context& ctx);
void backend_fill(Tensor t, double value, Context& ctx);
void backend_copy(Tensor dst, Tensor src, Context& ctx);
void backend_swap_axes(Tensor out, Tensor in, Context& ctx);

}  // namespace llmc
