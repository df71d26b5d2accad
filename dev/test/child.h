// A piece of a test in a process of its own: for signals, limits and kills.
#pragma once
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <exception>

#include "dev/test/sanitized.h"

namespace llmc::test {

// How a process ended: its exit code, or killed_by(signal). A program that saves and then exits with 128 + the signal
// is thus not mistaken for one that the signal killed, as it would be in a shell.
constexpr int killed_by(int signal) { return 1000 + signal; }
inline int ending_of(int wait_status) {
    return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : killed_by(WTERMSIG(wait_status));
}

// Runs `body` in a forked child and waits: 0 if it returned, 99 if it threw, the code it ended itself with (_exit), or
// killed_by(signal). Only for children that start no threads.
template <class Body>
int in_child(Body&& body) {
    std::fflush(nullptr);
    pid_t pid = fork();
    if (pid == 0) {
        try {
            body();
        } catch (const std::exception& e) {
            std::fprintf(stderr, "child: %s\n", e.what());
            _exit(99);
        }
        _exit(0);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return ending_of(status);
}

// Whether a process with this status of waitpid accessed memory that is not there: a sanitizer reports it and exits.
inline bool ended_by_bad_access(int status) {
    if (sanitized) return WIFEXITED(status) && WEXITSTATUS(status) != 0;
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
}

}  // namespace llmc::test

// Death test: the statement ends with an access to memory that is not there, and with nothing else that is deadly.
#define EXPECT_BAD_ACCESS(statement)                       \
    EXPECT_EXIT(statement, llmc::test::ended_by_bad_access, \
                llmc::test::sanitized ? "Sanitizer: (SEGV|stack-overflow)" : "")
