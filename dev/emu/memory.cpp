// Device memory, pinned host memory, copies. Device memory comes from malloc, so that ASan sees its ends; with
// EMU_GUARD=1 from mmap instead: unreadable except while a kernel or a copy runs, between two pages that always are.
#include "dev/emu/memory.h"

#include <cuda_runtime_api.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>

#include "dev/emu/settings.h"
#include "dev/emu/stream.h"

namespace emu {
namespace {

constexpr size_t alignment = 256, page = 4096;
constexpr int junk = 0xff;  // NaN in float and bf16, -1 as an integer

struct Allocation {
    size_t bytes;
    char* mapping;  // guarded: the pages between the two that are never readable
    size_t mapped;
};
std::map<char*, Allocation>& device() {
    static std::map<char*, Allocation> all;
    return all;
}
std::map<char*, size_t>& pinned() {
    static std::map<char*, size_t> all;
    return all;
}
size_t used = 0;
int open_accesses = 0;

void protect(const Allocation& a, bool readable) {
    if (a.mapping) mprotect(a.mapping, a.mapped, readable ? PROT_READ | PROT_WRITE : PROT_NONE);
}

// ---- what to say when someone touches what he may not
void on_segfault(int, siginfo_t* info, void*) {
    const char* p = static_cast<const char*>(info->si_addr);
    for (const auto& [data, a] : device())
        if (a.mapping && p >= a.mapping - page && p < a.mapping + a.mapped + page)
            fail("%s touches %p: byte %td of a device allocation of %zu bytes",
                 open_accesses ? "a kernel" : "host code", static_cast<const void*>(p), p - data, a.bytes);
    fail("segmentation fault at %p (a null pointer, freed memory, or the stack of a CUDA thread is full)",
         static_cast<const void*>(p));
}

void explain_segfaults() {
    static bool done = false;
    if (done) return;
    done = true;
    static char stack[64 << 10];
    const stack_t alternative{.ss_sp = stack, .ss_flags = 0, .ss_size = sizeof stack};
    sigaltstack(&alternative, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_segfault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
}

// ---- allocation
char* allocate_guarded(size_t bytes, Allocation& a) {
    explain_segfaults();
    a.mapped = (bytes + page - 1) / page * page;
    void* memory = mmap(nullptr, a.mapped + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    a.mapping = static_cast<char*>(memory) + page;
    protect(a, true);
    return a.mapping + (a.mapped - bytes) / alignment * alignment;  // as near to the end as alignment allows
}

cudaError_t allocate(void** p, size_t bytes) {
    *p = nullptr;
    if (settings().devices == 0) return cudaErrorNoDevice;
    if (bytes == 0) return cudaSuccess;
    if (bytes > settings().memory - used) return cudaErrorMemoryAllocation;
    Allocation a{bytes, nullptr, 0};
    if (settings().guard)
        *p = allocate_guarded(bytes, a);
    else if (posix_memalign(p, alignment, bytes) != 0)
        *p = nullptr;
    if (!*p) return cudaErrorMemoryAllocation;
    memset(*p, junk, bytes);
    if (open_accesses == 0) protect(a, false);
    device()[static_cast<char*>(*p)] = a;
    used += bytes;
    return cudaSuccess;
}

cudaError_t release(void* p) {
    const auto at = device().find(static_cast<char*>(p));
    if (at == device().end()) return cudaErrorInvalidValue;
    const Allocation a = at->second;
    device().erase(at);
    used -= a.bytes;
    if (a.mapping)
        munmap(a.mapping - page, a.mapped + 2 * page);
    else
        free(p);
    return cudaSuccess;
}

bool on_device(const void* p, size_t bytes) {
    const char* begin = static_cast<const char*>(p);
    auto after = device().upper_bound(const_cast<char*>(begin));
    if (after == device().begin()) return false;
    const auto& [data, a] = *--after;
    return begin + bytes <= data + a.bytes;
}

bool is_pinned(const void* p) {
    auto after = pinned().upper_bound(static_cast<char*>(const_cast<void*>(p)));
    return after != pinned().begin() && static_cast<const char*>(p) < (--after)->first + after->second;
}

// ---- copies
bool fits(const void* p, size_t bytes, bool want_device, const char* which) {
    if (on_device(p, bytes) == want_device) return true;
    fprintf(stderr, "emulator: the %s of a copy of %zu bytes is %s\n", which, bytes,
            want_device ? "not inside one device allocation" : "device memory, not the host's");
    return false;
}

cudaError_t check_copy(const void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (settings().devices == 0) return cudaErrorNoDevice;
    if (bytes == 0 || kind == cudaMemcpyDefault) return cudaSuccess;
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    const bool good = fits(to, bytes, to_device, "destination") && fits(from, bytes, from_device, "source");
    return good ? cudaSuccess : cudaErrorInvalidValue;
}

// Calls that wait for the device: not while capturing, and only after what the default stream waits for.
template <class F>
cudaError_t waiting_call(F f) {
    const std::scoped_lock lock(runtime_mutex());
    if (const cudaError_t refused = unsafe_in_capture(); refused != cudaSuccess) return error(refused);
    finish_legacy_streams();
    return error(f());
}

}  // namespace

DeviceAccess::DeviceAccess() {
    if (open_accesses++ == 0)
        for (const auto& [data, a] : device()) protect(a, true);
}
DeviceAccess::~DeviceAccess() {
    if (--open_accesses == 0)
        for (const auto& [data, a] : device()) protect(a, false);
}

}  // namespace emu

using namespace emu;

// -------------------------------------------------------------------------------------------------------- the runtime
extern "C" {

cudaError_t cudaMalloc(void** p, size_t bytes) {
    const std::scoped_lock lock(runtime_mutex());
    if (const cudaError_t refused = unsafe_in_capture(); refused != cudaSuccess) return error(refused);
    return error(allocate(p, bytes));
}
cudaError_t cudaFree(void* p) {
    return waiting_call([p] { return finish_everything(), p ? release(p) : cudaSuccess; });
}
cudaError_t cudaMallocHost(void** p, size_t bytes) { return cudaHostAlloc(p, bytes, cudaHostAllocDefault); }
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
    const std::scoped_lock lock(runtime_mutex());
    if (const cudaError_t refused = unsafe_in_capture(); refused != cudaSuccess) return error(refused);
    if (settings().devices == 0) return error(cudaErrorNoDevice);
    *p = malloc(bytes);
    if (!*p) return error(cudaErrorMemoryAllocation);
    memset(*p, junk, bytes);
    pinned()[static_cast<char*>(*p)] = bytes;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
    return waiting_call([p] {
        finish_everything();
        if (p && pinned().erase(static_cast<char*>(p)) == 0) return cudaErrorInvalidValue;
        free(p);
        return cudaSuccess;
    });
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
    const std::scoped_lock lock(runtime_mutex());
    if (settings().devices == 0) return error(cudaErrorNoDevice);
    *total = settings().memory;
    *free_bytes = settings().memory - used;
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
    const std::scoped_lock lock(runtime_mutex());
    *attributes = {};
    attributes->type = on_device(p, 1) ? cudaMemoryTypeDevice
                       : is_pinned(p)  ? cudaMemoryTypeHost
                                       : cudaMemoryTypeUnregistered;
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return waiting_call([=] {
        const cudaError_t result = check_copy(to, from, bytes, kind);
        const DeviceAccess access;
        if (result == cudaSuccess) memmove(to, from, bytes);
        return result;
    });
}
// The copy is made late: whoever changes the source before the stream is done sees it. From ordinary memory drivers may
// take the bytes before the call returns, but NVIDIA promises that of cudaMemcpy only.
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    const std::scoped_lock lock(runtime_mutex());
    if (const cudaError_t bad = check_copy(to, from, bytes, kind); bad != cudaSuccess) return error(bad);
    return error(enqueue(stream, cudaGraphNodeTypeMemcpy, [=] { memmove(to, from, bytes); }));
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
    const std::scoped_lock lock(runtime_mutex());
    if (bytes > 0 && !fits(to, bytes, true, "target")) return error(cudaErrorInvalidValue);
    return error(enqueue(stream, cudaGraphNodeTypeMemset, [=] { memset(to, value, bytes); }));
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }

}  // extern "C"
