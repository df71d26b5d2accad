// The file of --trace: the last steps of a profiled run, op by op, for chrome://tracing and https://ui.perfetto.dev
// (Chrome's Trace Event Format: a JSON array of complete events).
#pragma once
#include <string>

#include "llmc/ops/recording.h"

namespace llmc {

constexpr int64_t traced_spans = 1 << 16;  // 3 MB; a step of a small model has about 150
constexpr int64_t traced_steps = 5;        // the largest number of steps written

// The file's name: FILE for one process, FILE.rank3 for rank 3 of several.
std::string trace_path(const std::string& file, int rank, int ranks);

// InputError if no file can be created there. Creates none.
void check_trace_path(const std::string& path);

// Writes the last complete steps (outermost ranges) that the recording has kept, or the end of the last step if not
// even one is complete. last_step: number of the last step; process: the rank. Returns a sentence that says what the
// file holds. RunError if it cannot be written.
std::string write_trace(const Recording& recording, const std::string& path, int64_t last_step, int process);

// The same at trace_path. Prints the sentence; if the file cannot be written, prints why and returns false.
bool print_trace(const Recording& recording, const std::string& file, int64_t last_step, int rank, int ranks);

}  // namespace llmc
