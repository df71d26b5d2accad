// Enums whose values are words of flags and files. Such an enum lists its words once, in the order of its values:
//
//     enum class GroupAxis { batch, sequence };
//     template <> inline constexpr std::array words_of<GroupAxis> = {"batch", "sequence"};
#pragma once
#include <array>
#include <ostream>
#include <string>
#include <vector>

#include "llmc/base/errors.h"

namespace llmc {

template <class E>
inline constexpr std::array<const char*, 0> words_of = {};

template <class E>
concept HasWords = (words_of<E>.size() > 0);

template <HasWords E>
constexpr const char* name_of(E value) {
    return words_of<E>[size_t(value)];
}
template <HasWords E>
std::ostream& operator<<(std::ostream& out, E value) {
    return out << name_of(value);
}

// All values, in their order.
template <HasWords E>
constexpr auto values_of() {
    std::array<E, words_of<E>.size()> values{};
    for (size_t i = 0; i < values.size(); i++) values[i] = E(i);
    return values;
}

template <HasWords E>
std::vector<std::string> all_words() {
    return {words_of<E>.begin(), words_of<E>.end()};
}

// "batch, sequence"
inline std::string listed(const std::vector<std::string>& words) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
    return text;
}

// The value with this word. InputError that lists all words.
template <HasWords E>
E from_word(const std::string& word) {
    for (size_t i = 0; i < words_of<E>.size(); i++)
        if (word == words_of<E>[i]) return E(i);
    input_error("\"", word, "\" is not one of ", listed(all_words<E>()));
}

}  // namespace llmc
