// The tokenizer against ids on which six independent tokenizers agree, and the BPE trainer against a naive one.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "dev/test/refusal.h"
#include "llmc/base/errors.h"
#include "llmc/base/files.h"
#include "llmc/data/bpe_train.h"
#include "llmc/data/pretokenize.h"
#include "llmc/data/tokenizer.h"

using namespace llmc;
using llmc::test::refusal;

namespace {

const Tokenizer& gpt2() {
    static const Tokenizer tokenizer = Tokenizer::load("data/gpt2.tiktoken.gz");
    return tokenizer;
}

std::string from_hex(const std::string& hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2) bytes += char(std::stoi(hex.substr(i, 2), nullptr, 16));
    return bytes;
}

// Every line of a golden file: encode (plain and cached) gives its ids, decode gives its bytes back.
int check_golden(const std::string& path, const char* ids_key) {
    std::ifstream file(path);
    EXPECT_TRUE(file) << path;
    Encoder encoder(gpt2());
    int cases = 0;
    for (std::string line; std::getline(file, line); cases++) {
        auto json = nlohmann::json::parse(line);
        std::string text = from_hex(json["utf8_hex"]);
        auto expected = json[ids_key].get<std::vector<uint16_t>>();
        EXPECT_EQ(gpt2().encode(text), expected) << line;
        for (int pass = 0; pass < 2; pass++) {  // the second finds its pre-tokens in the cache
            std::vector<uint16_t> ids = {7};
            encoder.encode(text, ids);
            EXPECT_EQ(std::vector<uint16_t>(ids.begin() + 1, ids.end()), expected) << line;
        }
        std::vector<int32_t> wide(expected.begin(), expected.end());
        EXPECT_EQ(gpt2().decode(wide), text) << line;
    }
    return cases;
}

// tiktoken's own formulation, quadratic: among adjacent parts, merge those whose joined bytes have the lowest rank.
std::vector<uint16_t> naive_merge(const std::map<std::string, int>& ranks, const std::string& pretoken) {
    std::vector<std::string> parts;
    for (char c : pretoken) parts.emplace_back(1, c);
    for (;;) {
        int best = INT32_MAX;
        size_t where = 0;
        for (size_t i = 0; i + 1 < parts.size(); i++) {
            auto found = ranks.find(parts[i] + parts[i + 1]);
            if (found != ranks.end() && found->second < best) best = found->second, where = i;
        }
        if (best == INT32_MAX) break;
        parts[where] += parts[where + 1];
        parts.erase(parts.begin() + ptrdiff_t(where) + 1);
    }
    std::vector<uint16_t> ids;
    for (auto& part : parts) ids.push_back(uint16_t(ranks.at(part)));
    return ids;
}

std::map<std::string, int> ranks_of(const Tokenizer& tokenizer) {
    std::map<std::string, int> ranks;
    for (int32_t id = 0; id < tokenizer.eot_id(); id++) ranks[tokenizer.decode({&id, 1})] = id;
    return ranks;
}

}  // namespace

TEST(Tokenizer, VocabularyIsTheKnownFile) {
    EXPECT_EQ(gpt2().vocab_size(), 50257);
    EXPECT_EQ(gpt2().eot_id(), 50256);
    EXPECT_EQ(gpt2().rank_file().size(), 835554u);
    // crc32 of the file whose SHA-256 is 306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930.
    EXPECT_EQ(hex32(gpt2().crc32()), "b23bc7c5");
    int32_t eot = 50256;
    EXPECT_EQ(gpt2().decode({&eot, 1}), "<|endoftext|>");
}

TEST(Tokenizer, GoldenTexts) {
    EXPECT_EQ(check_golden("dev/test/data/gpt2_golden.jsonl", "tokens"), 1000);
    EXPECT_EQ(check_golden("dev/test/data/gpt2_golden_u0085.jsonl", "right"), 8);
}

TEST(Tokenizer, InvalidBytesBecomeReplacementCharacters) {
    EXPECT_EQ(gpt2().encode("\xff"), std::vector<uint16_t>{4210});
    EXPECT_EQ(gpt2().encode("\xef\xbf\xbd"), std::vector<uint16_t>{4210});
    std::string s;
    // Expected: Python's bytes.decode("utf-8", "replace").
    EXPECT_EQ(valid_utf8("a\xffz", s), "a\xef\xbf\xbdz");
    EXPECT_EQ(valid_utf8("\xe2\x82", s), "\xef\xbf\xbd");                                  // cut short: one
    EXPECT_EQ(valid_utf8("\xe2\x82x", s), "\xef\xbf\xbdx");
    EXPECT_EQ(valid_utf8("\xed\xa0\x80", s), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");      // a surrogate: three
    EXPECT_EQ(valid_utf8("\xc0\xaf", s), "\xef\xbf\xbd\xef\xbf\xbd");                      // overlong: two
    EXPECT_EQ(valid_utf8("\xf4\x90\x80\x80", s), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
    EXPECT_EQ(valid_utf8("12345678\xf0\x9f\x98\x80!", s), "12345678\xf0\x9f\x98\x80!");
    EXPECT_EQ(valid_utf8("", s), "");
}

TEST(Tokenizer, LongAndShortMergesAgreeWithANaiveOne) {
    auto ranks = ranks_of(gpt2());
    std::mt19937 random(1);
    for (int i = 0; i < 90; i++) {
        std::string text;
        size_t length = 1 + random() % (i < 60 ? 40 : 150);  // both sides of the switch at 64 bytes
        const char* alphabet = i % 3 == 0 ? "etaonish" : i % 3 == 1 ? "-" : "=-*_";
        for (size_t k = 0; k < length; k++) text += alphabet[random() % std::strlen(alphabet)];
        std::vector<uint16_t> ids;
        gpt2().merge(text, ids);
        EXPECT_EQ(ids, naive_merge(ranks, text)) << text;
    }
    EXPECT_LT(gpt2().encode(std::string(1 << 18, '-')).size(), size_t(1) << 13);  // would never end if quadratic
}

TEST(Tokenizer, RandomBytesSurviveEncodeAndDecode) {
    std::mt19937 random(2);
    Encoder encoder(gpt2());
    for (int i = 0; i < 200; i++) {
        std::string text, storage;
        for (size_t k = 0; k < 100; k++) text += char(random() % (i % 2 ? 256 : 128));
        std::vector<uint16_t> ids;
        encoder.encode(text, ids);
        EXPECT_EQ(ids, gpt2().encode(text));
        EXPECT_EQ(gpt2().decode(std::vector<int32_t>(ids.begin(), ids.end())), valid_utf8(text, storage));
    }
}

TEST(Tokenizer, BadRankFilesAreNamed) {
    auto error = [](const std::string& ranks) { return refusal([&] { Tokenizer::from_ranks(ranks, "v"); }); };
    EXPECT_NE(error("<html>").find("v: line 1 is not"), std::string::npos);
    EXPECT_NE(error("IQ== 0\nIg== 2\n").find("v: line 2 has rank 2 where 1"), std::string::npos);
    EXPECT_NE(error("IQ== 0\n").find("v has 1 tokens"), std::string::npos);
    EXPECT_NE(error("ISE= 0\n").find("single bytes"), std::string::npos);
    EXPECT_NE(error("").find("v has 0 tokens"), std::string::npos);
    std::string bytes = BpeTrainer().train(257);
    EXPECT_NE(error(bytes + "YWJj 256\n").find("line 257: this token is not a concatenation of two"),
              std::string::npos);
    EXPECT_NE(error(bytes + "YWI= 256\nYWI= 257\n").find("line 258 repeats"), std::string::npos);
    EXPECT_NE(refusal([] { Tokenizer::load("/nonexistent/x"); }).find("/nonexistent/x"), std::string::npos);
    int32_t id = 50257;
    EXPECT_NE(refusal([&] { gpt2().decode({&id, 1}); }).find("50257"), std::string::npos);
}

TEST(BpeTrain, BytesComeInGpt2Order) {
    std::string ranks = BpeTrainer().train(257);
    EXPECT_EQ(ranks, gpt2().rank_file().substr(0, ranks.size()));
    EXPECT_EQ(Tokenizer::from_ranks(ranks, "bytes").vocab_size(), 257);
}

// The textbook algorithm: recount every pair of every word for each merge.
TEST(BpeTrain, EqualsRecountingEverything) {
    std::mt19937 random(3);
    std::map<std::string, int64_t> words;  // the pre-tokens, for the naive trainer
    BpeTrainer trainer;
    for (int i = 0; i < 1000; i++) {
        std::string word = " ";
        size_t length = 1 + random() % 7;
        for (size_t k = 0; k < length; k++) word += "aaabbcde"[random() % 8];
        words[word]++;
        trainer.add(word);
    }
    constexpr int vocab = 257 + 150;
    Tokenizer trained = Tokenizer::from_ranks(trainer.train(vocab), "trained");
    ASSERT_EQ(trained.vocab_size(), vocab);

    std::vector<std::pair<std::vector<int32_t>, int64_t>> split;
    Tokenizer bytes = Tokenizer::from_ranks(BpeTrainer().train(257), "bytes");
    for (auto& [word, count] : words) {
        auto ids = bytes.encode(word);
        split.push_back({{ids.begin(), ids.end()}, count});
    }
    for (int32_t id = 256; id < vocab - 1; id++) {
        std::map<std::pair<int32_t, int32_t>, int64_t> counts;
        for (auto& [ids, count] : split)
            for (size_t i = 0; i + 1 < ids.size(); i++) counts[{ids[i], ids[i + 1]}] += count;
        auto best = counts.begin();  // the map is sorted by ids: the first of equal counts has the lowest
        for (auto it = counts.begin(); it != counts.end(); ++it)
            if (it->second > best->second) best = it;
        std::vector<int32_t> pair = {best->first.first, best->first.second};
        ASSERT_EQ(trained.decode({&id, 1}), trained.decode(pair)) << "merge " << id - 256;
        for (auto& [ids, count] : split)
            for (size_t i = 0; i + 1 < ids.size(); i++)
                if (ids[i] == pair[0] && ids[i + 1] == pair[1]) ids[i] = id, ids.erase(ids.begin() + ptrdiff_t(i) + 1);
    }
}

TEST(BpeTrain, TooLittleTextIsNamed) {
    BpeTrainer trainer;
    trainer.add("abc abc");
    std::string error = refusal([&] { trainer.train(1000); });
    EXPECT_NE(error.find("1000"), std::string::npos) << error;
    EXPECT_NE(refusal([&] { BpeTrainer().train(100); }).find("257"), std::string::npos);
    EXPECT_NE(refusal([&] { BpeTrainer().train(70000); }).find("65535"), std::string::npos);
}
