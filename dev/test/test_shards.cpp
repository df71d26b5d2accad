// Token shards and dataset.json: what is written is read back, and what is wrong is named.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "dev/test/temp_dir.h"
#include "llmc/base/errors.h"
#include "llmc/base/files.h"
#include "llmc/data/bpe_train.h"
#include "llmc/data/loader.h"
#include "llmc/data/shards.h"

using namespace llmc;

namespace {

// A shard's bytes, made by hand from the format's description.
std::string shard_bytes(int32_t magic, int32_t version, int32_t count, const std::vector<uint16_t>& tokens) {
    int32_t header[256] = {magic, version, count};
    std::string bytes(reinterpret_cast<char*>(header), sizeof header);
    bytes.append(reinterpret_cast<const char*>(tokens.data()), tokens.size() * 2);
    return bytes;
}

template <class F>
void expect_input_error(F f, const std::string& part) {
    try {
        f();
        ADD_FAILURE() << "no InputError; expected one with: " << part;
    } catch (const InputError& e) {
        EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
}

// A dataset over bytes (257 tokens) with train tokens 0, 1, 2, ... and 10 val tokens.
void make_dataset(const std::string& directory, int train_tokens, int64_t shard_tokens) {
    make_directories(directory);
    std::vector<uint16_t> tokens;
    for (int i = 0; i < train_tokens; i++) tokens.push_back(uint16_t(i % 257));
    ShardWriter train(directory, "train", shard_tokens), val(directory, "val", shard_tokens);
    for (size_t at = 0; at < tokens.size(); at += 7)
        train.write(std::span(tokens).subspan(at, std::min<size_t>(7, tokens.size() - at)));
    val.write(std::span(tokens).first(10));
    SplitSummary train_summary{3, 900, train_tokens, train.finish()}, val_summary{1, 20, 10, val.finish()};
    write_dataset_json(directory, BpeTrainer().train(257), 257, train_summary, val_summary);
}

void edit_json(const std::string& file, const std::function<void(nlohmann::json&)>& edit) {
    auto json = nlohmann::json::parse(read_file(file));
    edit(json);
    write_file_atomic(file, json.dump());
}

}  // namespace

TEST(Shards, WrittenShardsHaveTheDocumentedBytes) {
    TempDir dir;
    ShardWriter writer(dir.path, "train", 4);
    std::vector<uint16_t> tokens = {5, 6, 7, 8, 9, 65534};
    writer.write(tokens);
    auto entries = writer.finish();
    ASSERT_EQ(entries.size(), 2u);
    EXPECT_EQ(entries[0].file, "train_000000.bin");
    std::string first = read_file(dir / "train_000000.bin"), second = read_file(dir / "train_000001.bin");
    EXPECT_TRUE(first == shard_bytes(20240520, 1, 4, {5, 6, 7, 8}));
    EXPECT_TRUE(second == shard_bytes(20240520, 1, 2, {9, 65534}));
    EXPECT_EQ(entries[0].crc32, crc32_of(first.data(), first.size()));
    EXPECT_EQ(entries[1].crc32, crc32_of(second.data(), second.size()));
}

TEST(Shards, DatasetIsReadBack) {
    TempDir dir;
    make_dataset(dir / "d", 1000, 300);
    Dataset data = open_dataset(dir / "d");
    EXPECT_FALSE(data.bare);
    EXPECT_EQ(data.vocab_size, 257);
    EXPECT_EQ(data.eot_id, 256);
    ASSERT_EQ(data.train.shards.size(), 4u);
    EXPECT_EQ(data.train.tokens, 1000);
    EXPECT_EQ(data.train.documents, 3);
    EXPECT_DOUBLE_EQ(data.train.bytes_per_token(), 0.9);
    EXPECT_EQ(data.val.tokens, 10);
    for (int i = 0; i < 1000; i++) ASSERT_EQ(data.train.shards[size_t(i / 300)].tokens[i % 300], i % 257);
    verify_dataset(data);
    check_vocabulary(data, 257);
    expect_input_error([&] { check_vocabulary(data, 50257); }, "vocabulary of 257, the model one of 50257");
}

TEST(Shards, BadShardsAreNamed) {
    TempDir dir;
    auto error_for = [&](const std::string& bytes, const std::string& part) {
        write_file_atomic(dir / "x.bin", bytes);
        expect_input_error([&] { open_dataset(dir / "x.bin"); }, part);
        expect_input_error([&] { open_dataset(dir / "x.bin"); }, "x.bin");
    };
    error_for("", "is empty");
    error_for("short", "less than a shard's header");
    error_for(shard_bytes(20240521, 1, 2, {1, 2}), "not a token shard");
    error_for(shard_bytes(20240520, 2, 2, {1, 2}), "version 2");
    error_for(shard_bytes(20240520, 1, 0, {}), "no tokens");
    error_for(shard_bytes(20240520, 1, -5, {}), "no tokens");
    error_for(shard_bytes(20240520, 1, 3, {1, 2}), "is truncated");
    error_for(shard_bytes(20240520, 1, 1, {1, 2}), "too long");
    error_for(shard_bytes(20240520, 1, 3, {1, 50257, 2}), "token 1 is 50257");
    expect_input_error([&] { open_dataset(dir / "nothing.bin"); }, "there is no data at");
    expect_input_error([&] { open_dataset(dir / "no_*.bin"); }, "there is no data at");
    expect_input_error([&] { open_dataset(dir.path); }, "has no dataset.json");
}

TEST(Shards, BareShardsAndPatternsAreGpt2) {
    TempDir dir;
    write_file_atomic(dir / "b_1.bin", shard_bytes(20240520, 1, 2, {3, 50256}));
    write_file_atomic(dir / "b_0.bin", shard_bytes(20240520, 1, 3, {0, 1, 2}));
    Dataset one = open_dataset(dir / "b_1.bin");
    EXPECT_TRUE(one.bare);
    EXPECT_EQ(one.vocab_size, 50257);
    EXPECT_EQ(one.eot_id, 50256);
    EXPECT_EQ(one.train.tokens, 2);
    Dataset both = open_dataset(dir / "b_*.bin");
    ASSERT_EQ(both.train.shards.size(), 2u);
    EXPECT_EQ(both.train.shards[0].count, 3);  // sorted by name
    EXPECT_EQ(both.train.tokens, 5);
    EXPECT_TRUE(both.val.shards.empty());
}

// Resident kilobytes of the file's mapping in this process.
int64_t resident_kilobytes(const std::string& file) {
    std::istringstream lines(read_file("/proc/self/smaps"));
    bool mine = false;
    int64_t sum = 0;
    for (std::string line; std::getline(lines, line);) {
        const bool begins = line.find(' ') < line.find(':');  // "7f00-7f10 r--s ... file", not "Rss:  4 kB"
        if (begins) mine = line.ends_with(file);
        if (mine && line.starts_with("Rss:")) sum += std::stoll(line.substr(4));
    }
    return sum;
}

TEST(Shards, WhatNobodyReadsIsNotLoaded) {
    TempDir dir;
    const std::string file = dir / "big.bin";
    constexpr int tokens = 32 << 20;
    std::string bytes = shard_bytes(20240520, 1, tokens, {});
    bytes.resize(bytes.size() + size_t(2 * tokens));
    bytes.back() = char(0xff);  // no token of GPT-2
    write_file_atomic(file, bytes);
    const Dataset data = open_dataset(file, false);
    const Loader loader(data.train, 64, 1, true);
    std::vector<int32_t> read(64), targets(64);
    for (int64_t sample = 0; sample < 4; sample++) loader.fill(read.data(), targets.data(), 1, sample);
    EXPECT_GT(resident_kilobytes(file), 0);
    EXPECT_LT(resident_kilobytes(file), 32 * 1024) << "of 64 MB; a kernel may map 2 MB around each byte";
    expect_input_error([&] { open_dataset(file); }, str("token ", tokens - 1, " is 65280"));
}

TEST(Shards, DamagedDatasetsAreNamed) {
    TempDir dir;
    std::string d = dir / "d", json = d + "/dataset.json";
    auto fresh = [&] {
        std::filesystem::remove_all(d);
        make_dataset(d, 100, 60);
    };
    auto expect = [&](const std::string& part) { expect_input_error([&] { open_dataset(d); }, part); };
    fresh(), std::filesystem::remove(d + "/train_000001.bin"), expect("train_000001.bin");
    fresh(), std::filesystem::remove(d + "/tokenizer.tiktoken"), expect("tokenizer.tiktoken");
    fresh(), write_file_atomic(d + "/tokenizer.tiktoken", "IQ== 0\n"), expect("its checksum differs");
    fresh(), write_file_atomic(json, "{\"format_version\": 1, "), expect("dataset.json is damaged");
    fresh(), write_file_atomic(json, "[1]"), expect("dataset.json is damaged");
    fresh(), write_file_atomic(json, std::string(100000, '[')), expect("nested deeper than 64");
    fresh(), edit_json(json, [](auto& j) { j["format_version"] = 9; }), expect("format version 9");
    fresh(), edit_json(json, [](auto& j) { j["splits"].erase("train"); }), expect("dataset.json is damaged");
    fresh(), edit_json(json, [](auto& j) { j["splits"]["train"]["tokens"] = 7; }), expect("not the sum");
    fresh(), edit_json(json, [](auto& j) { j["splits"]["train"]["shards"][0]["tokens"] = 7; }),
        expect("mixes two datasets");
    fresh(), edit_json(json, [](auto& j) { j["splits"]["train"]["shards"][0]["crc32"] = "xyz"; }),
        expect("checksum of 8");
    fresh(), edit_json(json, [](auto& j) { j["tokenizer"]["vocab_size"] = 70000; }), expect("70000");
    fresh(), edit_json(json, [](auto& j) { j["tokenizer"]["eot_id"] = 257; }), expect("end-of-text 257");

    fresh();  // a flipped bit is found by verify
    std::string bytes = read_file(d + "/val_000000.bin");
    bytes[1026] ^= 1;
    write_file_atomic(d + "/val_000000.bin", bytes);
    expect_input_error([&] { verify_dataset(open_dataset(d)); }, "val_000000.bin is damaged");
}

TEST(Shards, ImpossibleShardSizesAreRefused) {
    expect_input_error([] { ShardWriter(".", "train", 0); }, "shards of 0 tokens");
    expect_input_error([] { ShardWriter(".", "train", int64_t(1) << 31); }, "2147483647");
}
