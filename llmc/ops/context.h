// Context: the device an op runs on and what it needs there (threads or streams, library handles, workspace).
//
// Counting. With `counting` set, ops check their shapes, add up FLOPs, bytes and workspace, and touch no memory. The
// memory plan of a run is made by executing one whole step in this mode, so plan and step cannot disagree.
//
// Guard. With `guard` set, device memory on the CPU is unreadable (PROT_NONE) except while an op runs. Code above ops/
// that reads tensor data then crashes, as it would with GPU memory. A test trains a model in this mode.
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
    int device = -1;       // number of the GPU; -1: CUDA chooses. For several processes see choose_device in comm.h
};

// One entry of the list that a counting Context can record (Context::events): ops, collectives, and the waits between
// them, in their order. From this list follows what may overlap (planner/timeline.h).
struct Event {
    // An op, a collective, or a point where one waits for the other, see Comm.
    enum Kind { op, collective, after_compute, before_compute, mark, before_compute_mark } kind = op;
    std::string name{};                    // of the op or collective
    double flops = 0;                      // as in OpCost
    int64_t bytes = 0, wire = 0;           // as in OpCost and CommCost
    int first = 0, stride = 1, count = 1;  // of a collective: its ranks
    int number = 0;                        // of a mark
};

struct Context {
    explicit Context(const ContextOptions& options = {});
    ~Context();
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    bool counting, guard;
    int threads;
    double flops = 0;              // floating point operations of all ops so far (one fused multiply-add is two)
    int64_t workspace_needed = 0;  // bytes of the largest workspace that an op has needed so far
    int64_t launches = 0;          // kernels and library calls started on a GPU so far
    std::map<std::string, OpCost> costs;  // by op, filled while counting
    std::vector<Event>* events = nullptr;  // if set, a counting Context records its events here
    const std::unique_ptr<Recording> profile;  // times of ops; nullptr without options.profile and while counting
    // If set: how often the CPU's GEMM library computed each product, except for matmul_ragged.
    std::map<GemmProblem, int64_t>* products = nullptr;

    Arena* workspace_arena = nullptr;  // while set, ops take their workspace there: see WorkspaceOnArena
    struct {                           // the Context's own workspace, used by one op at a time
        void* data = nullptr;
        int64_t bytes = 0;
        bool in_use = false;  // an op holds a workspace, here or on an arena
        bool fixed = false;   // reserved by the plan: needing more is an error now, not an allocation
    } workspace;
    int64_t counted_bytes = 0;  // while counting: how much of the fake address space is used

    std::unique_ptr<Backend, BackendDeleter> backend;

    void write_down(const Event& event) {
        if (counting && events) events->push_back(event);
    }
};

// Every op creates an Op first, after its shape checks:
//     Op op(ctx, "matmul", 2 * m * n * k, workspace_bytes, total_bytes({out, a, b}));
//     if (!op.run) return;             // counting: nothing to do
// Op adds up the cost, provides the workspace (contents undefined, at least 64-byte aligned), makes memory readable in
// guard mode, and times the op. RunError if the plan has not reserved enough workspace.
struct Op {
    Op(Context& ctx, const char* name, double flops = 0, int64_t workspace_bytes = 0, int64_t bytes = 0);
    ~Op();
    Op(const Op&) = delete;
    Op& operator=(const Op&) = delete;

    bool run;  // false: the Context is only counting
    // workspace_bytes bytes until the op ends. An op that holds one may not call another that does.
    void* workspace = nullptr;
private:
    void take_workspace(int64_t bytes);

    Context& ctx;
    const char* name;
    Arena* const arena;  // where the workspace is; nullptr: the Context's own
    int64_t mark = 0;    // end of the arena below the workspace
};

// Marks a part of the run for profilers and Context::profile while it lives: a step, a block's forward pass. The name
// must be a string literal.
struct Range {
    Range(const char* name, Context& ctx);
    ~Range();
    Range(const Range&) = delete;
    Range& operator=(const Range&) = delete;

private:
    Context& ctx;
};

// Allocates the Context's workspace of this size, as the memory plan says. From then on an op that needs more is an
// error.
void reserve_workspace(int64_t bytes, Context& ctx);

}  // namespace llmc
