// A piece of a test in a process of its own: for signals, limits and kills.
#pragma once
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <exception>

namespace llmc::test {

// Runs `body` in a forked child and waits: 0 if it returned, 99 if it threw, the code it ended itself with (_exit), or
// 1000 + the signal that ended it. Only for children that start no threads.
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
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

}  // namespace llmc::test
