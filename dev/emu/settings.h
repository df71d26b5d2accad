// What the environment says about a run of the emulator (see README.md), and how the emulator reports an error.
#pragma once
#include <cstddef>
#include <string>

namespace emu {

struct Settings {
    long seed;            // EMU_SEED: 0 threads and blocks in ascending order, 1 descending, other: random
    bool lazy;            // EMU_LAZY: streams work only while the host waits for them
    bool guard;           // EMU_GUARD: the host cannot touch device memory
    bool stats;           // EMU_STATS: counts at the end of the program
    size_t memory;        // EMU_MEMORY: bytes of device memory; by default what the machine has
    int devices;          // EMU_DEVICES: 0 is a machine without a GPU
    int multiprocessors;  // EMU_MULTIPROCESSORS: results must not depend on it
    int patience;         // EMU_PATIENCE: seconds that a rank of NCCL waits until all others have come
};
Settings& settings();  // a test may change them

// Says what went wrong, in which kernel, block and thread, and with which seed; ends the program with exit code 97.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Where the running kernel stands, " in kernel ..., block ..., thread ..."; empty in host code. In block.cpp.
std::string position();

// A repeatable stream of random numbers (xorshift64).
class Random {
public:
    explicit Random(unsigned long seed) : state_((seed + 1) * 0x9e3779b97f4a7c15ul | 1) { next(), next(); }
    unsigned long next() {
        state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
        return state_;
    }
    size_t below(size_t n) { return (next() >> 20) % n; }

private:
    unsigned long state_;
};

}  // namespace emu
