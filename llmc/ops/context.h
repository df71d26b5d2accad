// Context: the device an op runs on and what it needs there (threads or streams, library handles, workspace).
//
// Counting. With `counting` set, ops check their shapes, add up FLOPs and workspace, and touch no memory. The memory
// plan of a run is made by executing one whole step that way, so the plan cannot disagree with the step.
//
// Guard. With `guard` set, device memory on the CPU is unreadable (PROT_NONE) except while an op runs: code above ops/
// that looks at tensor data crashes, as it would with GPU memory. A test trains a model in this mode.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "llmc/base/tensor.h"
#include "llmc/ops/recording.h"

namespace llmc {

class Arena;         // arena.h
struct Backend;      // defined by the backend that is linked in
struct GemmProblem;  // in checks/matmul.h
struct BackendDeleter {
    void operator()(Backend*) const;
};

struct ContextOptions {
    int threads = 0;  // CPU threads; 0: as many as the affinity mask of the process allows
    bool counting = false;
    bool guard = false;
    bool profile = false;  // time every op, waiting for the device around each one
    int device = -1;       // number of the GPU; -1: the one that CUDA chooses. Where there are many processes: comm.h
};

// Something that was asked for. A Context that counts can write all of it down in its order (Context::events): what may
// happen at the same time, where communication goes on beside computation, follows from that (planner/timeline.h).
struct Event {
    // An op; a collective; and the points where the one waits for the other, see Comm.
    enum Kind { op, collective, after_compute, before_compute, mark, before_compute_mark } kind = op;
    std::string name{};                      // of the op or collective
    int64_t flops = 0, bytes = 0, wire = 0;  // as in OpCost and CommCost
    int first = 0, stride = 1, count = 1;    // collective: among which ranks
    int number = 0;                          // of the mark
};

struct Context {
    explicit Context(const ContextOptions& options = {});
    ~Context();
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    bool counting, guard;
    int threads;
    int64_t flops = 0;             // floating point operations of all ops so far (one fused multiply-add is two)
    int64_t workspace_needed = 0;  // largest workspace any op has asked the Context for so far, in bytes
    int64_t launches = 0;                 // kernels and library calls given to a GPU so far
    std::map<std::string, OpCost> costs;  // by op, filled while counting
    std::vector<Event>* events = nullptr;  // if given, gets everything that is counted
    const std::unique_ptr<Recording> profile;  // what ops took, if that was asked for; nullptr while counting
    // If given: how often the CPU's GEMM library was asked for which product, except by matmul_ragged.
    std::map<GemmProblem, int64_t>* products = nullptr;

    Arena* workspace_arena = nullptr;  // while set, ops take their workspace there: see WorkspaceOnArena
    struct {                   // scratch of the other ops, one op at a time
        void* data = nullptr;
        int64_t bytes = 0;
        bool in_use = false;   // by an op, wherever its workspace is
        bool fixed = false;    // the plan is made: asking for more is an error now, not an allocation
    } workspace;
    int64_t counted_bytes = 0;  // fake addresses handed out while counting

    std::unique_ptr<Backend, BackendDeleter> backend;

    void write_down(const Event& event) {
        if (counting && events) events->push_back(event);
    }
};

// Every op opens with one of these, after its shape checks:
//     Op op(ctx, "matmul", 2 * m * n * k, workspace_bytes, total_bytes({out, a, b}));
//     if (!op.run) return;             // counting: nothing to do
// It adds up the cost, provides the workspace (contents undefined, 64-byte aligned or better), lifts the guard, and
// times the op.
struct Op {
    Op(Context& ctx, const char* name, int64_t flops = 0, int64_t workspace_bytes = 0, int64_t bytes = 0);
    ~Op();
    Op(const Op&) = delete;
    Op& operator=(const Op&) = delete;

    bool run;                   // false: the Context is only counting
    void* workspace = nullptr;  // workspace_bytes of scratch until the op ends; ops do not nest while they hold one
private:
    void take_workspace(int64_t bytes);

    Context& ctx;
    const char* name;
    Arena* const arena;  // that the workspace is on; nullptr: it is the Context's
    int64_t mark = 0;    // of the arena below the workspace
};

// A named stretch of the timeline, for profilers and Context::profile: a step, a block's forward pass. The name is a
// literal.
struct Range {
    Range(const char* name, Context& ctx);
    ~Range();
    Range(const Range&) = delete;
    Range& operator=(const Range&) = delete;

private:
    Context& ctx;
};

// Makes the workspace that the counted step needs and forbids growing it afterwards. Bytes are part of the memory plan.
void reserve_workspace(int64_t bytes, Context& ctx);

}  // namespace llmc
