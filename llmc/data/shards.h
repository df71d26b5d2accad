// Token shards on disk: llm.c's .bin files, and the data directory around them.
//
//   shard.bin      256 int32 header {20240520, 1, number of tokens, 0...}, then the tokens as uint16, little-endian.
//                  Every document ends with <|endoftext|>; a shard may begin or end inside a document.
//   directory/     dataset.json     format_version, tokenizer {file, crc32, vocab_size, eot_id}, and for each split
//                                   (train, val) documents, text_bytes, tokens and shards [{file, tokens, crc32}]
//                  tokenizer.tiktoken   the rank file the tokens were made with
//                  train_000000.bin ... val_000000.bin ...
//
// A shard without a dataset.json beside it counts as GPT-2 tokens.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "llmc/base/files.h"

namespace llmc {

constexpr int dataset_format_version = 1;

// One mapped shard: tokens[0..count).
struct Shard {
    std::string path;
    MappedFile map;
    const uint16_t* tokens = nullptr;
    int64_t count = 0;
    uint32_t crc32 = 0;  // of the whole file as dataset.json has it; 0 for a bare shard
};

// The shards of one split, in order. Sums over all of them; documents and text_bytes are 0 where unknown (bare shards).
struct Split {
    std::string name;  // "train", "val", or the path of bare shards
    std::vector<Shard> shards;
    int64_t tokens = 0;
    int64_t documents = 0;
    int64_t text_bytes = 0;
    int vocab_size = 0;

    // Bytes of text a token stands for: loss in nats / (ln 2 * bytes_per_token) is bits per byte. 0 if unknown.
    // Text counts without <|endoftext|>, tokens with it, so all of the model's predictions are paid for.
    double bytes_per_token() const { return tokens > 0 ? double(text_bytes) / double(tokens) : 0; }
};

struct Dataset {
    std::string path;            // as given
    std::string tokenizer_file;  // rank file to encode and decode with
    uint32_t tokenizer_crc32 = 0;
    int vocab_size = 0, eot_id = 0;
    Split train, val;            // val has no shards if the dataset has no such split
    bool bare = false;           // no dataset.json: everything given is in `train`
};

// Opens a data directory (with dataset.json), a single .bin file, or a quoted pattern like "dir/train_*.bin".
// Checks all there is to check without reading the tokens: presence, sizes, headers, counts. Bare shards are also read
// once to check that every token is a GPT-2 id, unless `reads_tokens` is false because another process does. InputError
// naming the file otherwise. Shards are mapped: of what is not read, nothing is loaded.
Dataset open_dataset(const std::string& path, bool reads_tokens = true);

// InputError unless the data's tokens are the model's: the vocabularies must have the same size.
void check_vocabulary(const Dataset& dataset, int64_t model_vocab_size);

// Reads every shard and compares checksums and token ranges. InputError naming the first shard that is damaged.
void verify_dataset(const Dataset& dataset);

// Writes the shards of one split, cutting after every shard_tokens tokens. Files are complete or absent.
class ShardWriter {
public:
    struct Entry {
        std::string file;
        int64_t tokens;
        uint32_t crc32;
    };
    ShardWriter(std::string directory, std::string split, int64_t shard_tokens);

    void write(std::span<const uint16_t> tokens);
    std::vector<Entry> finish();  // closes the last shard and lists all

private:
    std::string directory, split;
    int64_t shard_tokens, in_shard = 0;
    std::unique_ptr<AtomicFile> file;
    uint32_t tokens_crc32 = 0;
    std::vector<Entry> entries;
    void close_shard();
};

// What dataset.json says of one split.
struct SplitSummary {
    int64_t documents = 0, text_bytes = 0, tokens = 0;
    std::vector<ShardWriter::Entry> shards;
};

// Writes dataset.json and tokenizer.tiktoken (its text given) into the directory.
void write_dataset_json(const std::string& directory, const std::string& rank_file, int vocab_size,
                        const SplitSummary& train, const SplitSummary& val);

}  // namespace llmc
