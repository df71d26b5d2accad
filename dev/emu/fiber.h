// A fiber: a stack of its own and the point where its work stopped. CUDA threads run on fibers; all fibers run on the
// one OS thread that launched the kernel.
#pragma once
#include <cstddef>

namespace emu {

class Fiber {
public:
    using Entry = void (*)();

    Fiber();                         // the stack that runs now: the program's own
    Fiber(Entry entry, int number);  // a new one; entry, which never returns, starts at the first switch
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // Stops here, goes on there. Comes back when someone switches to this one.
    void switch_to(Fiber& next);

    static void begun();  // to be called first of all by `entry`

private:
    void* position_ = nullptr;  // stack pointer while stopped
    const void* stack_ = nullptr;
    size_t size_ = 0;
    void* asan_stack_ = nullptr;  // ASan's own stack for this fiber's local variables
    void* tsan_ = nullptr;        // TSan's idea of a thread
};

}  // namespace emu
