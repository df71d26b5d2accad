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
    if (!text || !*text) return otherwise;
    char* end;
    const long value = strtol(text, &end, 10);
    if (*end || value < 0) {
        fprintf(stderr, "emulator: %s=%s is not a number from 0 on\n", name, text);
        _exit(2);
    }
    return value;
}

// A failing program says with which schedule it failed, so that the run can be repeated.
void say_schedule() {
    fprintf(stderr, "EMU_SEED=%ld EMU_LAZY=%d EMU_GUARD=%d\n", settings().seed, settings().lazy, settings().guard);
}
void say_schedule_of_failure(int status, void*) {
    if (status == 0) return;
    fprintf(stderr, "emulator: this run had ");
    say_schedule();
}

Settings read() {
    on_exit(say_schedule_of_failure, nullptr);
    return {
        .seed = from_environment("EMU_SEED", 2),
        .lazy = from_environment("EMU_LAZY", 0) != 0,
        .guard = from_environment("EMU_GUARD", 0) != 0,
        .stats = from_environment("EMU_STATS", 0) != 0,
        .memory = size_t(from_environment("EMU_MEMORY", sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE))),
        .devices = int(from_environment("EMU_DEVICES", 1)),
        .multiprocessors = int(from_environment("EMU_MULTIPROCESSORS", 4)),
        .patience = int(from_environment("EMU_PATIENCE", 60)),
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
    fprintf(stderr, "%s; ", position().c_str());
    say_schedule();
    fflush(stderr);
    syscall(SYS_exit_group, 97);  // not _exit, which TSan takes for an invitation to complain about unfinished fibers
    __builtin_unreachable();
}

}  // namespace emu
