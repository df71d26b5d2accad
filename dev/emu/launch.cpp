#include "dev/emu/launch.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>

#include "dev/emu/block.h"
#include "dev/emu/emu.h"
#include "dev/emu/sanitizers.h"
#include "dev/emu/stream.h"

namespace emu {
namespace {

struct Count {
    unsigned long launches = 0, blocks = 0, threads = 0, switches = 0;
};
struct Counts {
    unsigned long launches = 0;
    std::map<const void*, Count> kernels;
    ~Counts() {
        if (!settings().stats) return;
        fprintf(stderr, "emulator: %lu launches\n  launches     blocks      threads     switches  kernel\n", launches);
        for (const auto& [kernel, n] : kernels)
            fprintf(stderr, "%10lu %10lu %12lu %12lu  %s\n", n.launches, n.blocks, n.threads, n.switches,
                    kernel_name(kernel).c_str());
    }
};
Counts& counts() {
    static Counts all;
    return all;
}

std::map<const void*, int>& dynamic_shared_limits() {
    static std::map<const void*, int> limits;
    return limits;
}

// What every device of today would refuse.
cudaError_t check(const Launch& l) {
    const dim3 g = l.grid, b = l.block;
    if (g.x == 0 || g.y == 0 || g.z == 0 || b.x == 0 || b.y == 0 || b.z == 0) return cudaErrorInvalidConfiguration;
    if (g.x > 0x7fffffff || g.y > 65535 || g.z > 65535) return cudaErrorInvalidConfiguration;
    if (b.x > 1024 || b.y > 1024 || b.z > 64 || b.x * b.y * b.z > max_threads) return cudaErrorInvalidConfiguration;
    const auto limit = dynamic_shared_limits().find(l.kernel);
    const size_t allowed = limit == dynamic_shared_limits().end() ? 0 : size_t(limit->second);
    if (l.shared_bytes > std::max(default_shared_bytes, allowed)) return cudaErrorInvalidValue;
    return cudaSuccess;
}

// All blocks, one after another, in the order the seed says.
void run(const Launch& l, const std::function<void()>& thread) {
    const unsigned long blocks = (unsigned long)l.grid.x * l.grid.y * l.grid.z;
    const unsigned long number = ++counts().launches;
    std::vector<unsigned> order(blocks);
    std::iota(order.begin(), order.end(), 0u);
    if (settings().seed == 1) std::reverse(order.begin(), order.end());
    if (settings().seed > 1) {
        Random random((unsigned long)settings().seed + number * 0x10001ul);
        for (size_t i = blocks; i > 1; i--) std::swap(order[i - 1], order[random.below(i)]);
    }
    const long switches = block().switches;
    for (const unsigned b : order) block().run(l, b, thread);
    block().wait_for_all();
    Count& count = counts().kernels[l.kernel];
    count.launches++;
    count.blocks += blocks;
    count.threads += blocks * l.block.x * l.block.y * l.block.z;
    count.switches += (unsigned long)(block().switches - switches);
}

}  // namespace

unsigned long launch_number() { return counts().launches; }

cudaError_t launch(const Launch& l, std::function<void()> thread) {
    const std::scoped_lock lock(runtime_mutex());
    if (block().is_running()) fail("a kernel launches a kernel");
    if (settings().devices == 0) return error(cudaErrorNoDevice);
    if (const cudaError_t refused = check(l); refused != cudaSuccess) return error(refused);
    return error(enqueue(l.stream, cudaGraphNodeTypeKernel, [l, thread = std::move(thread)] { run(l, thread); }));
}

cudaError_t set_dynamic_shared_limit(const void* kernel, int bytes) {
    if (bytes < 0 || size_t(bytes) > max_shared_bytes) return cudaErrorInvalidValue;
    dynamic_shared_limits()[kernel] = bytes;
    return cudaSuccess;
}

std::string kernel_name(const void* kernel) {
    Dl_info where{};
    char command[4200], name[1024] = "";
    snprintf(name, sizeof name, "%p", kernel);
    if (!dladdr(kernel, &where) || !where.dli_fname) return name;
    const long offset = static_cast<const char*>(kernel) - static_cast<const char*>(where.dli_fbase);
    snprintf(command, sizeof command, "addr2line -Cfe '%s' 0x%lx 2> /dev/null", where.dli_fname, offset);
    if (FILE* pipe = popen(command, "r")) {
        if (fgets(name, sizeof name, pipe)) name[std::min(sizeof name - 1, std::string(name).find('\n'))] = 0;
        pclose(pipe);
    }
    return name;
}

}  // namespace emu
