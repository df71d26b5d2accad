#include "llmc/data/tokenizer.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <functional>
#include <queue>
#include <unordered_set>

#include "llmc/base/errors.h"
#include "llmc/base/files.h"
#include "llmc/data/pretokenize.h"

namespace llmc {

namespace {

constexpr uint32_t no_merge = 0xFFFFFFFFu;
constexpr size_t max_vocab = 65535;  // ids are stored as uint16
constexpr char base64_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

// False if `text` is not base64 with its padding.
bool base64_decode(std::string_view text, std::string& bytes) {
    bytes.clear();
    if (text.empty() || text.size() % 4 != 0) return false;
    size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
    uint32_t bits = 0;
    for (size_t i = 0; i < text.size(); i++) {
        const char* digit = i < text.size() - padding
                                ? static_cast<const char*>(std::memchr(base64_digits, text[i], 64)) : base64_digits;
        if (!digit) return false;
        bits = bits << 6 | uint32_t(digit - base64_digits);
        if (i % 4 == 3) {
            for (int shift = 16; shift >= 0; shift -= 8) bytes += char(bits >> shift & 255);
            bits = 0;
        }
    }
    bytes.resize(bytes.size() - padding);
    return true;
}

// Splits "base64 rank"; false if the line has another form.
bool parse_rank_line(std::string_view line, std::string& bytes, size_t& rank) {
    if (line.ends_with('\r')) line.remove_suffix(1);
    size_t blank = line.find(' ');
    if (blank == line.npos || !base64_decode(line.substr(0, blank), bytes)) return false;
    const char* end = line.data() + line.size();
    auto [stop, error] = std::from_chars(line.data() + blank + 1, end, rank);
    return error == std::errc() && stop == end;
}

size_t hash_pair(uint32_t key) { return size_t(key * 0x9E3779B97F4A7C15u >> 32); }

}  // namespace

std::string base64_encode(std::string_view bytes) {
    std::string text;
    for (size_t i = 0; i < bytes.size(); i += 3) {
        uint32_t bits = 0;
        for (size_t k = 0; k < 3; k++) bits = bits << 8 | (i + k < bytes.size() ? uint8_t(bytes[i + k]) : 0u);
        for (int k = 0; k < 4; k++)
            text += i + size_t(k) > bytes.size() ? '=' : base64_digits[bits >> (18 - 6 * k) & 63];
    }
    return text;
}

Tokenizer Tokenizer::load(const std::string& path) { return from_ranks(read_file_gunzip(path), path); }

Tokenizer Tokenizer::from_ranks(std::string ranks, const std::string& name) {
    Tokenizer t;
    t.ranks = std::move(ranks);
    t.ranks_crc32 = crc32_of(t.ranks.data(), t.ranks.size());
    std::unordered_set<std::string_view> seen;
    std::string_view rest = t.ranks;
    for (size_t line_number = 1; !rest.empty(); line_number++) {
        std::string_view line = rest.substr(0, rest.find('\n'));
        rest.remove_prefix(std::min(rest.size(), line.size() + 1));
        std::string bytes;
        size_t rank = 0;
        if (!parse_rank_line(line, bytes, rank))
            input_error(name, ": line ", line_number, " is not \"base64 rank\": this is not a tokenizer rank file");
        if (rank != t.token_bytes.size())
            input_error(name, ": line ", line_number, " has rank ", rank, " where ", t.token_bytes.size(),
                        " is expected: ranks must count up from 0");
        if ((bytes.size() == 1) != (rank < 256))
            input_error(name, ": line ", line_number, ": the first 256 tokens, and only they, must be single bytes");
        if (rank + 1 >= max_vocab)
            input_error(name, ": more than ", max_vocab - 1, " tokens: ids are stored in 16 bits");
        t.token_bytes.push_back(bytes);
    }
    if (t.token_bytes.size() < 256)
        input_error(name, " has ", t.token_bytes.size(), " tokens; a byte-level vocabulary has at least 256");
    for (size_t id = 0; id < t.token_bytes.size(); id++)
        if (!seen.insert(t.token_bytes[id]).second)
            input_error(name, ": line ", id + 1, " repeats an earlier token");
    for (size_t id = 0; id < 256; id++) t.byte_id[uint8_t(t.token_bytes[id][0])] = uint16_t(id);
    t.derive_merges(name);
    t.token_bytes.push_back("<|endoftext|>");
    return t;
}

// Which two tokens make token i? Those into which the earlier merges alone turn its bytes.
void Tokenizer::derive_merges(const std::string& name) {
    size_t slots = 1024;
    while (slots < token_bytes.size() * 2) slots *= 2;
    pairs.assign(slots, Pair{0, no_merge});
    std::vector<uint16_t> parts;
    for (size_t id = 256; id < token_bytes.size(); id++) {
        parts.clear();
        merge(token_bytes[id], parts);
        if (parts.size() != 2)
            input_error(name, ": line ", id + 1,
                        ": this token is not a concatenation of two earlier tokens, as BPE requires");
        add_pair(parts[0], parts[1], uint32_t(id));
    }
}

uint32_t Tokenizer::merged_id(uint32_t left, uint32_t right) const {
    uint32_t key = left << 16 | right;
    for (size_t i = hash_pair(key);; i++) {
        const Pair& p = pairs[i & (pairs.size() - 1)];
        if (p.id == no_merge || p.key == key) return p.id;
    }
}

void Tokenizer::add_pair(uint32_t left, uint32_t right, uint32_t id) {
    uint32_t key = left << 16 | right;
    size_t i = hash_pair(key);
    while (pairs[i & (pairs.size() - 1)].id != no_merge) i++;
    pairs[i & (pairs.size() - 1)] = {key, id};
}

void Tokenizer::merge(std::string_view pretoken, std::vector<uint16_t>& out) const {
    // Scanning for the best pair is fastest for words but quadratic: a megabyte of dashes is one pre-token, too.
    if (pretoken.size() >= UINT32_MAX) input_error("a word of ", pretoken.size(), " bytes is too long to tokenise");
    if (pretoken.size() <= 64) merge_short(pretoken, out);
    else merge_long(pretoken, out);
}

// Merges the pair of lowest id (= rank), leftmost on ties, until none is left.
void Tokenizer::merge_short(std::string_view pretoken, std::vector<uint16_t>& out) const {
    uint32_t part[64], joined[64];  // joined[i]: what part[i] and part[i + 1] merge to
    size_t n = pretoken.size();
    for (size_t i = 0; i < n; i++) part[i] = byte_id[uint8_t(pretoken[i])];
    for (size_t i = 0; i + 1 < n; i++) joined[i] = merged_id(part[i], part[i + 1]);
    while (n > 1) {
        size_t best = size_t(std::min_element(joined, joined + n - 1) - joined);
        if (joined[best] == no_merge) break;
        part[best] = joined[best];
        n--;
        for (size_t i = best + 1; i < n; i++) part[i] = part[i + 1];
        for (size_t i = best + 1; i + 1 < n; i++) joined[i] = joined[i + 1];
        if (best + 1 < n) joined[best] = merged_id(part[best], part[best + 1]);
        if (best > 0) joined[best - 1] = merged_id(part[best - 1], part[best]);
    }
    out.insert(out.end(), part, part + n);
}

// The same in O(n log n): a linked list of parts, each at the position of its first byte, and a heap of candidate
// merges (merged id, position of the left part) packed into one number. A candidate may be outdated when it comes up.
void Tokenizer::merge_long(std::string_view pretoken, std::vector<uint16_t>& out) const {
    constexpr uint32_t none = UINT32_MAX;  // as a position and, for a part that was merged into its left one, as an id
    struct Part {
        uint32_t id, before, after;
    };
    auto n = uint32_t(pretoken.size());
    std::vector<Part> parts(n);
    std::vector<uint64_t> candidates;
    auto merged_with_next = [&](uint32_t left) {
        uint32_t right = parts[left].after;
        return parts[left].id == none || right == none ? no_merge : merged_id(parts[left].id, parts[right].id);
    };
    for (uint32_t i = 0; i < n; i++)
        parts[i] = {byte_id[uint8_t(pretoken[i])], i == 0 ? none : i - 1, i + 1 == n ? none : i + 1};
    for (uint32_t i = 0; i < n; i++)
        if (uint32_t id = merged_with_next(i); id != no_merge) candidates.push_back(uint64_t(id) << 32 | i);
    std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> heap(std::greater<>(), std::move(candidates));
    auto consider = [&](uint32_t left) {
        if (left == none) return;
        if (uint32_t id = merged_with_next(left); id != no_merge) heap.push(uint64_t(id) << 32 | left);
    };
    while (!heap.empty()) {
        auto id = uint32_t(heap.top() >> 32), left = uint32_t(heap.top());
        heap.pop();
        if (merged_with_next(left) != id) continue;
        Part& part = parts[left];
        Part& right = parts[part.after];
        part = {id, part.before, right.after};
        right.id = none;
        if (part.after != none) parts[part.after].before = left;
        consider(part.before);
        consider(left);
    }
    for (uint32_t i = 0; i != none; i = parts[i].after) out.push_back(uint16_t(parts[i].id));
}

std::vector<uint16_t> Tokenizer::encode(std::string_view text) const {
    std::vector<uint16_t> ids;
    std::string storage;
    text = valid_utf8(text, storage);
    for (size_t begin = 0, end; begin < text.size(); begin = end) {
        end = pretoken_end(text, begin);
        merge(text.substr(begin, end - begin), ids);
    }
    return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
    std::string text;
    for (int32_t id : ids) {
        if (id < 0 || id >= vocab_size())
            input_error("token id ", id, " is not in the vocabulary of ", vocab_size(), " tokens");
        text += token_bytes[size_t(id)];
    }
    return text;
}

Encoder::Encoder(const Tokenizer& vocabulary) : tokenizer(vocabulary), slots(size_t(1) << 16) {}

void Encoder::encode(std::string_view text, std::vector<uint16_t>& out) {
    text = valid_utf8(text, storage);
    const char* text_end = text.data() + text.size();
    for (size_t begin = 0, end; begin < text.size(); begin = end) {
        end = pretoken_end(text, begin);
        std::string_view pretoken = text.substr(begin, end - begin);
        size_t length = pretoken.size();
        if (length > 15) {
            tokenizer.merge(pretoken, out);
            continue;
        }
        uint64_t low = 0, high = 0;
        if (text_end - pretoken.data() >= 16) {  // load 16 bytes at once and cut off what is not ours
            std::memcpy(&low, pretoken.data(), 8);
            std::memcpy(&high, pretoken.data() + 8, 8);
            if (length < 8) low &= (uint64_t(1) << 8 * length) - 1;
            high &= length <= 8 ? 0 : (uint64_t(1) << 8 * (length - 8)) - 1;
        } else {
            char padded[16] = {};
            std::memcpy(padded, pretoken.data(), length);
            std::memcpy(&low, padded, 8);
            std::memcpy(&high, padded + 8, 8);
        }
        high |= uint64_t(length) << 56;
        uint64_t hash = (low * 0x9E3779B97F4A7C15u) ^ (high * 0xC2B2AE3D27D4EB4Fu);
        Slot& slot = slots[(hash ^ hash >> 29) * 0xBF58476D1CE4E5B9u >> 48];
        if (slot.low != low || slot.high != high) {
            size_t before = out.size();
            tokenizer.merge(pretoken, out);
            size_t count = out.size() - before;
            if (count > 7) continue;
            slot.low = low, slot.high = high, slot.count = uint16_t(count);
            std::copy(out.end() - ptrdiff_t(count), out.end(), slot.ids);
            continue;
        }
        out.insert(out.end(), slot.ids, slot.ids + slot.count);
    }
}

std::string gpt2_rank_file() {
    namespace fs = std::filesystem;
    const std::string name = "data/gpt2.tiktoken.gz";
    std::error_code error;
    if (fs::exists(name, error)) return name;
    fs::path directory = fs::read_symlink("/proc/self/exe", error).parent_path();
    for (int level = 0; level < 4 && !directory.empty(); level++, directory = directory.parent_path())
        if (fs::exists(directory / name, error)) return (directory / name).string();
    input_error("the GPT-2 vocabulary ", name,
                " was found neither in the working directory nor in a directory above the program: run from the "
                "repository's root");
}

}  // namespace llmc
