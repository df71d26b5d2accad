// Context and Op: what is the same on every device. Counting, workspace, profile.
#include <sched.h>

#include <thread>

#include "llmc/ops/arena.h"
#include "llmc/ops/backend.h"

namespace llmc {

namespace {

int allowed_cpus() {
    cpu_set_t set;
    CPU_ZERO(&set);
    const bool known = sched_getaffinity(0, sizeof set, &set) == 0;
    const int n = known ? CPU_COUNT(&set) : int(std::thread::hardware_concurrency());
    return std::max(1, n);
}

// Exact, so that the memory plan holds. The old workspace is freed first: nothing uses its contents any more.
void set_workspace(int64_t bytes, Context& ctx) {
    auto& workspace = ctx.workspace;
    if (workspace.data) device_free(workspace.data, workspace.bytes, ctx);
    workspace.data = nullptr;
    workspace.bytes = 0;
    if (bytes == 0) return;
    workspace.data = device_alloc(bytes, ctx);
    workspace.bytes = bytes;
}

}  // namespace

Context::Context(const ContextOptions& options)
    : counting(options.counting), guard(options.guard),
      threads(options.threads > 0 ? options.threads : allowed_cpus()),
      profile(options.profile && !options.counting ? new Recording : nullptr) {
    if (options.threads < 0) input_error("threads is ", options.threads, "; give 0 (all CPUs) or a positive number");
    backend.reset(backend_create(options, threads));
}

Context::~Context() = default;

Op::Op(Context& context, const char* op_name, double flops, int64_t workspace_bytes, int64_t bytes)
    : run(!context.counting), ctx(context), name(op_name), arena(context.workspace_arena) {
    ctx.flops += flops;
    if (ctx.counting) {
        OpCost& cost = ctx.costs[name];
        cost.calls++, cost.flops += flops, cost.bytes += bytes;
    }
    ctx.write_down({.kind = Event::op, .name = name, .flops = flops, .bytes = bytes});
    if (workspace_bytes > 0) take_workspace(workspace_bytes);
    if (!run) return;
    if (ctx.profile) {
        synchronize(ctx);
        ctx.profile->begin_op(name, flops, bytes);
    }
    backend_op_begins(name, ctx);
}

void Op::take_workspace(int64_t bytes) {
    auto& own = ctx.workspace;
    if (own.in_use) run_error("op ", name, " needs the workspace that another op still holds");
    if (arena) {
        mark = arena->mark();
        workspace = arena->take(bytes, name, {bytes});
    } else {
        ctx.workspace_needed = std::max(ctx.workspace_needed, bytes);
        if (!run) return;
        if (bytes > own.bytes) {
            if (own.fixed)
                run_error("op ", name, " needs a workspace of ", bytes, " bytes, the memory plan reserved ", own.bytes);
            set_workspace(bytes, ctx);
        }
        workspace = own.data;
    }
    own.in_use = true;
}

Op::~Op() {
    if (run) {
        backend_op_ends(ctx);
        if (ctx.profile) {
            synchronize(ctx);
            ctx.profile->end();
        }
    }
    if (!workspace) return;
    if (arena) arena->release(mark);
    ctx.workspace.in_use = false;
}

Range::Range(const char* name, Context& context) : ctx(context) {
    backend_range_begins(name);
    if (ctx.profile) ctx.profile->begin_range(name);
}

Range::~Range() {
    if (ctx.profile) ctx.profile->end();
    backend_range_ends();
}

void reserve_workspace(int64_t bytes, Context& ctx) {
    ctx.workspace_needed = std::max(ctx.workspace_needed, bytes);
    if (!ctx.counting) set_workspace(bytes, ctx);
    ctx.workspace.fixed = true;
}

}  // namespace llmc
