#include "dev/emu/settings.h"

#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>

namespace emu {
namespace {

long from_environment(const char* name, long otherwise) {
    const char* text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

// A failing program says with which schedule it failed, so that the run can be repeated.
void say_seed_of_failure(int status, void*) {
    if (status != 0)
        fprintf(stderr, "emulator: this run had EMU_SEED=%ld EMU_LAZY=%d\n", settings().seed, settings().lazy);
}

Settings read() {
    on_exit(say_seed_of_failure, nullptr);
    return {
        .seed = from_environment("EMU_SEED", 2),
        .lazy = from_environment("EMU_LAZY", 0) != 0,
        .guard = from_environment("EMU_GUARD", 0) != 0,
        .stats = from_environment("EMU_STATS", 0) != 0,
        .memory = size_t(from_environment("EMU_MEMORY", sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE))),
        .devices = int(from_environment("EMU_DEVICES", 1)),
        .multiprocessors = int(from_environment("EMU_MULTIPROCESSORS", 4)),
    };
}

}  // namespace

Settings& settings() {
    static Settings all = read();
    return all;
}

void fail(const char* format, ...) {
    fflush(stdout);
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "emulator: ");
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "%s; EMU_SEED=%ld EMU_LAZY=%d\n", position().c_str(), settings().seed, settings().lazy);
    fflush(stderr);
    syscall(SYS_exit_group, 97);  // not _exit, which TSan takes for an invitation to complain about unfinished fibers
    __builtin_unreachable();
}

}  // namespace emu
