// From text files to a data directory: what the program `prepare` does.
//
// Files are tokenised by several threads, each taking the next file; their tokens are then joined in the order of the
// inputs. So the result is the same, byte for byte, whatever the number of threads. Memory is bounded: a file's tokens
// wait in an unnamed temporary file once they are many. Nothing appears under the output's name before all is done.
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
    std::vector<std::string> inputs;   // files, or directories whose files are taken in order of their names
    std::string out;                   // the data directory to make
    std::string tokenizer;             // rank file; empty: GPT-2's
    int train_bpe = 0;                 // > 0: first train a vocabulary of so many tokens on these inputs
    int64_t bpe_bytes = 100'000'000;   // on about so much of their text, the same share of every file
    double val_fraction = 0.01;        // of the documents, evenly spread
    int64_t shard_tokens = 100'000'000;
    int threads = 0;                   // 0: all processors
    bool skip_bad = false;             // count and leave out what cannot be read
    bool overwrite = false;            // replace a dataset at `out`
    std::string text_key = "text";     // of JSON objects
    size_t tokens_in_memory = size_t(2) << 20;  // of a file and split; more of them wait on disk
};

struct PrepareProgress {
    int64_t files_done, files;
    int64_t input_bytes_done, input_bytes;  // as the files lie on disk
    int64_t text_bytes, tokens;
    const char* phase;
};

struct PrepareResult {
    SplitSummary train, val;
    int vocab_size = 0;
    int64_t files = 0, bad = 0;
};

// Thrown when `stop` became nonzero (its value: the signal's number).
struct Interrupted : std::runtime_error {
    int signal;
    explicit Interrupted(int signal_) : std::runtime_error("interrupted"), signal(signal_) {}
};

// Throws InputError, RunError or Interrupted; then `out` is as it was. `report` is called a few times a second from
// the calling thread.
PrepareResult prepare_dataset(const PrepareOptions& options, const std::function<void(const PrepareProgress&)>& report,
                              const volatile std::sig_atomic_t& stop);

// Document number `index` of file number `file` is for validation: every 1/fraction-th of a file, each file starting
// elsewhere.
bool in_validation(int64_t file, int64_t index, double fraction);

}  // namespace llmc
