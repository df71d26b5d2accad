// The emulator's side of ASan and TSan. Its own sources are compiled without -fsanitize, so that its bookkeeping is
// never reported, and are told which sanitizer the program has by -DEMU_ASAN or -DEMU_TSAN.
#pragma once
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#error "compile dev/emu/*.cpp without -fsanitize, but with -DEMU_ASAN or -DEMU_TSAN"
#endif

#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef EMU_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace emu {

#ifdef EMU_TSAN
constexpr bool tsan = true;
// Everything before release(p) happens before everything after a later acquire(p).
inline void release(void* p) { __tsan_release(p); }
inline void acquire(void* p) { __tsan_acquire(p); }

// While one exists TSan ignores what the running fiber does: malloc counts as a write, and of template code
// (std::vector) the linker may take the instrumented copy of another object.
class Quiet {
public:
    Quiet() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
    ~Quiet() { AnnotateIgnoreReadsEnd("", 0), AnnotateIgnoreWritesEnd("", 0); }
    Quiet(const Quiet&) = delete;
    Quiet& operator=(const Quiet&) = delete;
};
#else
constexpr bool tsan = false;
inline void release(void*) {}
inline void acquire(void*) {}
class Quiet {
public:
    Quiet() {}
};
#endif

}  // namespace emu
