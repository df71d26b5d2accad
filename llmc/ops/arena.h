// Arena: one flat range of device memory handed out in 256-byte steps, and given back in reverse order.
//
// Unallocated (while counting) it hands out fake addresses without end, and only the peak matters. `allocate` then
// makes exactly that many bytes, and the same sequence of calls gets real addresses.
#pragma once
#include "llmc/ops/ops.h"

namespace llmc {

class Arena {
public:
    Arena(const char* name, Context& ctx) : name(name), ctx(ctx) {}
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // A contiguous tensor, 256-byte aligned. `tensor_name` must outlive the tensor. RunError past the allocated end.
    Tensor tensor(const char* tensor_name, DType dtype, Shape shape);

    int64_t mark() const { return used; }
    void release(int64_t mark) { used = mark; }  // everything taken since mark() is free again

    int64_t peak() const { return most; }   // most bytes ever in use
    void allocate(int64_t bytes);           // once, while the arena is empty
    int64_t bytes() const { return size; }  // allocated; 0 before allocate()

private:
    const char* name;
    Context& ctx;
    char* base = nullptr;
    int64_t size = 0, used = 0, most = 0;
};

}  // namespace llmc
