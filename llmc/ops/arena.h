// Arena: a stack of tensors in one range of device memory. Tensors are aligned to 256 bytes and released in reverse
// order.
//
// Before `allocate` (while counting) an arena returns fake addresses without limit and records its peak. `allocate`
// then gets that many bytes, and the same sequence of calls returns real addresses.
#pragma once
#include "llmc/ops/ops.h"

namespace llmc {

class Arena {
public:
    Arena(const char* name, Context& ctx) : name(name), ctx(ctx) {}
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // A contiguous tensor, 256-byte aligned, contents undefined. `tensor_name` must outlive the tensor. RunError if the
    // arena is full.
    Tensor tensor(const char* tensor_name, DType dtype, Shape shape);

    // The same for `bytes` bytes without a type: an op's workspace. `shape` is for the error message only.
    void* take(int64_t bytes, const char* tensor_name, Shape shape);

    int64_t mark() const { return used; }        // the current end
    void release(int64_t mark) { used = mark; }  // frees everything that was taken after mark()

    int64_t peak() const { return most; }   // the largest number of bytes ever in use
    void allocate(int64_t bytes);           // gets the memory; once, while the arena is empty
    int64_t bytes() const { return size; }  // allocated; 0 before allocate()

private:
    const char* name;
    Context& ctx;
    char* base = nullptr;
    int64_t size = 0, used = 0, most = 0;
};

// While this object lives, ops take their workspace from `arena`, above its tensors, instead of the Context's own
// memory. The largest workspace, the logits of the head, then needs no extra memory if another moment of the step needs
// more. The peak of the arena includes workspaces.
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
