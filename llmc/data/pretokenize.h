// GPT-2's pre-tokenisation: text is split into words, numbers, punctuation and white space before BPE merges, so that
// no token contains parts of two of them. Equal to matching, over code points, the pattern
//
//     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// of Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace llmc {

// The four classes of code points in the pattern: \s (Unicode White_Space), \p{L}, \p{N}, and everything else
// (punctuation, symbols, combining marks, controls, unassigned).
enum class CharClass : uint8_t { other, letter, number, space };

CharClass class_of(uint32_t code_point);

// The end of the pre-token that starts at byte `begin` of valid UTF-8 text; begin < text.size().
size_t pretoken_end(std::string_view text, size_t begin);

// The text itself if it is valid UTF-8; otherwise a copy (made in `storage`) where every maximal invalid part is
// U+FFFD, as the Unicode standard recommends (chapter 3.9) and Python's errors="replace" does.
std::string_view valid_utf8(std::string_view text, std::string& storage);

}  // namespace llmc
