// Shared memory of the running block, and asynchronous copies into it.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "dev/emu/block.h"
#include "dev/emu/emu.h"
#include "dev/emu/launch.h"
#include "dev/emu/sanitizers.h"

namespace emu {
namespace {

constexpr int junk = 0xff;  // NaN in float and bf16, -1 as an integer
// `bytes` of junk, aligned, with more junk around them that must stay as it is: what reads it will not like the values,
// what writes it is found at the end of the block. ASan reports both at once.
SharedPiece new_piece(const void* place, size_t bytes, size_t alignment) {
    const size_t room = bytes + 2 * alignment;
    char* memory = static_cast<char*>(malloc(room));
    if (!memory) fail("no memory for %zu bytes of shared memory", bytes);
    memset(memory, junk, room);
    char* data = memory + (alignment - reinterpret_cast<uintptr_t>(memory) % alignment);
#ifdef EMU_ASAN
    __asan_poison_memory_region(memory, size_t(data - memory));
    __asan_poison_memory_region(data + bytes, size_t(memory + room - (data + bytes)));
#endif
    return {place, bytes, memory, data, memory + room};
}

void check_ends([[maybe_unused]] const SharedPiece& piece) {
#ifndef EMU_ASAN
    const auto is_junk = [](char c) { return c == char(junk); };
    if (!std::all_of(piece.memory, piece.data, is_junk) || !std::all_of(piece.data + piece.bytes, piece.end, is_junk))
        fail("a thread of block (%u,%u,%u) has written before or behind %zu bytes of %s shared memory", blockIdx.x,
             blockIdx.y, blockIdx.z, piece.bytes, piece.place ? "static" : "dynamic");
#endif
}

}  // namespace

void* Block::shared(const void* place, size_t bytes, size_t alignment) {
    for (const SharedPiece& piece : shared_)
        if (piece.place == place) return piece.data;
    Quiet quiet;
    size_t all_static = place ? bytes : 0, all = bytes;
    for (const SharedPiece& piece : shared_) all += piece.bytes, all_static += piece.place ? piece.bytes : 0;
    if (all_static > default_shared_bytes) fail("%zu bytes of static shared memory: 48 KB is the limit", all_static);
    if (all > max_shared_bytes) fail("%zu bytes of shared memory: 227 KB is the limit", all);
    shared_.push_back(new_piece(place, bytes, alignment));
    return shared_.back().data;
}

// The addresses are fresh for every block: with common ones TSan would take the blocks for ordered.
void* Block::sync_address(int i) {
    if (!tsan) return nullptr;
    constexpr size_t addresses = 2 + max_warps * max_gatherings, distance = 8;
    if (!sync_.data) sync_ = new_piece(nullptr, addresses * distance, distance);
    return sync_.data + size_t(i) * distance;
}

void Block::free_memory() {
    for (const SharedPiece& piece : shared_) {
        check_ends(piece);
        free(piece.memory);
    }
    shared_.clear();
    free(sync_.memory);
    sync_ = {};
}

void* static_shared(const void* place, size_t bytes) { return block().shared(place, bytes, 16); }

void* dynamic_shared() {
    if (block().launch->shared_bytes == 0) fail("DYN_SHARED in a kernel that was launched with 0 bytes of it");
    return block().shared(nullptr, 0, 128);
}

// A fence orders this thread's memory accesses with those of threads that meet the result of a later one. TSan has no
// such notion: one common address stands for it, which may hide races and never invents one.
void fence() {
    static char everyone;
    release(&everyone);
    acquire(&everyone);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

// -------------------------------------------------------------------------------------------------------- async copies
void issue_copy(void* to, const void* from) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0)
        fail("the addresses of a 16-byte cp.async must be 16-byte aligned: %p from %p", to, from);
    Quiet quiet;
    Thread& me = block().running();
    me.copies.push_back({to, from, me.groups});
}

void commit_copies() { block().running().groups++; }

const AsyncCopy* next_copy(int groups_left) {
    Thread& me = block().running();
    if (me.copies_done == me.copies.size() || me.copies[me.copies_done].group >= me.groups - groups_left)
        return nullptr;
    return &me.copies[me.copies_done++];
}

}  // namespace emu
