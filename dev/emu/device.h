// What a running kernel asks of the emulator: who am I, barriers, operations of a warp, shared memory, async copies.
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>

// Of the CUDA thread that runs now; rewritten at every switch. Real objects, not macros: cudaLaunchConfig_t has members
// of these names.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emu {

// Where in a kernel a barrier or warp operation stands: threads that meet must stand at the same place.
using Site = std::source_location;

int lane();  // of the running thread: its number within the warp

// Waits for all threads of the block; how many of them gave a true predicate. In block.cpp.
int barrier(bool predicate, Site site);
void fence();

// The lanes named by `mask` each hand in a packet and wait for each other; then each may read all packets, until its
// next warp operation. If there is a `combine`, it turns the 32 packets handed in into 32 packets to hand out, once.
// In warp.cpp.
enum class WarpOp { sync, shuffle, vote, match, mma, ldmatrix };
struct Packet {
    uint64_t word[3];
};
using Combine = void (*)(Packet* lanes, unsigned mask);
const Packet* exchange(WarpOp op, unsigned mask, const Packet& mine, Site site, Combine combine = nullptr);
void combine_votes(Packet* lanes, unsigned mask);    // in: word[0] = 0 or 1; out: word[0] = bits of all lanes
void combine_matches(Packet* lanes, unsigned mask);  // in: a value; out: bits of the lanes that have the same
void combine_mma(Packet* lanes, unsigned mask);      // in: fragments of A (16 bytes) and B (8); out: 4 floats of A B

// In shared.cpp.
void* static_shared(const void* place, size_t bytes);
void* dynamic_shared();

// Asynchronous copies: issued, closed into a group, and done only when a wait asks for the group.
struct AsyncCopy {
    void* to;
    const void* from;  // null: zeros
    int64_t group;
};
void issue_copy(void* to, const void* from);
void commit_copies();
const AsyncCopy* next_copy(int groups_left);  // one that the wait has to do, null if none is left

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emu
