// What --trace writes: the last steps of a profiled run, op by op, for chrome://tracing and https://ui.perfetto.dev
// (Chrome's Trace Event Format: a JSON array of complete events).
#pragma once
#include <string>

#include "llmc/ops/recording.h"

namespace llmc {

constexpr int64_t traced_spans = 1 << 16;  // 3 MB; a step of a small model has about 150
constexpr int64_t traced_steps = 5;        // the most that are written

// FILE of one process, FILE.rank3 of several.
std::string trace_path(const std::string& file, int rank, int ranks);

// InputError if no file can be made there. Makes none.
void check_trace_path(const std::string& path);

// Writes the last whole steps (outermost ranges) that the recording has kept; if not even one fits, the end of the last
// one. last_step: the number of the last one; process: the rank. Returns a sentence that says what the file holds.
// RunError if it cannot be written.
std::string write_trace(const Recording& recording, const std::string& path, int64_t last_step, int process);

// The same at trace_path; prints the sentence, or why the file cannot be written, and returns false then.
bool print_trace(const Recording& recording, const std::string& file, int64_t last_step, int rank, int ranks);

}  // namespace llmc
