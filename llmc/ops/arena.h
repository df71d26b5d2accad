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

    // The same, without a type: an op's workspace. `shape` is for the message.
    void* take(int64_t bytes, const char* tensor_name, Shape shape);

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

// While it lives, ops find their workspace above the tensors of `arena`, in place of memory of its own. The largest,
// logits in the head's loss, then costs nothing where another moment of the step needs more. The peak counts it.
class WorkspaceOnArena {
public:
    WorkspaceOnArena(Arena& arena, Context& ctx) : ctx(ctx), before(ctx.workspace_arena) {
        ctx.workspace_arena = &arena;
    }
    ~WorkspaceOnArena() { ctx.workspace_arena = before; }
    WorkspaceOnArena(const WorkspaceOnArena&) = delete;
    WorkspaceOnArena& operator=(const WorkspaceOnArena&) = delete;

private:
    Context& ctx;
    Arena* before;
};

}  // namespace llmc
