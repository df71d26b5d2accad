// The messages of processes without MPI: written and read alike, and nothing else is taken for one.
#include <gtest/gtest.h>

#include "llmc/comm/messages.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace llmc::test {
namespace {

TEST(Messages, AreReadAsTheyWereWritten) {
    const auto hello = read_hello(bytes_of(Hello{7, 3, 5, 1, "node03"}));
    ASSERT_TRUE(hello);
    EXPECT_EQ(hello->job, 7u);
    EXPECT_EQ(hello->rank, 3);
    EXPECT_EQ(hello->size, 5);
    EXPECT_EQ(hello->line, 1);
    EXPECT_EQ(hello->host, "node03");
    EXPECT_EQ(read_welcome(bytes_of(Welcome{9}))->job, 9u);
    const auto words = read_last_words(bytes_of(LastWords{2, "the shard is gone"}));
    ASSERT_TRUE(words);
    EXPECT_EQ(words->exit_code, 2);
    EXPECT_EQ(words->text, "the shard is gone");
    EXPECT_EQ(read_last_words(bytes_of(LastWords{}))->exit_code, LastWords::goodbye);
    const std::vector<int64_t> lengths = {0, 5, longest_text};
    EXPECT_EQ(read_lengths(bytes_of(lengths)), lengths);
}

TEST(Messages, LongTextsAreCutOff) {
    EXPECT_EQ(bytes_of(Hello{.host = std::string(1000, 'h')}).size(), hello_bytes);
    EXPECT_EQ(read_hello(bytes_of(Hello{.host = std::string(1000, 'h')}))->host, std::string(67, 'h'));
    EXPECT_EQ(bytes_of(LastWords{1, std::string(1000, 't')}).size(), last_words_bytes);
    EXPECT_EQ(read_last_words(bytes_of(LastWords{1, std::string(1000, 't')}))->text, std::string(251, 't'));
}

TEST(Messages, OfAnotherSizeAreNone) {
    const std::string hello = bytes_of(Hello{}), welcome = bytes_of(Welcome{}), words = bytes_of(LastWords{});
    for (size_t size = 0; size <= 300; size++) {
        auto cut = [&](std::string bytes) {
            bytes.resize(size);
            return bytes;
        };
        EXPECT_EQ(read_hello(cut(hello)).has_value(), size == hello_bytes);
        EXPECT_EQ(read_welcome(cut(welcome)).has_value(), size == welcome_bytes);
        EXPECT_EQ(read_last_words(cut(words)).has_value(), size == last_words_bytes);
        EXPECT_EQ(read_lengths(std::string(size, 0)).has_value(), size % 8 == 0);
    }
}

TEST(Messages, OfStrangersAreNone) {
    std::string hello = bytes_of(Hello{.host = "node"});
    hello[0] = 'M';
    EXPECT_FALSE(read_hello(hello));
    EXPECT_FALSE(read_hello(bytes_of(Hello{.host = "\033[2J"}))) << "it would be printed";
    EXPECT_FALSE(read_hello(bytes_of(Hello{}).substr(0, hello_bytes - 68) + std::string(68, 'x'))) << "no zero";
    EXPECT_FALSE(read_welcome(std::string(welcome_bytes, 'x')));
}

TEST(Messages, TextsWithoutAnEndAndImpossibleNumbersAreNone) {
    EXPECT_FALSE(read_last_words(std::string(4, 0) + std::string(252, 'x')));
    EXPECT_TRUE(read_last_words(std::string(4, 0) + std::string(251, 'x') + std::string(1, 0)));
    for (int code : {-2, 256}) EXPECT_FALSE(read_last_words(bytes_of(LastWords{code, ""})));
    for (int64_t length : {int64_t(-1), longest_text + 1, int64_t(10) << 30, INT64_MIN})
        EXPECT_FALSE(read_lengths(bytes_of(std::vector{int64_t(3), length})));
}

// What the fuzzer does, for a moment: bytes of messages with some of them changed.
TEST(Messages, AnyBytesAreReadOrRefused) {
    uint64_t state = 1;
    auto next = [&] { return state = state * 6364136223846793005u + 1442695040888963407u, size_t(state >> 33); };
    for (const std::string& whole : {bytes_of(Hello{1, 2, 3, 0, "host"}), bytes_of(Welcome{1}),
                                     bytes_of(LastWords{1, "text"}), bytes_of(std::vector<int64_t>{1, 2})})
        for (int round = 0; round < 2000; round++) {
            std::string bytes = whole;
            for (size_t changes = next() % 4; changes > 0; changes--) bytes[next() % bytes.size()] = char(next());
            if (next() % 4 == 0) bytes.resize(next() % 300);
            LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
        }
}

}  // namespace
}  // namespace llmc::test

#include "dev/fuzz/fuzz_messages.cpp"
