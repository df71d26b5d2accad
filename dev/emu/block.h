// The block that runs now: its threads, who waits for what, who is next. Blocks run one after another; within a block
// threads take turns, changing only where one waits for others.
#pragma once
#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <vector>

#include "dev/emu/device.h"
#include "dev/emu/fiber.h"
#include "dev/emu/settings.h"

namespace emu {

struct Launch;

constexpr int max_threads = 1024, lanes_per_warp = 32, max_warps = max_threads / lanes_per_warp;

// A fiber that runs CUDA threads, one after another; it changes to another thread only when one of them ends.
struct Runner {
    explicit Runner(int number);
    Fiber fiber;
    struct Thread* thread = nullptr;
};

enum class State : unsigned char { ready, at_barrier, in_warp_op, exited };

struct Thread {
    uint3 index;
    int lane, warp;
    State state;
    Runner* runner;  // null until the thread begins
    Site site;       // where it waits
    unsigned mask;   // for whom it waits, in a warp operation
    std::vector<AsyncCopy> copies;
    size_t copies_done;
    int64_t groups;  // closed groups of copies
};

// One operation of the lanes of a warp that `mask` names.
struct Gathering {
    WarpOp op;
    Site site;
    unsigned mask = 0, arrived = 0, to_leave = 0;  // free if nobody has yet to arrive or to leave
    Packet lanes[lanes_per_warp];
};
constexpr int max_gatherings = 8;

struct Warp {
    unsigned present, exited;
    unsigned ready;  // lanes that could run now
    Gathering gatherings[max_gatherings];
};

struct Barrier {
    int arrived = 0, votes = 0, result = 0;
    int parity = 0;  // of the number of barriers so far
    Site site;
};

struct SharedPiece {
    const void* place;  // which SHARED of the source; null: the dynamic shared memory
    size_t bytes;
    char *memory, *data, *end;  // data lies between memory and end, aligned
};

class Block {
public:
    // Runs block number `number` of the launch to its end.
    void run(const Launch& launch, unsigned number, const std::function<void()>& body);
    void wait_for_all();  // for TSan: now the host has waited for all threads so far

    Thread& running() { return *running_; }
    bool is_running() const { return running_ != nullptr; }
    Warp& warp(int i) { return warps_[i]; }
    int barrier(bool predicate, Site site);
    void wait(State state, Site site);  // the running thread: until someone makes it ready
    void make_ready(int warp, unsigned lanes);
    void* shared(const void* place, size_t bytes, size_t alignment);
    void* sync_address(int i);  // for TSan: one of this block's own addresses that stand for "has waited for"

    const Launch* launch = nullptr;
    long switches = 0;

private:
    friend Runner;
    static void runner_loop();
    void set_up(unsigned number);
    void free_memory();
    Thread* next();  // one of the ready threads, as the seed says
    void resume(Thread& thread);
    void start_on_runner(Thread& thread);
    void exit_thread();
    [[noreturn]] void report_deadlock();
    int choose(unsigned set, int turn) const;

    std::vector<Thread> threads_ = std::vector<Thread>(max_threads);
    Warp warps_[max_warps];
    unsigned ready_warps_ = 0;  // warps with ready lanes
    int current_warp_ = 0;
    int size_ = 0, exited_ = 0;
    Barrier barrier_;
    Thread* running_ = nullptr;
    const std::function<void()>* body_ = nullptr;
    enum { ascending, descending, random } order_ = random;  // in which ready threads are taken
    Random random_{0};
    std::vector<SharedPiece> shared_;
    SharedPiece sync_{};
    Fiber* host_ = nullptr;
    Runner* runner_ = nullptr;  // the running one; null on the host's stack
    std::vector<std::unique_ptr<Runner>> runners_[2];
    std::vector<Runner*> idle_;
    int blocks_ = 0;
    char begin_ = 0, end_ = 0;  // for TSan: what the host did before is seen by all threads, what they did by the host
};

inline Block& block() {  // the one and only
    static Block only;
    return only;
}

}  // namespace emu
