// Context: the device an op runs on and what it needs there (threads or streams, library handles, workspace).
//
// Counting. With `counting` set, ops check their shapes, add up FLOPs and workspace, and touch no memory. The memory
// plan of a run is made by executing one whole step that way, so the plan cannot disagree with the step.
//
// Guard. With `guard` set, device memory is unreadable (PROT_NONE on the CPU) except while an op runs: code above ops/
// that looks at tensor data crashes, as it would with GPU memory. A test trains a model in this mode.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "llmc/base/tensor.h"

namespace llmc {

struct Backend;  // defined by the backend that is linked in
struct BackendDeleter {
    void operator()(Backend*) const;
};

struct ContextOptions {
    int threads = 0;  // CPU threads; 0: as many as the affinity mask of the process allows
    bool counting = false;
    bool guard = false;
    bool profile = false;  // time every op: see Context::times
};

struct OpTime {
    int64_t calls = 0;
    double seconds = 0;
    int64_t flops = 0;
};

struct Context {
    explicit Context(const ContextOptions& options = {});
    ~Context();
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    bool counting, guard, profile;
    int threads;
    int64_t flops = 0;             // floating point operations of all ops so far (one fused multiply-add is two)
    int64_t workspace_needed = 0;  // largest workspace any op has asked for so far, in bytes
    bool workspace_fixed = false;  // set once the plan is made: asking for more is then an error, not an allocation
    std::map<std::string, OpTime> times;  // filled if `profile`

    std::unique_ptr<Backend, BackendDeleter> backend;
};

// Every op opens with one of these, after its shape checks:
//     Op op(ctx, "matmul", 2 * m * n * k, workspace_bytes);
//     if (!op.run) return;             // counting: nothing to do
// It adds the FLOPs, provides the workspace (contents undefined, 64-byte aligned or better), lifts the guard, and times
// the op.
struct Op {
    Op(Context& ctx, const char* name, int64_t flops = 0, int64_t workspace_bytes = 0);
    ~Op();
    Op(const Op&) = delete;
    Op& operator=(const Op&) = delete;

    bool run;                   // false: the Context is only counting
    void* workspace = nullptr;  // workspace_bytes of scratch until the op ends; ops do not nest while they hold one
private:
    Context& ctx;
    const char* name;
    int64_t flops;
    double start = 0;
};

// Makes the workspace that the counted step needs and forbids growing it afterwards. Bytes are part of the memory plan.
void reserve_workspace(int64_t bytes, Context& ctx);

}  // namespace llmc
