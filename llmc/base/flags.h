// What command lines need beside CLI11's own options.
#pragma once
#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "llmc/base/words.h"

namespace llmc {

// A check for options with a range: every comparison with NaN is false, so no range excludes it.
inline std::string refuse_nan(const std::string& text) {
    return text.find("nan") == std::string::npos && text.find("NaN") == std::string::npos
               ? std::string()
               : str(text, " is not a number");
}

template <class T>
struct ValueOf {
    using type = T;
};
template <class T>
struct ValueOf<std::optional<T>> {
    using type = T;
};

// Adds a flag whose value is a word of an enum E. `field` is an E or an std::optional<E>. choices: the words that are
// allowed; none given: all of E.
template <class Field>
CLI::Option* add_word(CLI::App& app, const std::string& flag, Field& field, const std::string& help,
                      std::vector<std::string> choices = {}) {
    using E = typename ValueOf<Field>::type;
    if (choices.empty()) choices = all_words<E>();
    return app
        .add_option_function<std::string>(
            flag, [&field](const std::string& word) { field = from_word<E>(word); }, help)
        ->check(CLI::IsMember(choices));
}

}  // namespace llmc
