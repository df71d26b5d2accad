// Time that only passes: for durations and deadlines.
#pragma once
#include <chrono>

namespace llmc {

// Seconds since some moment in the past, which no clock setting changes.
inline double seconds_now() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

}  // namespace llmc
