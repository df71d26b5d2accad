#include "llmc/base/flags.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <utility>

#include "llmc/base/config_file.h"

namespace llmc {

namespace {

template <class T>
std::string too_small(const std::string& text, T least) {
    return str(text, " is too small, the least is ", least);
}
template <class T>
std::string too_large(const std::string& text, T most) {
    return str(text, " is too large, the most is ", most);
}
template <class T>
std::string refusal_of(const std::string& text, T value, T least, T most) {
    return value < least ? too_small(text, least) : value > most ? too_large(text, most) : "";
}

// Reads all of the text; invalid_argument if it is not one number.
template <class T>
std::errc read_number(const std::string& text, T& value) {
    const bool plus = text.starts_with('+') && !text.starts_with("+-");
    const char* end = text.c_str() + text.size();
    const auto [rest, error] = std::from_chars(text.c_str() + plus, end, value);
    return rest == end ? error : std::errc::invalid_argument;
}

// Why `text` is not such a number, or "" if it is: then it is written anew, without leading zeros.
std::string refusal_of_whole(std::string& text, int64_t least, int64_t most) {
    int64_t value = 0;
    double real = 0;
    switch (read_number(text, value)) {
        case std::errc::invalid_argument:
            return str('"', text, "\" is not a ",
                       read_number(text, real) == std::errc::invalid_argument ? "number" : "whole number");
        case std::errc::result_out_of_range:
            return text[0] == '-' ? too_small(text, least) : too_large(text, most);
        default:
            break;
    }
    const std::string refusal = refusal_of(text, value, least, most);
    if (refusal.empty()) text = std::to_string(value);
    return refusal;
}

std::string refusal_of_real(const std::string& text, double least, double most) {
    double value = 0;
    const std::errc error = read_number(text, value);
    if (error == std::errc::invalid_argument || std::isnan(value)) return str('"', text, "\" is not a number");
    if (error == std::errc::result_out_of_range) return str(text, " is too large or too small for a number");
    return refusal_of(text, value, least, most);
}

// How many letters to insert, leave out or change to make b of a (Levenshtein 1966).
size_t distance_of(const std::string& a, const std::string& b) {
    std::vector<size_t> row(b.size() + 1);  // row[j]: from the first i letters of a to the first j of b
    std::iota(row.begin(), row.end(), size_t(0));
    for (size_t i = 1; i <= a.size(); i++) {
        size_t diagonal = std::exchange(row[0], i);
        for (size_t j = 1; j <= b.size(); j++)
            diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])}));
    }
    return row[b.size()];
}

}  // namespace

std::string no_such_flag(const CLI::App& app, const std::string& flag) {
    const std::string name = flag.substr(flag.find_first_not_of('-'));
    std::string nearest;
    size_t least = 3;
    for (const CLI::Option* option : app.get_options())
        for (const std::string& other : option->get_lnames())
            if (const size_t distance = distance_of(name, other); distance < std::min(least, name.size()))
                least = distance, nearest = other;
    return "there is no flag " + flag + (nearest.empty() ? "" : "; did you mean --" + nearest + "?");
}

CLI::Validator whole_number(int64_t least, int64_t most) {
    return CLI::Validator([=](std::string& text) { return refusal_of_whole(text, least, most); }, "");
}

CLI::Validator real_number(double least, double most) {
    return CLI::Validator([=](std::string& text) { return refusal_of_real(text, least, most); }, "");
}

std::vector<CLI::ConfigItem> ConfigReader::from_config(std::istream& file) const {
    if (app.get_config_ptr()->count() > 1) input_error("--config is given twice: put all flags into one file");
    const auto path = app.get_config_ptr()->as<std::string>();
    std::vector<CLI::ConfigItem> items;
    for (const Setting& setting : read_settings(file, path)) {
        const std::string flag = "--" + setting.flag, place = str(path, ":", setting.line, ": ");
        const CLI::Option* option = app.get_option_no_throw(flag);
        if (!option || !option->get_configurable())
            input_error(place, option ? "a file cannot set " + flag : no_such_flag(app, flag));
        items.push_back({{}, setting.flag, {setting.value}});
        places[flag] = place;
    }
    return items;
}

std::string ConfigReader::place_of(const std::string& flag) const {
    const auto place = places.find(flag);
    return place == places.end() ? "" : place->second;
}

}  // namespace llmc
