// What a backend implements besides the ops of ops.h. context.cpp and memory.cpp build on these functions everything
// about a Context that is the same on every device.
#pragma once
#include "llmc/ops/ops.h"

namespace llmc {

// The backend's part of a Context. A counting Context never computes, so this must work without a device then.
Backend* backend_create(const ContextOptions& options, int threads);

// Called before and after every op that runs, also nested ones, for profilers and the guard mode; and around ranges.
void backend_op_begins(const char* name, Context& ctx);
void backend_op_ends(Context& ctx);
void backend_range_begins(const char* name);
void backend_range_ends();

void* backend_alloc(int64_t bytes, Context& ctx);  // bytes >= 1; nullptr if there is not enough memory
void backend_free(void* data, int64_t bytes, Context& ctx);

// The ops of these names in ops.h. The tensors have been checked; not called while counting.
void backend_upload(Tensor dst, const void* host, Context& ctx);
void backend_download(void* host, Tensor src, Context& ctx);
void backend_fill(Tensor t, double value, Context& ctx);
void backend_copy(Tensor dst, Tensor src, Context& ctx);
void backend_swap_axes(Tensor out, Tensor in, Context& ctx);

}  // namespace llmc
