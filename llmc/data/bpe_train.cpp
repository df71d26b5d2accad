#include "llmc/data/bpe_train.h"

#include <algorithm>
#include <queue>
#include <unordered_set>
#include <vector>

#include "llmc/base/errors.h"
#include "llmc/data/pretokenize.h"
#include "llmc/data/tokenizer.h"

namespace llmc {

namespace {

// A different pre-token and how often it occurs.
struct Word {
    std::vector<uint16_t> ids;
    int64_t count;
};

struct PairInfo {
    int64_t count = 0;
    std::vector<int32_t> words;  // that contain the pair, or did once
};

struct Candidate {
    int64_t count;
    uint32_t pair;  // left id << 16 | right id
    bool operator<(const Candidate& o) const { return count != o.count ? count < o.count : pair > o.pair; }
};

uint32_t pair_of(uint32_t left, uint32_t right) { return left << 16 | right; }

// The words in their present split, the count of every pair in them, and the pairs by count.
struct Merger {
    std::vector<Word> words;
    std::unordered_map<uint32_t, PairInfo> pairs;
    // Counts only ever fall while a pair waits here (rises happen to pairs with the newest id, which are pushed after
    // the merge), so an entry with an outdated count is put back with the right one when it comes to the top.
    std::priority_queue<Candidate> heap;

    void count_all_pairs() {
        for (size_t w = 0; w < words.size(); w++)
            for (size_t i = 0; i + 1 < words[w].ids.size(); i++) add(words[w].ids[i], words[w].ids[i + 1], int32_t(w));
        for (auto& [pair, info] : pairs) heap.push({info.count, pair});
    }

    void add(uint32_t left, uint32_t right, int32_t word) {
        PairInfo& info = pairs[pair_of(left, right)];
        info.count += words[size_t(word)].count;
        if (info.words.empty() || info.words.back() != word) info.words.push_back(word);
    }
    void remove(uint32_t left, uint32_t right, int32_t word) {
        pairs[pair_of(left, right)].count -= words[size_t(word)].count;
    }

    // The most frequent pair; false if none is left.
    bool pop_best(uint32_t& pair) {
        while (!heap.empty()) {
            Candidate top = heap.top();
            heap.pop();
            int64_t count = pairs[top.pair].count;
            if (count == top.count) {
                pair = top.pair;
                return true;
            }
            if (count > 0) heap.push({count, top.pair});
        }
        return false;
    }

    // Replaces the pair by one id in all words, left to right, and keeps all counts exact: at every moment they
    // describe the word as it stands, its done part in new ids and the rest in old ones.
    void merge(uint32_t pair, uint16_t new_id) {
        std::vector<int32_t> affected = std::move(pairs[pair].words);
        uint32_t left = pair >> 16, right = pair & 0xFFFF;
        std::vector<uint32_t> made;
        auto make = [&](uint32_t a, uint32_t b, int32_t w) {
            add(a, b, w);
            made.push_back(pair_of(a, b));
        };
        for (int32_t w : affected) {
            std::vector<uint16_t>& ids = words[size_t(w)].ids;
            size_t done = 0;
            for (size_t i = 0; i < ids.size(); i++) {
                if (i + 1 == ids.size() || ids[i] != left || ids[i + 1] != right) {
                    ids[done++] = ids[i];
                    continue;
                }
                remove(left, right, w);
                if (done > 0) remove(ids[done - 1], left, w), make(ids[done - 1], new_id, w);
                if (i + 2 < ids.size()) remove(right, ids[i + 2], w), make(new_id, ids[i + 2], w);
                ids[done++] = new_id;
                i++;
            }
            ids.resize(done);
        }
        std::sort(made.begin(), made.end());
        made.erase(std::unique(made.begin(), made.end()), made.end());
        for (uint32_t p : made)
            if (pairs[p].count > 0) heap.push({pairs[p].count, p});
        pairs.erase(pair);
    }
};

// The order of GPT-2's ids 0..255: printable characters of Latin-1 first, then all other bytes.
std::vector<uint8_t> gpt2_byte_order() {
    std::vector<uint8_t> order, rest;
    for (int b = 0; b < 256; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        (printable ? order : rest).push_back(uint8_t(b));
    }
    order.insert(order.end(), rest.begin(), rest.end());
    return order;
}

}  // namespace

void BpeTrainer::add(std::string_view text) {
    bytes_seen += int64_t(text.size());
    text = valid_utf8(text, storage);
    for (size_t begin = 0, end; begin < text.size(); begin = end) {
        end = pretoken_end(text, begin);
        std::string_view pretoken = text.substr(begin, end - begin);
        auto found = counts.find(pretoken);
        if (found == counts.end()) found = counts.emplace(pretoken, 0).first;
        found->second++;
    }
}

std::string BpeTrainer::train(int vocab_size) const {
    if (vocab_size < 257 || vocab_size > 65535)
        input_error("a vocabulary of ", vocab_size, " tokens is impossible: choose 257 to 65535");
    std::vector<std::string> tokens;
    uint16_t id_of_byte[256];
    for (uint8_t b : gpt2_byte_order()) {
        id_of_byte[b] = uint16_t(tokens.size());
        tokens.emplace_back(1, char(b));
    }

    Merger merger;
    for (auto& [pretoken, count] : counts) {
        std::vector<uint16_t> ids;
        for (char c : pretoken) ids.push_back(id_of_byte[uint8_t(c)]);
        merger.words.push_back({std::move(ids), count});
    }
    merger.count_all_pairs();
    std::unordered_set<std::string> seen;
    while (int(tokens.size()) < vocab_size - 1) {
        uint32_t pair;
        if (!merger.pop_best(pair))
            input_error("the text (", bytes_seen, " bytes) gives a vocabulary of at most ", tokens.size() + 1,
                        " tokens, not ", vocab_size, ": ask for fewer or give more text");
        std::string bytes = tokens[pair >> 16] + tokens[pair & 0xFFFF];
        if (!seen.insert(bytes).second) continue;  // the same bytes from another pair: a rank file cannot hold both
        merger.merge(pair, uint16_t(tokens.size()));
        tokens.push_back(std::move(bytes));
    }
    std::string ranks;
    for (size_t id = 0; id < tokens.size(); id++) ranks += str(base64_encode(tokens[id]), ' ', id, '\n');
    return ranks;
}

}  // namespace llmc
