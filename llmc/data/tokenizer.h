// Byte-level BPE (Sennrich et al. 2016; over bytes as in GPT-2), read from a tiktoken rank file.
//
// A rank file has one line "base64(bytes of the token) rank" per token. Ranks are the token ids: 0..255 are the single
// bytes in some order, and each later token is a concatenation of two earlier ones. So the file determines which pairs
// are merged, and in which order. <|endoftext|> is not in it: its id is the number of lines.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llmc {

class Tokenizer {
public:
    // Reads a rank file, plain or gzipped (told apart by content). InputError naming file and line if it is not one.
    static Tokenizer load(const std::string& path);
    // The same from the text of a rank file; `name` is used in messages.
    static Tokenizer from_ranks(std::string ranks, const std::string& name);

    int vocab_size() const { return int(token_bytes.size()); }  // with end-of-text
    int eot_id() const { return vocab_size() - 1; }
    const std::string& rank_file() const { return ranks; }      // the unpacked text it was read from
    uint32_t crc32() const { return ranks_crc32; }              // of rank_file(), to compare vocabularies

    // Token ids of a text. Invalid UTF-8 becomes U+FFFD; "<|endoftext|>" in the text is ordinary text. For more than a
    // few strings use an Encoder, which has a cache.
    std::vector<uint16_t> encode(std::string_view text) const;

    // The bytes of the tokens one after another; end-of-text becomes "<|endoftext|>". InputError for an id that is not
    // in the vocabulary. A slice of a text may begin or end inside a UTF-8 character.
    std::string decode(std::span<const int32_t> ids) const;

    // Appends the ids of one pre-token, found by merging (without a cache).
    void merge(std::string_view pretoken, std::vector<uint16_t>& out) const;

private:
    struct Pair {
        uint32_t key, id;
    };
    std::string ranks;
    uint32_t ranks_crc32 = 0;
    std::vector<std::string> token_bytes;  // by id; the last is <|endoftext|>
    uint16_t byte_id[256] = {};
    std::vector<Pair> pairs;               // open addressing: (left id, right id) -> id of the merged token

    uint32_t merged_id(uint32_t left, uint32_t right) const;  // no_merge if the two do not merge
    void add_pair(uint32_t left, uint32_t right, uint32_t id);
    void merge_short(std::string_view pretoken, std::vector<uint16_t>& out) const;
    void merge_long(std::string_view pretoken, std::vector<uint16_t>& out) const;
    void derive_merges(const std::string& name);
};

// Encodes with a cache of pre-tokens: English repeats its words so often that most need no merging. Constant memory (2
// MB). Use one Encoder per thread; the Tokenizer is shared and must outlive it.
class Encoder {
public:
    explicit Encoder(const Tokenizer& vocabulary);

    // Appends the token ids of the text to `out` (no end-of-text).
    void encode(std::string_view text, std::vector<uint16_t>& out);

private:
    // A pre-token of up to 15 bytes (zero-padded; the 16th byte is its length, so an empty slot has length 0) and its
    // at most 7 ids.
    struct Slot {
        uint64_t low, high;
        uint16_t ids[7];
        uint16_t count;
    };
    const Tokenizer& tokenizer;
    std::vector<Slot> slots;  // direct-mapped: a newer pre-token replaces the one it collides with
    std::string storage;      // the repaired text, if it was not valid UTF-8
};

// The path of the GPT-2 vocabulary, data/gpt2.tiktoken.gz in the working directory or in a directory above the program.
// InputError if it is in neither.
std::string gpt2_rank_file();

std::string base64_encode(std::string_view bytes);

}  // namespace llmc
