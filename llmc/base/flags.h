// What command lines need beside CLI11's own options.
#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <istream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "llmc/base/words.h"

namespace llmc {

// Transforms of options, `->transform(whole_number(0, 4096))`: the value is one decimal number in this range, or it is
// refused. CLI11 by itself reads 010 as 8 and 0x10 as 16, and turns what is too large into the largest number there is.
CLI::Validator whole_number(int64_t least = 0, int64_t most = INT64_MAX);
CLI::Validator real_number(double least = 0, double most = 1e308);

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

// "there is no flag --lrr; did you mean --lr?", without the question if no flag of the app is at most two letters away.
std::string no_such_flag(const CLI::App& app, const std::string& flag);

// Reads --config files by config_file.h for an app, and remembers where each flag was set.
class ConfigReader : public CLI::Config {
public:
    explicit ConfigReader(const CLI::App& app) : app(app) {}
    std::vector<CLI::ConfigItem> from_config(std::istream& file) const override;
    std::string to_config(const CLI::App*, bool, bool, std::string) const override { return ""; }
    // "file:3: " for a sentence about a flag that the file has set, else "".
    std::string place_of(const std::string& flag) const;

private:
    const CLI::App& app;
    mutable std::map<std::string, std::string> places;  // from_config is const in CLI11
};

}  // namespace llmc
