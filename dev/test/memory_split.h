// Token shards that are in no file.
#pragma once
#include <numeric>
#include <string>
#include <vector>

#include "llmc/data/shards.h"

namespace llmc::test {

// A split in memory: shards of the given lengths with tokens 0, 1, 2, ... through all of them.
struct MemorySplit {
    std::vector<std::vector<uint16_t>> storage;
    Split split;
    explicit MemorySplit(const std::vector<int>& lengths, int vocab = 65535) {
        uint16_t next = 0;
        for (int length : lengths) {
            storage.emplace_back(size_t(length));
            std::iota(storage.back().begin(), storage.back().end(), next);
            next = uint16_t(next + length);
        }
        for (auto& tokens : storage) {
            Shard shard;
            shard.path = "shard" + std::to_string(split.shards.size());
            shard.tokens = tokens.data();
            shard.count = int64_t(tokens.size());
            split.tokens += shard.count;
            split.shards.push_back(std::move(shard));
        }
        split.name = "train";
        split.vocab_size = vocab;
    }
};

}  // namespace llmc::test
