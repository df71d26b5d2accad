// Device memory on the CPU: anonymous mappings, so that the guard can take them away and large ones can get huge pages;
// and what is known about the machine: free memory, description.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <limits>

#include "llmc/ops/backend.h"
#include "llmc/ops/cpu/backend.h"
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

namespace {

int64_t mapped_bytes(int64_t bytes) { return round_up(bytes, sysconf(_SC_PAGESIZE)); }

const int64_t unlimited = std::numeric_limits<int64_t>::max();

// The first number in a file of /proc or /sys; `otherwise` if there is none ("max", no such file).
int64_t number_in(const std::string& path, int64_t otherwise) {
    std::ifstream in(path);
    int64_t value;
    return in >> value ? value : otherwise;
}

// The value of the line "key value" or "key: value kB" in bytes; -1 if there is none.
int64_t value_of(const std::string& path, const std::string& key, int64_t unit) {
    std::ifstream in(path);
    for (std::string line; std::getline(in, line);)
        if (line.rfind(key, 0) == 0) return std::strtoll(line.c_str() + key.size(), nullptr, 10) * unit;
    return -1;
}

// What the memory limits of this control group and all above it leave. Page cache that the kernel can drop is free.
int64_t cgroup_memory_left() {
    int64_t left = unlimited;
    std::ifstream in("/proc/self/cgroup");
    for (std::string line; std::getline(in, line);) {  // "4:memory:/path" (version 1) or "0::/path" (version 2)
        size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        std::string controllers = line.substr(first + 1, second - first - 1), group = line.substr(second + 1);
        bool v2 = controllers.empty();
        if (!v2 && ("," + controllers + ",").find(",memory,") == std::string::npos) continue;
        std::string root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
        for (std::string at = group;; at = at.substr(0, at.rfind('/'))) {
            if (at == "/") at.clear();
            std::string dir = root + at;
            int64_t limit = number_in(dir + (v2 ? "/memory.max" : "/memory.limit_in_bytes"), unlimited);
            int64_t used = number_in(dir + (v2 ? "/memory.current" : "/memory.usage_in_bytes"), 0);
            int64_t cache =
                std::max<int64_t>(0, value_of(dir + "/memory.stat", v2 ? "inactive_file " : "total_inactive_file ", 1));
            if (limit < unlimited)
                left = std::min(left, std::max<int64_t>(0, limit - std::max<int64_t>(0, used - cache)));
            if (at.empty()) break;
        }
    }
    return left;
}

}  // namespace

void* backend_alloc(int64_t bytes, Context& ctx) {
    Backend& backend = *ctx.backend;
    // The kernel promises more than it has and kills the process later, so ask first, unless it is little.
    if (bytes >= (1 << 20) && bytes > device_memory_available(ctx)) return nullptr;
    int64_t size = mapped_bytes(bytes);
    void* data = mmap(nullptr, size_t(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return nullptr;
    if (size >= (4 << 20)) madvise(data, size_t(size), MADV_HUGEPAGE);  // only a wish: fewer TLB misses
    // Touch every page now, with all threads: what is available stays true, and pages lie near their thread.
    int64_t page = sysconf(_SC_PAGESIZE), pages = size / page;
#pragma omp parallel for schedule(static) num_threads(ctx.threads) if (pages > 256)
    for (int64_t i = 0; i < pages; i++) static_cast<volatile char*>(data)[i * page] = 0;
    backend.allocations[data] = size;
    if (ctx.guard && backend.open_ops == 0) mprotect(data, size_t(size), PROT_NONE);
    return data;
}

void backend_free(void* data, int64_t bytes, Context& ctx) {
    auto found = ctx.backend->allocations.find(data);
    if (found == ctx.backend->allocations.end() || found->second != mapped_bytes(bytes))
        run_error("device_free: ", data, " with ", bytes, " bytes is not a live allocation of this context");
    munmap(data, size_t(found->second));
    ctx.backend->allocations.erase(found);
}

int64_t device_memory_available(Context&) {
    int64_t machine = value_of("/proc/meminfo", "MemAvailable:", 1024);
    if (machine < 0) machine = int64_t(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
    return std::min(machine, cgroup_memory_left());
}

void backend_upload(Tensor dst, const void* host, Context&) { std::memcpy(dst.data, host, size_t(dst.bytes())); }
void backend_download(void* host, Tensor src, Context&) { std::memcpy(host, src.data, size_t(src.bytes())); }

namespace {

template <class T>
void fill_with(Tensor t, T value, int threads) {
    T* data = ptr<T>(t);
    int64_t n = t.numel();
#pragma omp parallel for simd schedule(static) num_threads(threads) if (n > 4096)
    for (int64_t i = 0; i < n; i++) data[i] = value;
}

template <class To, class From>
void convert(Tensor dst, Tensor src, int threads) {
    To* out = ptr<To>(dst);
    const From* in = ptr<From>(src);
    int64_t n = dst.numel();
#pragma omp parallel for simd schedule(static) num_threads(threads) if (n > 4096)
    for (int64_t i = 0; i < n; i++) {
        if constexpr (std::is_same_v<To, From>) out[i] = in[i];
        else put(out[i], static_cast<arithmetic_t<To>>(static_cast<arithmetic_t<From>>(in[i])));
    }
}

}  // namespace

void backend_fill(Tensor t, double value, Context& ctx) {
    if (t.dtype == DType::i32) return fill_with(t, int32_t(value), ctx.threads);
    dispatch(t.dtype, [&](auto zero) {
        using T = decltype(zero);
        fill_with(t, T(arithmetic_t<T>(value)), ctx.threads);
    });
}

void backend_copy(Tensor dst, Tensor src, Context& ctx) {
    if (dst.dtype == DType::i32) return convert<int32_t, int32_t>(dst, src, ctx.threads);
    dispatch(dst.dtype, [&](auto to) {
        dispatch(src.dtype, [&](auto from) { convert<decltype(to), decltype(from)>(dst, src, ctx.threads); });
    });
}

void backend_swap_axes(Tensor out, Tensor in, Context& ctx) {
    const int64_t A = in.shape[0], B = in.shape[1], bytes = in.shape[2] * size_of(in.dtype);
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
    for (int64_t row = 0; row < A * B; row++)  // of out: b * A + a
        std::memcpy(ptr<char>(out) + row * bytes, ptr<const char>(in) + (row % A * B + row / A) * bytes, size_t(bytes));
}

bool backend_supports(DType act) { return act != DType::i32; }

void synchronize(Context&) {}  // CPU ops are done when they return

std::string backend_description(Context& ctx) {
    // What this file is compiled for, not what the processor has: one program may hold this backend several times.
#if defined(__AVX512F__)
    const char* isa = "AVX-512";
#elif defined(__AVX2__)
    const char* isa = "AVX2";
#elif defined(__AVX__)
    const char* isa = "AVX";
#elif defined(__SSE2__)
    const char* isa = "SSE2";
#elif defined(__ARM_NEON)
    const char* isa = "NEON";
#else
    const char* isa = "scalar";
#endif
    return str("cpu, ", ctx.threads, ctx.threads == 1 ? " thread, " : " threads, ", isa, ", ", gemm_library());
}

}  // namespace llmc
