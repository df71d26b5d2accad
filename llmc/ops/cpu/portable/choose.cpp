// A portable program (make ARCH=portable) holds this backend several times, compiled for several kinds of processor.
// Every function that others call is one jump through a table (scripts/join_paths.sh): here the table is chosen, before
// main, once. The environment variable MOT_KERNELS names a lower one, to try on this machine what others will run.
#include <cstdio>
#include <cstdlib>
#include <cstring>

// Written by scripts/join_paths.sh, one for each -march value.
extern "C" {
extern void* const kernels_of_x86_64[];
extern void* const kernels_of_x86_64_v3[];
extern void* const kernels_of_x86_64_v4[];
void* const* chosen_kernels = kernels_of_x86_64;
}

namespace {

// Before main nothing can catch an exception.
[[noreturn]] void refuse(const char* wish, const char* why) {
    std::fprintf(stderr, "MOT_KERNELS=%s %s: choose x86-64, x86-64-v3 (AVX2) or x86-64-v4 (AVX-512)\n", wish, why);
    std::_Exit(2);
}

__attribute__((constructor)) void choose_kernels() {
    __builtin_cpu_init();
    const struct {
        const char* name;
        void* const* kernels;
        bool runs_here;
    } paths[] = {
        {"x86-64", kernels_of_x86_64, true},
        {"x86-64-v3", kernels_of_x86_64_v3, __builtin_cpu_supports("x86-64-v3") != 0},
        {"x86-64-v4", kernels_of_x86_64_v4, __builtin_cpu_supports("x86-64-v4") != 0},
    };
    const char* wish = std::getenv("MOT_KERNELS");
    bool known = false;
    for (const auto& path : paths) {
        const bool wished = wish && std::strcmp(wish, path.name) == 0;
        if (wished && !path.runs_here) refuse(wish, "is more than this processor can");
        if (path.runs_here && (!wish || wished)) chosen_kernels = path.kernels;
        known |= wished;
    }
    if (wish && !known) refuse(wish, "is not known");
}

}  // namespace
