// From text files to a data directory: the work of the program `prepare`.
//
// Several threads tokenise files, each one file at a time. The tokens of the files are then joined in the order of the
// inputs, so the result has the same bytes for any number of threads. Memory is bounded: many tokens of a file are kept
// in an unnamed temporary file. The output directory appears only when it is complete.
#pragma once
#include <csignal>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "llmc/data/shards.h"

namespace llmc {

struct PrepareOptions {
    std::vector<std::string> inputs;   // files, or directories whose files are read in the order of their names
    std::string out;                   // the data directory to create
    std::string tokenizer;             // rank file; empty: GPT-2's
    int train_bpe = 0;                 // > 0: first train a vocabulary of this many tokens on the inputs
    int64_t bpe_bytes = 100'000'000;   // train it on about this much text, the same fraction of every file
    double val_fraction = 0.01;        // fraction of the documents for validation, evenly spread
    int64_t shard_tokens = 100'000'000;
    int threads = 0;                   // 0: all processors
    bool skip_bad = false;             // count and skip what cannot be read
    bool overwrite = false;            // replace the dataset in `out`
    std::string text_key = "text";     // name of the JSON member with the text
    size_t tokens_in_memory = size_t(2) << 20;  // per file and split; more are kept in a temporary file
};

struct PrepareProgress {
    int64_t files_done, files;
    int64_t input_bytes_done, input_bytes;  // bytes of the files, before unpacking
    int64_t text_bytes, tokens;
    const char* phase;
};

struct PrepareResult {
    SplitSummary train, val;
    int vocab_size = 0;
    int64_t files = 0, bad = 0;
};

// Thrown when `stop` is not zero; its value is the number of the signal.
struct Interrupted : std::runtime_error {
    int signal;
    explicit Interrupted(int signal_) : std::runtime_error("interrupted"), signal(signal_) {}
};

// Creates the data directory. Throws InputError, RunError or Interrupted; `out` is then unchanged. `report` is called a
// few times per second from the calling thread.
PrepareResult prepare_dataset(const PrepareOptions& options, const std::function<void(const PrepareProgress&)>& report,
                              const volatile std::sig_atomic_t& stop);

// Whether document number `index` of file number `file` is for validation: every 1/fraction-th document, starting at a
// different one in each file.
bool in_validation(int64_t file, int64_t index, double fraction);

}  // namespace llmc
