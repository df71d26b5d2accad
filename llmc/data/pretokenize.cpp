#include "llmc/data/pretokenize.h"

#include <utf8proc.h>

#include <array>
#include <cstring>
#include <vector>

namespace llmc {

namespace {

using enum CharClass;

constexpr uint32_t code_points = 0x110000;

bool is_white_space(uint32_t c) {  // the 25 code points with Unicode's White_Space property
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
           c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// What utf8proc says, too slow to ask for every character of a corpus.
CharClass look_up_class(uint32_t c) {
    if (is_white_space(c)) return space;
    switch (utf8proc_category(utf8proc_int32_t(c))) {
        case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT:
        case UTF8PROC_CATEGORY_LM: case UTF8PROC_CATEGORY_LO:
            return letter;
        case UTF8PROC_CATEGORY_ND: case UTF8PROC_CATEGORY_NL: case UTF8PROC_CATEGORY_NO:
            return number;
        default:
            return other;
    }
}

// Two-level table: equal blocks of 256 code points are stored once (about 60 KB in all, so it stays in cache).
struct ClassTable {
    std::array<uint16_t, code_points / 256> block_of{};
    std::vector<std::array<CharClass, 256>> blocks;

    ClassTable() {
        for (uint32_t b = 0; b < block_of.size(); b++) {
            std::array<CharClass, 256> block;
            for (uint32_t i = 0; i < 256; i++) block[i] = look_up_class(b * 256 + i);
            size_t same = 0;
            while (same < blocks.size() && blocks[same] != block) same++;
            if (same == blocks.size()) blocks.push_back(block);
            block_of[b] = uint16_t(same);
        }
    }
    CharClass operator[](uint32_t c) const { return blocks[block_of[c >> 8]][c & 255]; }
};

const ClassTable& class_table() {
    static const ClassTable table;
    return table;
}

// ASCII needs no table look-up through memory that other text evicts, and it is nearly all of English.
constexpr std::array<CharClass, 128> ascii_class = [] {
    std::array<CharClass, 128> table{};
    for (int c = 0; c < 128; c++) {
        bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        bool is_space = c == ' ' || (c >= 9 && c <= 13);
        table[size_t(c)] = is_letter ? letter : c >= '0' && c <= '9' ? number : is_space ? space : other;
    }
    return table;
}();

// Class and length in bytes of the character at p, in valid UTF-8.
struct Char {
    CharClass cls;
    size_t length;
};

inline Char char_at(const char* text) {
    const auto* p = reinterpret_cast<const unsigned char*>(text);
    if (p[0] < 0x80) return {ascii_class[p[0]], 1};
    if (p[0] < 0xE0) return {class_table()[uint32_t(p[0] & 31) << 6 | (p[1] & 63)], 2};
    if (p[0] < 0xF0) return {class_table()[uint32_t(p[0] & 15) << 12 | uint32_t(p[1] & 63) << 6 | (p[2] & 63)], 3};
    uint32_t c = uint32_t(p[0] & 7) << 18 | uint32_t(p[1] & 63) << 12 | uint32_t(p[2] & 63) << 6 | (p[3] & 63);
    return {class_table()[c], 4};
}

// Length of the contraction ('s, 't, 're, ...) at an apostrophe; 0 if there is none. `left` counts the bytes from p on.
size_t contraction_length(const char* p, size_t left) {
    if (left < 2) return 0;
    if (p[1] == 's' || p[1] == 't' || p[1] == 'm' || p[1] == 'd') return 2;
    if (left < 3) return 0;
    bool two_letters = (p[1] == 'r' && p[2] == 'e') || (p[1] == 'v' && p[2] == 'e') || (p[1] == 'l' && p[2] == 'l');
    return two_letters ? 3 : 0;
}

// The end of the run of characters of one class that begins at p.
const char* run_end(const char* p, const char* end, CharClass cls) {
    while (p < end) {
        Char c = char_at(p);
        if (c.cls != cls) break;
        p += c.length;
    }
    return p;
}

// Bytes of the valid UTF-8 character at p, or minus the length of the longest invalid part to be replaced as one.
// Valid sequences: Unicode standard, table 3-7 (no overlong forms, no surrogates, nothing above U+10FFFF).
int utf8_length(const unsigned char* p, const unsigned char* end) {
    unsigned lead = p[0];
    if (lead < 0x80) return 1;
    int length = lead >= 0xC2 && lead <= 0xDF   ? 2
                 : lead >= 0xE0 && lead <= 0xEF ? 3
                 : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                : 0;
    if (length == 0) return -1;
    unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    for (int i = 1; i < length; i++, low = 0x80, high = 0xBF)
        if (p + i >= end || p[i] < low || p[i] > high) return -i;
    return length;
}

}  // namespace

CharClass class_of(uint32_t code_point) { return code_point < code_points ? class_table()[code_point] : other; }

size_t pretoken_end(std::string_view text, size_t begin) {
    const char* start = text.data() + begin;
    const char* end = text.data() + text.size();
    if (*start == '\'') {
        if (size_t n = contraction_length(start, size_t(end - start))) return begin + n;
    }
    // A single U+0020 goes in front of the run that follows it; no other white space does.
    const char* first = start + (*start == ' ' && start + 1 < end ? 1 : 0);
    Char c = char_at(first);
    if (c.cls != space) return size_t(run_end(first + c.length, end, c.cls) - text.data());

    // White space: all of it at the end of the text, else all but the last character, which the next pre-token may
    // take.
    size_t length_of_last = 0;
    const char* p = start;
    while (p < end) {
        c = char_at(p);
        if (c.cls != space) break;
        length_of_last = c.length;
        p += c.length;
    }
    if (p < end && p - length_of_last > start) p -= length_of_last;
    return size_t(p - text.data());
}

std::string_view valid_utf8(std::string_view text, std::string& storage) {
    const auto* begin = reinterpret_cast<const unsigned char*>(text.data());
    const auto* end = begin + text.size();
    const auto* copied = begin;  // everything before it is already in storage
    for (const auto* p = begin; p < end;) {
        uint64_t eight;
        if (end - p >= 8 && (std::memcpy(&eight, p, 8), (eight & 0x8080808080808080u) == 0)) {
            p += 8;
            continue;
        }
        int length = utf8_length(p, end);
        if (length > 0) {
            p += length;
            continue;
        }
        if (copied == begin) storage.clear();
        storage.append(copied, p).append("\xEF\xBF\xBD");
        p += -length;
        copied = p;
    }
    if (copied == begin) return text;
    storage.append(copied, end);
    return storage;
}

}  // namespace llmc
