#include "dev/emu/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>

#include "dev/emu/sanitizers.h"
#include "dev/emu/settings.h"

#if !defined(__x86_64__) || !defined(__linux__)
#error "dev/emu runs only on x86-64 Linux: its switch between fibers is written in that processor's assembly"
#endif

// void emu_switch_stack(void** save, void* load): puts the callee-saved registers on the stack, the stack pointer into
// *save, and takes up the stack `load`. About 5 ns, where swapcontext makes a system call of 200 ns.
extern "C" void emu_switch_stack(void** save, void* load);
asm(R"(
    .text
    .globl emu_switch_stack
    .type emu_switch_stack, @function
emu_switch_stack:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
    .size emu_switch_stack, . - emu_switch_stack
)");

namespace emu {
namespace {

constexpr size_t stack_bytes = 256 << 10, page = 4096;
constexpr int saved_registers = 6;

// Memory for a stack, with an unreadable page below it: an overflow crashes instead of corrupting.
char* new_stack() {
    void* memory =
        mmap(nullptr, stack_bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) fail("no memory for another stack");
    return static_cast<char*>(memory) + page;
}

}  // namespace

Fiber::Fiber() {
#ifdef EMU_ASAN
    pthread_attr_t attributes;
    void* lowest;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &lowest, &size_);
    pthread_attr_destroy(&attributes);
    stack_ = lowest;
#endif
#ifdef EMU_TSAN
    tsan_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(Entry entry, int number) : stack_(new_stack()), size_(stack_bytes) {
    // Tops at different offsets within the page: equal ones would all compete for the same few lines of the L1 cache.
    uintptr_t top = reinterpret_cast<uintptr_t>(stack_) + stack_bytes - 64 * (unsigned(number) % 61);
    void** sp = reinterpret_cast<void**>(top);
    *--sp = nullptr;  // where a return address would be: keeps the stack aligned as the ABI wants, ends backtraces
    *--sp = reinterpret_cast<void*>(entry);
    for (int i = 0; i < saved_registers; i++) *--sp = nullptr;
    position_ = sp;
#ifdef EMU_TSAN
    tsan_ = __tsan_create_fiber(0);
#endif
}

void Fiber::switch_to(Fiber& next) {
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&asan_stack_, next.stack_, next.size_);
#endif
#ifdef EMU_TSAN
    __tsan_switch_to_fiber(next.tsan_, __tsan_switch_to_fiber_no_sync);  // a switch orders nothing: CUDA would not
#endif
    emu_switch_stack(&position_, next.position_);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(asan_stack_, nullptr, nullptr);
#endif
}

void Fiber::begun() {
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace emu
