// What processes without MPI tell each other by TCP, as bytes, and back. Reading is a pure function of the bytes: it
// believes none of them, and gives nothing where they are no such message. All numbers are little-endian.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llmc {

// The longest text of one rank in all_gather. The longest that is sent lists the parts of a checkpoint, 24 bytes each.
inline constexpr int64_t longest_text = int64_t(64) << 20;

// What a process says first on each of its connections. Whoever says something else is a stranger.
struct Hello {
    uint64_t job = 0;
    int32_t rank = 0, size = 0, line = 0;
    std::string host;  // printable; cut off if it is too long
};
inline constexpr size_t hello_bytes = 96;
std::string bytes_of(const Hello& hello);
std::optional<Hello> read_hello(std::string_view bytes);

// Rank 0's answer.
struct Welcome {
    uint64_t job = 0;
};
inline constexpr size_t welcome_bytes = 16;
std::string bytes_of(const Welcome& welcome);
std::optional<Welcome> read_welcome(std::string_view bytes);

// The last words on a life line. No text: the rank has said itself why it ends, or all is well.
struct LastWords {
    static constexpr int32_t goodbye = -1;
    int32_t exit_code = goodbye;
    std::string text;  // cut off if it is too long
};
inline constexpr size_t last_words_bytes = 256;
std::string bytes_of(const LastWords& words);
std::optional<LastWords> read_last_words(std::string_view bytes);

// The lengths of texts that follow, 8 bytes each and at most longest_text.
std::string bytes_of(std::span<const int64_t> lengths);
std::optional<std::vector<int64_t>> read_lengths(std::string_view bytes);

}  // namespace llmc
