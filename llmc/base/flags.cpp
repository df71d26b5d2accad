#include "llmc/base/flags.h"

#include <charconv>
#include <cmath>

#include "llmc/base/config_file.h"

namespace llmc {

namespace {

template <class T>
std::string refusal_of(const std::string& text, T value, T least, T most) {
    if (value < least) return str(text, " is too small, the least is ", least);
    if (value > most) return str(text, " is too large, the most is ", most);
    return "";
}

// Why `text` is not such a number, or "" if it is: then it is written anew, without leading zeros.
std::string refusal_of_whole(std::string& text, int64_t least, int64_t most) {
    const char* begin = text.c_str() + (text.starts_with('+') ? 1 : 0);
    const char* end = text.c_str() + text.size();
    int64_t value = 0;
    const auto [rest, error] = std::from_chars(begin, end, value);
    if (rest != end || begin == end || error == std::errc::invalid_argument) {
        double real = 0;
        const auto [last, other] = std::from_chars(begin, end, real);
        const bool number = last == end && begin != end && other != std::errc::invalid_argument;
        return str('"', text, number ? "\" is not a whole number" : "\" is not a number");
    }
    if (error == std::errc::result_out_of_range)
        return str(text, *begin == '-' ? " is too small, the least is " : " is too large, the most is ",
                   *begin == '-' ? least : most);
    const std::string refusal = refusal_of(text, value, least, most);
    if (refusal.empty()) text = std::to_string(value);
    return refusal;
}

std::string refusal_of_real(const std::string& text, double least, double most) {
    const char* begin = text.c_str() + (text.starts_with('+') ? 1 : 0);
    const char* end = text.c_str() + text.size();
    double value = 0;
    const auto [rest, error] = std::from_chars(begin, end, value);
    if (rest != end || begin == end || error == std::errc::invalid_argument || std::isnan(value))
        return str('"', text, "\" is not a number");
    if (error == std::errc::result_out_of_range) return str(text, " is too large or too small for a number");
    return refusal_of(text, value, least, most);
}

}  // namespace

CLI::Validator whole_number(int64_t least, int64_t most) {
    return CLI::Validator([=](std::string& text) { return refusal_of_whole(text, least, most); }, "");
}

CLI::Validator real_number(double least, double most) {
    return CLI::Validator([=](std::string& text) { return refusal_of_real(text, least, most); }, "");
}

std::vector<CLI::ConfigItem> ConfigReader::from_config(std::istream&) const {
    if (app.get_config_ptr()->count() > 1) input_error("--config is given twice: put all flags into one file");
    const auto path = app.get_config_ptr()->as<std::string>();
    std::vector<CLI::ConfigItem> items;
    for (const Setting& setting : read_config_file(path)) {
        const std::string flag = "--" + setting.flag, place = str(path, ":", setting.line, ": ");
        const CLI::Option* option = app.get_option_no_throw(flag);
        if (!option || !option->get_configurable())
            input_error(place, option ? "a file cannot set " : "there is no flag ", flag);
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
