// prepare: text files -> token shards and dataset.json. What it does is in llmc/data/prepare.h; this is the command
// line.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <iostream>

#include "llmc/base/errors.h"
#include "llmc/base/flags.h"
#include "llmc/base/standard_output.h"
#include "llmc/data/prepare.h"

using namespace llmc;

namespace {

volatile std::sig_atomic_t stop_signal = 0;

void on_signal(int signal) { stop_signal = signal; }

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::string duration(double seconds) {
    char text[32];
    auto s = int64_t(std::clamp(seconds, 0.0, 1e9));
    if (s < 3600) std::snprintf(text, sizeof text, "%d:%02d", int(s / 60), int(s % 60));
    else
        std::snprintf(text, sizeof text, "%lld:%02d:%02d", static_cast<long long>(s / 3600), int(s / 60 % 60),
                      int(s % 60));
    return text;
}

// One line on stderr: rewritten in place on a terminal, a new one every ten seconds in a log.
class ProgressLine {
public:
    void show(const PrepareProgress& p) {
        double now = seconds_since(start);
        if (now - last_shown < (terminal ? 0.2 : 10.0)) return;
        last_shown = now;
        std::string eta;
        if (p.input_bytes_done > 0 && p.input_bytes > 0)
            eta = "  ETA " + duration(now * double(p.input_bytes - p.input_bytes_done) / double(p.input_bytes_done));
        std::fprintf(stderr, "%s%s: %lld/%lld files  %.1f%%  %.1f MB text  %.1f M tokens  %.1f MB/s%s%s",
                     terminal ? "\r" : "", p.phase, static_cast<long long>(p.files_done),
                     static_cast<long long>(p.files),
                     p.input_bytes > 0 ? 100.0 * double(p.input_bytes_done) / double(p.input_bytes) : 100.0,
                     double(p.text_bytes) / 1e6, double(p.tokens) / 1e6, double(p.text_bytes) / 1e6 / now, eta.c_str(),
                     terminal ? "\033[K" : "\n");
        shown = true;
    }
    void end() const {
        if (terminal && shown) std::fputs("\r\033[K", stderr);
    }
    double seconds() const { return seconds_since(start); }

private:
    Clock::time_point start = Clock::now();
    double last_shown = 0;
    bool terminal = isatty(STDERR_FILENO) != 0, shown = false;
};

void print_summary(const PrepareOptions& options, const PrepareResult& result, double seconds) {
    int64_t bytes = result.train.text_bytes + result.val.text_bytes, tokens = result.train.tokens + result.val.tokens;
    std::printf("%s: %lld documents, %.2f MB of text, %lld tokens of a vocabulary of %d (%.3f bytes a token)\n",
                options.out.c_str(), static_cast<long long>(result.train.documents + result.val.documents),
                double(bytes) / 1e6, static_cast<long long>(tokens), result.vocab_size, double(bytes) / double(tokens));
    for (auto [name, split] : {std::pair{"train", &result.train}, {"val", &result.val}})
        std::printf("  %-5s  %lld documents, %lld tokens in %zu shard%s\n", name,
                    static_cast<long long>(split->documents), static_cast<long long>(split->tokens),
                    split->shards.size(), split->shards.size() == 1 ? "" : "s");
    std::printf("  %.1f s, %.1f MB/s\n", seconds, double(bytes) / 1e6 / std::max(seconds, 1e-9));
    if (result.bad > 0)
        std::printf("  %lld bad line%s left out\n", static_cast<long long>(result.bad), result.bad == 1 ? "" : "s");
    if (result.val.tokens == 0 && options.val_fraction > 0)
        std::fprintf(stderr, "warning: no document fell into the validation split; raise --val-fraction, or separate "
                             "documents of .txt files by a line that is only <|endoftext|>\n");
}

int run(int argc, char** argv) {
    PrepareOptions options;
    double bpe_megabytes = double(options.bpe_bytes) / 1e6;
    std::string verify;
    CLI::App app{
        "Turns text into token shards for training.\n\n"
        "Inputs are C4's *.json.gz, .jsonl or .json (one JSON object a line), and .txt, each plain or gzipped; or "
        "directories of such files. In a .txt file a line that is only <|endoftext|> separates documents. The "
        "result is the same whatever the number of threads.\n"};
    app.add_option("INPUT", options.inputs, "input files or directories")->allow_extra_args(false);  // [x] is a name
    app.add_option("--out", options.out, "data directory to create");
    auto* tokenizer = app.add_option("--tokenizer", options.tokenizer,
                                     "rank file (tiktoken's format, plain or gzipped); default: GPT-2's vocabulary");
    app.add_option("--train-bpe", options.train_bpe, "train a vocabulary of N tokens, <|endoftext|> included, first")
        ->transform(whole_number(257, 65535))
        ->excludes(tokenizer)
        ->type_name("N");
    app.add_option("--bpe-megabytes", bpe_megabytes,
                   "train the vocabulary on this many megabytes, the same fraction of every file")
        ->transform(real_number(0.001, 1e6))
        ->capture_default_str();
    app.add_option("--val-fraction", options.val_fraction, "fraction of the documents kept for validation")
        ->transform(real_number(0.0, 0.999))
        ->capture_default_str();
    app.add_option("--shard-tokens", options.shard_tokens, "number of tokens in a shard file")
        ->transform(whole_number(1, INT32_MAX))
        ->capture_default_str();
    app.add_option("--threads", options.threads, "number of threads, one file each; default: one per processor")
        ->transform(whole_number(1, 4096));
    app.add_option("--text-key", options.text_key, "name of the JSON member that holds the text")
        ->capture_default_str();
    app.add_flag("--skip-bad", options.skip_bad, "skip broken lines and cut-off files, and count them");
    app.add_flag("--overwrite", options.overwrite, "replace the dataset in --out, if there is one");
    app.add_option("--verify", verify, "check the data directory DIR against its checksums and stop")->type_name("DIR");
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
        return app.exit(e) == 0 ? 0 : 2;
    }
    if (!verify.empty()) {
        verify_dataset(open_dataset(verify));
        std::printf("%s: all checksums match\n", verify.c_str());
        return 0;
    }
    if (options.out.empty()) input_error("--out is missing: name the data directory to make (see --help)");
    if (options.inputs.empty()) input_error("there are no input files (see --help)");
    options.bpe_bytes = int64_t(bpe_megabytes * 1e6);

    ProgressLine line;
    PrepareResult result;
    try {
        result = prepare_dataset(options, [&](const PrepareProgress& p) { line.show(p); }, stop_signal);
    } catch (...) {
        line.end();
        throw;
    }
    line.end();
    print_summary(options, result, line.seconds());
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    hold_standard_streams();
    struct sigaction action{};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART | int(SA_RESETHAND);  // a second Ctrl-C ends the program at once
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    try {
        return finish_output(run(argc, argv));
    } catch (const InputError& e) {
        std::cerr << "prepare: " << e.what() << "\n";
        return 2;
    } catch (const Interrupted& e) {
        std::cerr << "prepare: interrupted; nothing was written\n";
        return 128 + e.signal;
    } catch (const std::exception& e) {
        std::cerr << "prepare: " << e.what() << "\n";
        return 1;
    }
}
