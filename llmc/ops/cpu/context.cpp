// The CPU behind a Context: the GEMM library and the guard.
#include <sys/mman.h>

#include "llmc/ops/backend.h"
#include "llmc/ops/cpu/backend.h"
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

namespace {

void protect_all(Backend& backend, int protection) {
    for (auto& [data, bytes] : backend.allocations)
        if (mprotect(data, size_t(bytes), protection) != 0) run_error("guard: mprotect failed: ", std::strerror(errno));
}

}  // namespace

Backend* backend_create(const ContextOptions&, int threads) {
    Backend* backend = new Backend;
    backend->gemm = gemm_create(threads);
    // Not written to: a thread that uses its own makes it memory, near itself.
    backend->packed = std::make_unique_for_overwrite<PackedProduct::Scratch[]>(size_t(threads));
    return backend;
}

void BackendDeleter::operator()(Backend* backend) const {
    if (backend->gemm) gemm_destroy(backend->gemm);
    for (auto& [data, bytes] : backend->allocations) munmap(data, size_t(bytes));
    delete backend;
}

void backend_op_begins(const char*, Context& ctx) {
    if (ctx.backend->open_ops++ == 0 && ctx.guard) protect_all(*ctx.backend, PROT_READ | PROT_WRITE);
}

void backend_op_ends(Context& ctx) {
    if (--ctx.backend->open_ops == 0 && ctx.guard) protect_all(*ctx.backend, PROT_NONE);
}

// No profiler asks the CPU backend for ranges.
void backend_range_begins(const char*) {}
void backend_range_ends() {}

}  // namespace llmc
