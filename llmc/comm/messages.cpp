#include "llmc/comm/messages.h"

#include <algorithm>
#include <cstring>

namespace llmc {

namespace {

constexpr std::string_view hello_magic = "mot.cu/1", welcome_magic = "welcome1";
constexpr size_t host_bytes = 68, words_bytes = 252;

template <class T>
void put(std::string& bytes, T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// A text in a field of this size: cut off if it is too long, and zeros behind it, at least one.
void put_text(std::string& bytes, const std::string& text, size_t field) {
    const size_t size = std::min(text.size(), field - 1);
    bytes.append(text, 0, size).append(field - size, '\0');
}

template <class T>
T take(std::string_view& bytes) {
    T value;
    std::memcpy(&value, bytes.data(), sizeof value);
    bytes.remove_prefix(sizeof value);
    return value;
}

bool take_magic(std::string_view& bytes, std::string_view magic) {
    if (!bytes.starts_with(magic)) return false;
    bytes.remove_prefix(magic.size());
    return true;
}

// The text of a field that fills the rest of the message; nothing if no zero ends it.
std::optional<std::string> take_text(std::string_view bytes) {
    const size_t end = bytes.find('\0');
    if (end == bytes.npos) return std::nullopt;
    return std::string(bytes.substr(0, end));
}

}  // namespace

std::string bytes_of(const Hello& hello) {
    std::string bytes(hello_magic);
    put(bytes, hello.job), put(bytes, hello.rank), put(bytes, hello.size), put(bytes, hello.line);
    put_text(bytes, hello.host, host_bytes);
    return bytes;
}

std::optional<Hello> read_hello(std::string_view bytes) {
    if (bytes.size() != hello_bytes || !take_magic(bytes, hello_magic)) return std::nullopt;
    Hello hello;
    hello.job = take<uint64_t>(bytes);
    hello.rank = take<int32_t>(bytes), hello.size = take<int32_t>(bytes), hello.line = take<int32_t>(bytes);
    auto host = take_text(bytes);
    // It is printed: nothing may move the cursor of a terminal.
    if (!host || !std::all_of(host->begin(), host->end(), [](char c) { return c >= ' ' && c <= '~'; }))
        return std::nullopt;
    hello.host = *std::move(host);
    return hello;
}

std::string bytes_of(const Welcome& welcome) {
    std::string bytes(welcome_magic);
    put(bytes, welcome.job);
    return bytes;
}

std::optional<Welcome> read_welcome(std::string_view bytes) {
    if (bytes.size() != welcome_bytes || !take_magic(bytes, welcome_magic)) return std::nullopt;
    return Welcome{take<uint64_t>(bytes)};
}

std::string bytes_of(const LastWords& words) {
    std::string bytes;
    put(bytes, words.exit_code);
    put_text(bytes, words.text, words_bytes);
    return bytes;
}

std::optional<LastWords> read_last_words(std::string_view bytes) {
    if (bytes.size() != last_words_bytes) return std::nullopt;
    LastWords words;
    words.exit_code = take<int32_t>(bytes);
    auto text = take_text(bytes);
    if (!text || words.exit_code < LastWords::goodbye || words.exit_code > 255) return std::nullopt;
    words.text = *std::move(text);
    return words;
}

std::string bytes_of(std::span<const int64_t> lengths) {
    return {reinterpret_cast<const char*>(lengths.data()), lengths.size_bytes()};
}

std::optional<std::vector<int64_t>> read_lengths(std::string_view bytes) {
    if (bytes.size() % sizeof(int64_t)) return std::nullopt;
    std::vector<int64_t> lengths;
    while (!bytes.empty()) {
        lengths.push_back(take<int64_t>(bytes));
        if (lengths.back() < 0 || lengths.back() > longest_text) return std::nullopt;
    }
    return lengths;
}

}  // namespace llmc
