#include "dev/emu/block.h"

#include <cstdio>
#include <map>

#include "dev/emu/emu.h"
#include "dev/emu/launch.h"
#include "dev/emu/sanitizers.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emu {

int lane() { return block().running().lane; }

int barrier(bool predicate, Site site) { return block().barrier(predicate, site); }

std::string position() {
    if (!block().launch) return "";
    std::string text = "\n  in kernel " + kernel_name(block().launch->kernel);
    if (!block().is_running()) return text;
    char where[128];
    snprintf(where, sizeof where, ", block (%u,%u,%u), thread (%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z,
             threadIdx.x, threadIdx.y, threadIdx.z);
    return text + where;
}

// ---------------------------------------------------------------------------------------------------- begin and end
void Block::run(const Launch& the_launch, unsigned number, const std::function<void()>& body) {
    Quiet quiet;
    static thread_local Fiber host;
    host_ = &host;
    launch = &the_launch;
    body_ = &body;
    set_up(number);
    release(&begin_);
    resume(*next());  // comes back when all threads have exited
    running_ = nullptr;
    free_memory();
    launch = nullptr;
}

void Block::set_up(unsigned number) {
    const dim3 grid = launch->grid, shape = launch->block;
    size_ = int(shape.x * shape.y * shape.z);
    exited_ = 0;
    barrier_ = {};
    order_ = settings().seed == 0 ? ascending : settings().seed == 1 ? descending : random;
    random_ = Random((unsigned long)settings().seed * 0x100000001b3ul + launch_number() * 0x1000003ul + number);
    gridDim = grid;
    blockDim = shape;
    blockIdx = {number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)};
    const int warps = (size_ + lanes_per_warp - 1) / lanes_per_warp;
    for (int w = 0; w < warps; w++) {
        warps_[w].present = warps_[w].exited = warps_[w].ready = 0;
        for (Gathering& g : warps_[w].gatherings) g.mask = g.arrived = g.to_leave = 0;
    }
    for (int t = 0; t < size_; t++) {
        Thread& thread = threads_[size_t(t)];
        const unsigned u = unsigned(t);
        thread.index = {u % shape.x, u / shape.x % shape.y, u / (shape.x * shape.y)};
        thread.lane = t % lanes_per_warp;
        thread.warp = t / lanes_per_warp;
        thread.runner = nullptr;
        thread.copies.clear();
        thread.copies_done = 0;
        thread.groups = 0;
        warps_[thread.warp].present |= 1u << thread.lane;
    }
    for (int w = 0; w < warps; w++) make_ready(w, warps_[w].present);
    if (launch->shared_bytes > 0) shared(nullptr, launch->shared_bytes, 128);
    if (tsan) sync_address(0);
    blocks_++;
}

void Block::wait_for_all() { acquire(&end_); }

// ----------------------------------------------------------------------------------------------------------- schedule
// Of the members of a set, as bits, one: the lowest, the highest, or one near bit `turn`.
int Block::choose(unsigned set, int turn) const {
    if (order_ == ascending) return __builtin_ctz(set);
    if (order_ == descending) return 31 - __builtin_clz(set);
    return (__builtin_ctz(std::rotr(set, turn)) + turn) % 32;
}

void Block::make_ready(int warp, unsigned lanes) {
    warps_[warp].ready |= lanes;
    if (lanes) ready_warps_ |= 1u << warp;
    for (; lanes; lanes &= lanes - 1)
        threads_[size_t(warp * lanes_per_warp + __builtin_ctz(lanes))].state = State::ready;
}

// In random order a warp mostly goes on as long as it can, which keeps its stacks in the cache, but now and then
// another cuts in.
Thread* Block::next() {
    if (!ready_warps_) return nullptr;
    const unsigned long bits = order_ == random ? random_.next() >> 16 : 0;
    const bool stays = bits & 15 && ready_warps_ >> current_warp_ & 1;
    if (!stays) current_warp_ = choose(ready_warps_, int(bits >> 4 & 31));
    Warp& warp = warps_[current_warp_];
    const int lane = choose(warp.ready, int(bits >> 9 & 31));
    warp.ready &= ~(1u << lane);
    if (!warp.ready) ready_warps_ &= ~(1u << current_warp_);
    return &threads_[size_t(current_warp_ * lanes_per_warp + lane)];
}

void Block::wait(State state, Site site) {
    Thread& me = *running_;
    me.state = state;
    me.site = site;
    Thread* other = next();
    if (!other) report_deadlock();
    resume(*other);
}

// Leaves the running thread, or the host, where it stands, and lets another thread go on or begin.
void Block::resume(Thread& thread) {
    if (!thread.runner) start_on_runner(thread);
    Runner* from = runner_;
    running_ = &thread;
    runner_ = thread.runner;
    threadIdx = thread.index;
    switches++;
    (from ? from->fiber : *host_).switch_to(thread.runner->fiber);
}

// ------------------------------------------------------------------------------------------------------------ runners
Runner::Runner(int number) : fiber(Block::runner_loop, number) {}

// Gives a thread that begins a runner. With TSan every thread of a block needs one of its own, and successive blocks
// use two different sets: what one fiber does is ordered, so races between threads on one fiber would not be seen.
void Block::start_on_runner(Thread& thread) {
    if (tsan) {
        auto& set = runners_[blocks_ % 2];
        while (int(set.size()) < size_) set.push_back(std::make_unique<Runner>(int(set.size())));
        const int t = thread.warp * lanes_per_warp + thread.lane;
        thread.runner = set[size_t((t + blocks_ * 37) % size_)].get();
    } else {
        if (idle_.empty()) {
            runners_[0].push_back(std::make_unique<Runner>(int(runners_[0].size())));
            idle_.push_back(runners_[0].back().get());
        }
        thread.runner = idle_.back();
        idle_.pop_back();
    }
    thread.runner->thread = &thread;
}

// What every fiber does: run a thread, then the next one if that has not begun, else step aside.
void Block::runner_loop() {
    Fiber::begun();
    Block& b = block();
    for (;;) {
        acquire(&b.begin_);
        (*b.body_)();
        release(&b.end_);
        b.exit_thread();
    }
}

void Block::exit_thread() {
    Thread& me = *running_;
    if (me.copies_done < me.copies.size()) fail("a thread ended before it waited for its cp.async copies");
    Quiet quiet;
    me.state = State::exited;
    exited_++;
    warps_[me.warp].exited |= 1u << me.lane;
    Thread* other = next();
    if (other && !other->runner && !tsan) {  // goes on right here: a kernel that never waits needs one fiber
        other->runner = me.runner;
        running_ = other;
        threadIdx = other->index;
        return;
    }
    if (!tsan) idle_.push_back(me.runner);
    if (other) return resume(*other);
    if (exited_ < size_) report_deadlock();
    Runner* from = runner_;
    runner_ = nullptr;
    from->fiber.switch_to(*host_);
}

// ------------------------------------------------------------------------------------------------------------ barriers
namespace {
bool same(const Site& a, const Site& b) {
    return a.line() == b.line() && a.column() == b.column() && a.file_name() == b.file_name();
}
}  // namespace

int Block::barrier(bool predicate, Site site) {
    if (!running_) fail("__syncthreads in host code");
    Barrier& b = barrier_;
    if (exited_ > 0)
        fail("__syncthreads at %s:%u, but %d threads of the block have returned", site.file_name(), site.line(),
             exited_);
    if (b.arrived == 0)
        b.site = site, b.votes = 0;
    else if (!same(b.site, site))
        fail("divergent __syncthreads: threads of one block wait at %s:%u and at %s:%u", b.site.file_name(),
             b.site.line(), site.file_name(), site.line());
    void* address = sync_address(b.parity);
    release(address);
    b.votes += predicate;
    if (++b.arrived < size_) {
        wait(State::at_barrier, site);
    } else {
        b.arrived = 0;
        b.parity ^= 1;
        b.result = b.votes;
        for (int t = 0; t < size_; t += lanes_per_warp) {
            const int w = t / lanes_per_warp;
            make_ready(w, warps_[w].present & ~(w == running_->warp ? 1u << running_->lane : 0u));
        }
    }
    acquire(address);
    return b.result;
}

void Block::report_deadlock() {
    std::map<std::string, int> waiting;
    for (int t = 0; t < size_; t++) {
        const Thread& thread = threads_[size_t(t)];
        if (thread.state == State::exited) continue;
        char what[512];
        snprintf(
            what, sizeof what,
            thread.state == State::at_barrier ? "__syncthreads at %s:%u" : "warp operation at %s:%u with mask %08x",
            thread.site.file_name(), thread.site.line(), thread.mask);
        waiting[what]++;
    }
    std::string list;
    for (const auto& [what, count] : waiting) list += "\n  " + std::to_string(count) + " wait in " + what;
    running_ = nullptr;
    fail("deadlock in block (%u,%u,%u): %d of %d threads have returned%s", blockIdx.x, blockIdx.y, blockIdx.z, exited_,
         size_, list.c_str());
}

}  // namespace emu
