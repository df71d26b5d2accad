#include "llmc/train/signals.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string_view>
#include <thread>

namespace llmc {

namespace {

constexpr int all_signals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU};

std::atomic<int> noted = 0;
std::atomic<bool> speaks = true, said = false;
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free,
              "the handler may only touch lock-free memory");

// Only what POSIX allows inside a handler: atomics, write, _exit.
void handle(int number) {
    const int saved_errno = errno, signal = number == SIGINT || number == SIGHUP ? number : SIGTERM;
    int none = 0;
    if (noted.compare_exchange_strong(none, signal)) {
        if (speaks) say_stopping(signal);
    } else if (signal == SIGINT) {
        ::_exit(128 + SIGINT);
    }
    errno = saved_errno;
}

}  // namespace

void take_signals_in_their_own_thread() {
    sigset_t signals;
    sigemptyset(&signals);
    for (int number : all_signals) sigaddset(&signals, number);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    // Not sigwait: a debugger does not see signals that are waited for.
    std::thread([signals] {
        pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
        for (;;) ::pause();
    }).detach();
}

void catch_stop_signals(bool speak) {
    speaks = speak;
    struct sigaction action {}, before {};
    action.sa_handler = handle;
    action.sa_flags = SA_RESTART;  // reads and writes under way go on as if nothing had happened
    sigemptyset(&action.sa_mask);
    for (int number : all_signals) {
        sigaction(number, nullptr, &before);
        if (before.sa_handler != SIG_IGN || number == SIGINT || number == SIGTERM) sigaction(number, &action, nullptr);
    }
    for (int number : {SIGPIPE, SIGXFSZ}) ::signal(number, SIG_IGN);  // failed writes are handled like a full disk
}

int stop_signal() { return noted.load(std::memory_order_relaxed); }

void say_stopping(int signal) {
    if (said.exchange(true)) return;
    const std::string_view text =
        signal == SIGINT ? "\nstopping after this step; Ctrl-C again to stop at once, without saving\n"
                         : "\nstopping after this step, as a signal asks; Ctrl-C to stop at once, without saving\n";
    [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text.data(), text.size());
}

}  // namespace llmc
