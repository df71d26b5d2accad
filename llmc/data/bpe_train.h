// Trains a byte-level BPE vocabulary (Sennrich et al. 2016): starts from the 256 bytes and repeatedly merges the most
// frequent adjacent pair. Pairs never cross the borders of GPT-2's pre-tokens.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

namespace llmc {

class BpeTrainer {
public:
    // Counts the pre-tokens of a text. The order of texts does not matter.
    void add(std::string_view text);

    // A rank file of vocab_size - 1 tokens (the last id is <|endoftext|>, which is not in the file): the 256 bytes in
    // GPT-2's order, then one token per merge. Of pairs with equal counts the one with the lower left id wins, then the
    // lower right id. InputError if vocab_size is outside 257..65535 or the text has too few different pairs.
    std::string train(int vocab_size) const;

    int64_t text_bytes() const { return bytes_seen; }

private:
    struct Hash {
        using is_transparent = void;  // look up string_views without making strings
        size_t operator()(std::string_view s) const { return std::hash<std::string_view>()(s); }
    };
    std::unordered_map<std::string, int64_t, Hash, std::equal_to<>> counts;
    std::string storage;
    int64_t bytes_seen = 0;
};

}  // namespace llmc
