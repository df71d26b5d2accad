// Context and Op on the CPU: threads, workspace, guard, profile.
#include <sched.h>
#include <sys/mman.h>

#include <chrono>

#include "llmc/ops/cpu/backend.h"
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

namespace {

int allowed_cpus() {
    cpu_set_t set;
    CPU_ZERO(&set);
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : omp_get_num_procs();
    return std::max(1, n);
}

double seconds_now() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

void protect_all(Backend& backend, int protection) {
    for (auto& [data, bytes] : backend.allocations)
        if (mprotect(data, size_t(bytes), protection) != 0) run_error("guard: mprotect failed: ", std::strerror(errno));
}

// Exact, so that the memory plan holds. The old workspace goes first: its contents are nobody's any more.
void set_workspace(int64_t bytes, Context& ctx) {
    Backend& backend = *ctx.backend;
    if (backend.workspace) device_free(backend.workspace, backend.workspace_bytes, ctx);
    backend.workspace = nullptr;
    backend.workspace_bytes = 0;
    if (bytes == 0) return;
    backend.workspace = device_alloc(bytes, ctx);
    backend.workspace_bytes = bytes;
}

}  // namespace

Context::Context(const ContextOptions& options)
    : counting(options.counting), guard(options.guard), profile(options.profile),
      threads(options.threads > 0 ? options.threads : allowed_cpus()) {
    if (options.threads < 0) input_error("threads is ", options.threads, "; give 0 (all CPUs) or a positive number");
    backend.reset(new Backend);
    backend->gemm = gemm_create(threads);
}

Context::~Context() = default;

void BackendDeleter::operator()(Backend* backend) const {
    if (backend->gemm) gemm_destroy(backend->gemm);
    for (auto& [data, bytes] : backend->allocations) munmap(data, size_t(bytes));
    delete backend;
}

Op::Op(Context& context, const char* op_name, int64_t op_flops, int64_t workspace_bytes)
    : run(!context.counting), ctx(context), name(op_name), flops(op_flops) {
    ctx.flops += flops;
    ctx.workspace_needed = std::max(ctx.workspace_needed, workspace_bytes);
    if (!run) return;

    Backend& backend = *ctx.backend;
    if (workspace_bytes > 0) {
        if (backend.workspace_in_use) run_error("op ", name, " needs the workspace that another op still holds");
        if (workspace_bytes > backend.workspace_bytes) {
            if (ctx.workspace_fixed)
                run_error("op ", name, " needs a workspace of ", workspace_bytes, " bytes, the memory plan reserved ",
                          backend.workspace_bytes);
            set_workspace(workspace_bytes, ctx);
        }
        workspace = backend.workspace;
        backend.workspace_in_use = true;
    }
    if (backend.open_ops++ == 0 && ctx.guard) protect_all(backend, PROT_READ | PROT_WRITE);
    if (ctx.profile) start = seconds_now();
}

Op::~Op() {
    if (!run) return;
    if (ctx.profile) {
        OpTime& time = ctx.times[name];
        time.calls++;
        time.seconds += seconds_now() - start;
        time.flops += flops;
    }
    Backend& backend = *ctx.backend;
    if (--backend.open_ops == 0 && ctx.guard) protect_all(backend, PROT_NONE);
    if (workspace) backend.workspace_in_use = false;
}

void reserve_workspace(int64_t bytes, Context& ctx) {
    ctx.workspace_needed = std::max(ctx.workspace_needed, bytes);
    if (!ctx.counting) set_workspace(bytes, ctx);
    ctx.workspace_fixed = true;
}

}  // namespace llmc
