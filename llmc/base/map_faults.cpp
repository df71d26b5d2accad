#include "llmc/base/map_faults.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string_view>

namespace llmc {

namespace {

// The handler may come at any moment and take no lock. So an entry stays in the list for ever, and is used again.
struct Map {
    std::atomic<const char*> begin = nullptr;  // null: not in use
    size_t size = 0;
    std::string path;
    Map* next = nullptr;
};
std::atomic<Map*> maps = nullptr;
std::mutex changes;

void say(std::string_view text) { [[maybe_unused]] const ssize_t written = ::write(2, text.data(), text.size()); }

void handle(int, siginfo_t* info, void*) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
    for (const Map* map = maps; map; map = map->next) {
        const uintptr_t begin = reinterpret_cast<uintptr_t>(map->begin.load());
        if (!begin || address < begin || address - begin >= map->size) continue;
        say("error: ");
        say(map->path);
        say(" was cut off, or its disk failed, while it was read: restore the file and start again\n");
        ::_exit(1);
    }
    ::signal(SIGBUS, SIG_DFL);  // not ours: it comes again, and ends the process as it would have without us
}

void install() {
    struct sigaction action {}, before {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGBUS, nullptr, &before);
    if (before.sa_handler == SIG_DFL) ::sigaction(SIGBUS, &action, nullptr);  // a sanitizer's own stays
}

}  // namespace

void note_map(const char* address, size_t size, const std::string& path) {
    const std::lock_guard lock(changes);
    Map* map = maps;
    while (map && map->begin) map = map->next;
    if (!map) {
        if (!maps) install();
        map = new Map;
        map->next = maps;
        maps = map;
    }
    map->size = size, map->path = path;
    map->begin = address;
}

void forget_map(const char* address) {
    const std::lock_guard lock(changes);
    for (Map* map = maps; map; map = map->next)
        if (map->begin == address) map->begin = nullptr;
}

}  // namespace llmc
