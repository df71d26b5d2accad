// Errors: two exception types, and helpers that throw them with one clear sentence.
//
//   InputError  the user gave something that cannot work (flag, file, shard, checkpoint): exit code 2
//   RunError    something failed while running (disk full, a shape that does not fit, a library call): exit code 1
//
// A message names what was wrong, where, and what to do about it.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace llmc {

struct InputError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct RunError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// str(a, b, ...): the arguments printed one after another, as with operator<<.
template <class... Args>
std::string str(const Args&... args) {
    std::ostringstream out;
    (out << ... << args);
    return out.str();
}

// Throw InputError or RunError with the text str(args...).
template <class... Args>
[[noreturn]] void input_error(const Args&... args) {
    throw InputError(str(args...));
}

template <class... Args>
[[noreturn]] void run_error(const Args&... args) {
    throw RunError(str(args...));
}

}  // namespace llmc
