#include "llmc/data/prepare.h"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <thread>

#include "llmc/base/errors.h"
#include "llmc/base/files.h"
#include "llmc/data/bpe_train.h"
#include "llmc/data/documents.h"
#include "llmc/data/output_directory.h"
#include "llmc/data/tokenizer.h"

namespace llmc {

namespace fs = std::filesystem;

namespace {

// Tokens on their way from a worker to the shards: in memory while they are few, then in a temporary file that has no
// name any more, so that it vanishes with the process whatever happens.
class TokenSpool {
public:
    TokenSpool() = default;
    TokenSpool(const TokenSpool&) = delete;
    TokenSpool& operator=(const TokenSpool&) = delete;
    ~TokenSpool() {
        if (fd >= 0) ::close(fd);
    }

    std::vector<uint16_t> tokens;  // append here, then call spill_if_many

    void spill_if_many(size_t limit, const std::string& directory) {
        if (tokens.size() < limit) return;
        if (fd < 0) {
            std::string name = directory + "/tokens.XXXXXX";
            fd = ::mkstemp(name.data());
            if (fd < 0) run_error("cannot write in ", directory, ": ", std::strerror(errno));
            ::unlink(name.c_str());
        }
        const char* bytes = reinterpret_cast<const char*>(tokens.data());
        for (size_t left = tokens.size() * sizeof(uint16_t); left > 0;) {
            ssize_t n = ::write(fd, bytes, left);
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) run_error("cannot write in ", directory, ": ", std::strerror(errno));
            bytes += n, left -= size_t(n);
        }
        spilled += int64_t(tokens.size());
        tokens.clear();
    }

    // All tokens in order.
    void drain_into(ShardWriter& writer) {
        std::vector<uint16_t> piece;
        for (int64_t at = 0; at < spilled; at += int64_t(piece.size())) {
            piece.resize(size_t(std::min(spilled - at, int64_t(1) << 20)));
            char* bytes = reinterpret_cast<char*>(piece.data());
            off_t offset = off_t(at) * off_t(sizeof(uint16_t));
            for (size_t left = piece.size() * sizeof(uint16_t); left > 0;) {
                ssize_t n = ::pread(fd, bytes, left, offset);
                if (n < 0 && errno == EINTR) continue;
                if (n <= 0)
                    run_error("cannot read back temporary tokens: ", n < 0 ? std::strerror(errno) : "end of file");
                bytes += n, left -= size_t(n), offset += n;
            }
            writer.write(piece);
        }
        writer.write(tokens);
    }

private:
    int fd = -1;
    int64_t spilled = 0;
};

// The tokens of one split of one input file.
struct SplitPart {
    TokenSpool spool;
    int64_t documents = 0, text_bytes = 0, tokens = 0;
};

// One input file, tokenised.
struct FilePart {
    SplitPart train, val;
    int64_t bad = 0;
};

std::vector<std::string> expand_inputs(const std::vector<std::string>& inputs) {
    std::vector<std::string> files;
    for (const std::string& input : inputs) {
        std::error_code error;
        if (!fs::is_directory(input, error)) {
            if (!is_document_file(input))
                input_error("cannot read ", input,
                            ": its name must end in .json, .jsonl or .txt, or one of these and .gz");
            files.push_back(input);
            continue;
        }
        size_t before = files.size();
        for (const auto& entry : fs::directory_iterator(input, error))
            if (entry.is_regular_file() && is_document_file(entry.path())) files.push_back(entry.path());
        if (files.size() == before) input_error("directory ", input, " holds no .json, .jsonl or .txt files");
        std::sort(files.begin() + ptrdiff_t(before), files.end());
    }
    if (files.empty()) input_error("there are no input files");
    return files;
}

// The work shared by all threads.
struct Preparation {
    const PrepareOptions& options;
    const volatile std::sig_atomic_t& stop;
    std::vector<std::string> files;
    std::string directory;  // for temporary and finished files
    int threads = 1;
    int64_t input_bytes = 0;

    std::atomic<int64_t> input_bytes_done{0}, text_bytes{0}, tokens{0};
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<std::unique_ptr<FilePart>> parts;  // finished, not yet joined
    size_t next_file = 0, joined = 0;
    std::exception_ptr failure;                    // the first; workers stop when they see it
    std::atomic<bool> stopping{false};

    Preparation(const PrepareOptions& o, const volatile std::sig_atomic_t& s)
        : options(o), stop(s), files(expand_inputs(o.inputs)), parts(files.size()) {
        for (const std::string& file : files) {
            std::error_code error;
            auto size = fs::file_size(file, error);
            if (error) input_error("cannot read ", file, ": ", error.message());
            input_bytes += int64_t(size);
        }
        threads = options.threads > 0 ? options.threads : int(std::max(1u, std::thread::hardware_concurrency()));
        threads = int(std::min(int64_t(threads), int64_t(files.size())));
    }

    void check_stop() const {
        if (stop) throw Interrupted(int(stop));
    }

    PrepareProgress progress(const char* phase, int64_t files_done) const {
        return {files_done, int64_t(files.size()), input_bytes_done, input_bytes, text_bytes, tokens, phase};
    }

    std::unique_ptr<FilePart> tokenise(size_t file, Encoder& encoder, int eot_id);
    void work(const Tokenizer& tokenizer);
    void join(ShardWriter& train, ShardWriter& val, PrepareResult& result,
              const std::function<void(const PrepareProgress&)>& report);
};

std::unique_ptr<FilePart> Preparation::tokenise(size_t file, Encoder& encoder, int eot_id) {
    auto part = std::make_unique<FilePart>();
    DocumentReader reader(files[file], options.text_key, options.skip_bad);
    DocumentReader::Piece piece;
    int64_t reported_bytes = 0, document = 0;
    while (reader.next(piece)) {
        if (stopping) return nullptr;
        SplitPart& split = in_validation(int64_t(file), document, options.val_fraction) ? part->val : part->train;
        size_t before = split.spool.tokens.size();
        encoder.encode(piece.text, split.spool.tokens);
        if (piece.ends_document) {
            split.spool.tokens.push_back(uint16_t(eot_id));
            split.documents++;
            document++;
        }
        int64_t made = int64_t(split.spool.tokens.size() - before);
        split.tokens += made;
        split.text_bytes += int64_t(piece.text.size());
        split.spool.spill_if_many(options.tokens_in_memory, directory);
        tokens += made;
        text_bytes += int64_t(piece.text.size());
        input_bytes_done += reader.input_bytes() - reported_bytes;
        reported_bytes = reader.input_bytes();
    }
    input_bytes_done += int64_t(fs::file_size(files[file])) - reported_bytes;
    part->bad = reader.bad();
    return part;
}

// A worker: takes the next file until none is left. It does not run far ahead of what has been joined, so that waiting
// tokens stay few.
void Preparation::work(const Tokenizer& tokenizer) {
    try {
        Encoder encoder(tokenizer);
        for (;;) {
            std::unique_lock guard(mutex);
            changed.wait(guard, [&] { return stopping || next_file < joined + 4 * size_t(threads); });
            if (stopping || next_file == files.size()) return;
            size_t file = next_file++;
            guard.unlock();
            auto part = tokenise(file, encoder, tokenizer.eot_id());
            guard.lock();
            parts[file] = std::move(part);
            changed.notify_all();
        }
    } catch (...) {
        std::lock_guard guard(mutex);
        if (!failure) failure = std::current_exception();
        stopping = true;
        changed.notify_all();
    }
}

// The calling thread: writes finished files' tokens to the shards in the order of the inputs.
void Preparation::join(ShardWriter& train, ShardWriter& val, PrepareResult& result,
                       const std::function<void(const PrepareProgress&)>& report) {
    auto append = [](SplitPart& part, ShardWriter& writer, SplitSummary& sum) {
        part.spool.drain_into(writer);
        sum.documents += part.documents;
        sum.text_bytes += part.text_bytes;
        sum.tokens += part.tokens;
    };
    for (size_t file = 0; file < files.size(); file++) {
        std::unique_ptr<FilePart> part;
        while (!part) {
            std::unique_lock guard(mutex);
            changed.wait_for(guard, std::chrono::milliseconds(200), [&] { return parts[file] || failure; });
            if (failure) std::rethrow_exception(failure);
            part = std::move(parts[file]);
            guard.unlock();
            check_stop();
            report(progress("tokenising", int64_t(file)));
        }
        append(part->train, train, result.train);
        append(part->val, val, result.val);
        result.bad += part->bad;
        std::lock_guard guard(mutex);
        joined = file + 1;
        changed.notify_all();
    }
    result.train.shards = train.finish();
    result.val.shards = val.finish();
    report(progress("tokenising", int64_t(files.size())));
}

// Stops and awaits the workers however the scope ends.
struct WorkerGroup {
    Preparation& shared;
    std::vector<std::thread> threads;
    WorkerGroup(Preparation& s, const Tokenizer& tokenizer) : shared(s) {
        for (int i = 0; i < s.threads; i++) threads.emplace_back([&] { shared.work(tokenizer); });
    }
    ~WorkerGroup() {
        {
            std::lock_guard guard(shared.mutex);
            shared.stopping = true;
        }
        shared.changed.notify_all();
        for (std::thread& thread : threads) thread.join();
    }
};

// A vocabulary trained on the first part of every file (the training documents only).
Tokenizer train_tokenizer(Preparation& shared, const std::function<void(const PrepareProgress&)>& report) {
    const PrepareOptions& options = shared.options;
    BpeTrainer trainer;
    int64_t share = std::max<int64_t>(1, options.bpe_bytes / int64_t(shared.files.size()));
    auto last_report = std::chrono::steady_clock::now();
    for (size_t file = 0; file < shared.files.size(); file++) {
        DocumentReader reader(shared.files[file], options.text_key, options.skip_bad);
        DocumentReader::Piece piece;
        int64_t document = 0, taken = 0;
        while (taken < share && reader.next(piece)) {
            shared.check_stop();
            if (!in_validation(int64_t(file), document, options.val_fraction)) {
                trainer.add(piece.text);
                taken += int64_t(piece.text.size());
            }
            document += piece.ends_document;
            auto now = std::chrono::steady_clock::now();
            if (now - last_report < std::chrono::milliseconds(200)) continue;
            last_report = now;
            PrepareProgress progress = shared.progress("counting words", int64_t(file));
            progress.text_bytes = trainer.text_bytes();
            report(progress);
        }
    }
    report(shared.progress("training the vocabulary", 0));
    return Tokenizer::from_ranks(trainer.train(options.train_bpe), "the trained vocabulary");
}

}  // namespace

bool in_validation(int64_t file, int64_t index, double fraction) {
    // Steps of the golden ratio spread the files' phases evenly; 0.5 puts one of the first 0.5 / fraction documents in.
    double phase = std::fmod(0.5 + double(file) * 0.6180339887498949, 1.0);
    return std::floor(double(index + 1) * fraction + phase) > std::floor(double(index) * fraction + phase);
}

PrepareResult prepare_dataset(const PrepareOptions& options, const std::function<void(const PrepareProgress&)>& report,
                              const volatile std::sig_atomic_t& stop) {
    if (options.train_bpe > 0 && !options.tokenizer.empty())
        input_error("choose a tokenizer file or a vocabulary to train, not both");
    if (!(options.val_fraction >= 0 && options.val_fraction < 1))
        input_error("a validation fraction of ", options.val_fraction,
                    " is impossible: it must be at least 0 and below 1");
    Preparation shared(options, stop);
    PrepareResult result;
    result.files = int64_t(shared.files.size());
    OutputDirectory output(options.out, "dataset.json", options.overwrite);
    shared.directory = output.temporary();
    Tokenizer tokenizer = options.train_bpe > 0
                              ? train_tokenizer(shared, report)
                              : Tokenizer::load(options.tokenizer.empty() ? gpt2_rank_file() : options.tokenizer);
    result.vocab_size = tokenizer.vocab_size();
    ShardWriter train(shared.directory, "train", options.shard_tokens),
        val(shared.directory, "val", options.shard_tokens);
    {
        WorkerGroup workers(shared, tokenizer);
        shared.join(train, val, result, report);
    }
    if (result.train.tokens == 0) input_error("the inputs hold no text to train on");
    write_dataset_json(shared.directory, tokenizer.rank_file(), tokenizer.vocab_size(), result.train, result.val);
    shared.check_stop();
    output.commit();
    return result;
}

}  // namespace llmc
