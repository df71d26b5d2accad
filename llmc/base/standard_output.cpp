#include "llmc/base/standard_output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

namespace llmc {

namespace {

// Why some of stdout did not arrive, or "". std::cout writes through it too.
std::string problem_of_output() {
    errno = 0;
    if (std::fflush(stdout) != 0) return std::strerror(errno);
    return std::ferror(stdout) ? "a write failed before" : "";
}

}  // namespace

void hold_standard_streams() {
    for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})  // each gets the lowest free number: its own
        if (::fcntl(fd, F_GETFD) < 0) ::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

int finish_output(int code) {
    const std::string problem = problem_of_output();
    if (code != 0 || problem.empty()) return code;
    std::fprintf(stderr, "error: standard output took only a part of the results (%s): send it to another place\n",
                 problem.c_str());
    return 1;
}

void forgive_lost_output() {
    const std::string problem = problem_of_output();
    if (problem.empty()) return;
    std::fprintf(stderr, "warning: standard output took only a part of the messages (%s)\n", problem.c_str());
    // Forgets what waits and that it failed. Where even this fails, finish_output speaks.
    [[maybe_unused]] const bool forgotten = std::freopen("/dev/null", "w", stdout) != nullptr;
}

}  // namespace llmc
