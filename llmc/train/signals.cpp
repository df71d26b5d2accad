#include "llmc/train/signals.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <thread>

namespace llmc {

namespace {

std::atomic<int> noted = 0;
static_assert(std::atomic<int>::is_always_lock_free, "the handler may only touch lock-free memory");

// Only what POSIX allows inside a handler: atomics, write, _exit.
void say(const char* text, size_t size) { [[maybe_unused]] ssize_t ignored = ::write(STDERR_FILENO, text, size); }

void handle(int signal_number) {
    int saved_errno = errno;
    int none = 0;
    if (noted.compare_exchange_strong(none, signal_number)) {
        static constexpr char text[] = "\nstopping after this step; Ctrl-C again to stop at once, without saving\n";
        say(text, sizeof text - 1);
    } else if (signal_number == SIGINT) {
        ::_exit(128 + SIGINT);
    }
    errno = saved_errno;
}

}  // namespace

void take_signals_in_their_own_thread() {
    sigset_t signals;
    sigemptyset(&signals);
    for (int number : {SIGINT, SIGTERM}) sigaddset(&signals, number);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    // Not sigwait: a debugger does not see signals that are waited for.
    std::thread([signals] {
        pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
        for (;;) ::pause();
    }).detach();
}

void catch_stop_signals() {
    struct sigaction action {};
    action.sa_handler = handle;
    action.sa_flags = SA_RESTART;  // reads and writes under way go on as if nothing had happened
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    ::signal(SIGXFSZ, SIG_IGN);  // a file size limit is then a failed write, handled like a full disk
}

int stop_signal() { return noted.load(std::memory_order_relaxed); }

}  // namespace llmc
