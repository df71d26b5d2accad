// Token shards on disk: llm.c's .bin files, and the data directory around them.
//
//   shard.bin      256 int32 header {20240520, 1, number of tokens, 0...}, then the tokens as uint16, little-endian.
//                  Every document ends with <|endoftext|>; a shard may begin or end inside a document.
//   directory/     dataset.json     format_version, tokenizer {file, crc32, vocab_size, eot_id}, and for each split
//                                   (train, val) documents, text_bytes, tokens and shards [{file, tokens, crc32}]
//                  tokenizer.tiktoken   the rank file the tokens were made with
//                  train_000000.bin ... val_000000.bin ...
//
// A shard without a dataset.json beside it (a bare shard) is taken to contain GPT-2 tokens.
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
    uint32_t crc32 = 0;  // of the whole file, from dataset.json; 0 for a bare shard
};

// The shards of one split, in order. Sums over all of them; documents and text_bytes are 0 where unknown (bare shards).
struct Split {
    std::string name;  // "train", "val", or the path of bare shards
    std::vector<Shard> shards;
    int64_t tokens = 0;
    int64_t documents = 0;
    int64_t text_bytes = 0;
    int vocab_size = 0;

    // Bytes of text per token; loss in nats / (ln 2 * bytes_per_token) is bits per byte. 0 if unknown. The text does
    // not include <|endoftext|> and the tokens do, so the cost of predicting it is included.
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

// Opens a data directory (with dataset.json), a single .bin file, or a quoted pattern like "dir/train_*.bin". Checks
// presence, sizes, headers and counts. The tokens of bare shards are also read once to check that they are GPT-2 ids,
// unless `reads_tokens` is false because another process does it. InputError naming the file. Shards are memory-mapped,
// so only what is read is loaded.
Dataset open_dataset(const std::string& path, bool reads_tokens = true);

// InputError unless the vocabularies of data and model have the same size.
void check_vocabulary(const Dataset& dataset, int64_t model_vocab_size);

// Copies tokens [from, from + count) of a shard. InputError naming the place of one that is not in the vocabulary.
void read_tokens(int32_t* out, const Split& split, size_t shard, int64_t from, int64_t count);

// Reads every shard and compares checksums and token ranges. InputError naming the first shard that is damaged.
void verify_dataset(const Dataset& dataset);

// Writes the shards of one split, with shard_tokens tokens each. A file appears only when it is complete.
class ShardWriter {
public:
    struct Entry {
        std::string file;
        int64_t tokens;
        uint32_t crc32;
    };
    ShardWriter(std::string directory, std::string split, int64_t shard_tokens);

    void write(std::span<const uint16_t> tokens);
    std::vector<Entry> finish();  // closes the last shard; returns all shards

private:
    std::string directory, split;
    int64_t shard_tokens, in_shard = 0;
    std::unique_ptr<AtomicFile> file;
    uint32_t tokens_crc32 = 0;
    std::vector<Entry> entries;
    void close_shard();
};

// The entry of one split in dataset.json.
struct SplitSummary {
    int64_t documents = 0, text_bytes = 0, tokens = 0;
    std::vector<ShardWriter::Entry> shards;
};

// Writes dataset.json and tokenizer.tiktoken (with the text `rank_file`) into the directory. RunError if it cannot.
void write_dataset_json(const std::string& directory, const std::string& rank_file, int vocab_size,
                        const SplitSummary& train, const SplitSummary& val);

}  // namespace llmc
