#include "llmc/base/config_file.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <sstream>

#include "llmc/base/errors.h"

namespace llmc {

namespace {

constexpr const char* blanks = " \t\r";
constexpr const char* letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";

std::string trimmed(const std::string& text) {
    const size_t begin = text.find_first_not_of(blanks);
    return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(blanks) - begin + 1);
}

// Without the comment at its end.
std::string uncommented(const std::string& text) {
    for (size_t i = 0; i < text.size(); i++)
        if (text[i] == '#' && (i == 0 || std::strchr(blanks, text[i - 1]))) return text.substr(0, i);
    return text;
}

// The value in what follows the `=`.
std::string value_of(const std::string& text, const std::string& where) {
    if (text.empty() || (text[0] != '"' && text[0] != '\'')) return trimmed(uncommented(text));
    const size_t end = text.find(text[0], 1);
    if (end == std::string::npos) input_error(where, "a quote is not closed: ", text);
    const std::string rest = trimmed(text.substr(end + 1));
    if (!rest.empty() && rest[0] != '#') input_error(where, "there is more after the quoted value: ", rest);
    return text.substr(1, end - 1);
}

// All of the stream, which may be a pipe.
std::string read_all(std::istream& file, const std::string& name) {
    constexpr std::streamsize most = 1 << 20;
    std::string text(size_t(most) + 1, '\0');
    file.read(text.data(), most + 1);
    if (file.bad()) input_error("cannot read ", name);
    if (file.gcount() > most) input_error(name, " has more than ", most >> 20, " MiB: it is no configuration file");
    text.resize(size_t(file.gcount()));
    return text;
}

}  // namespace

std::vector<Setting> read_settings(std::istream& file, const std::string& name) {
    std::istringstream lines(read_all(file, name));
    std::vector<Setting> settings;
    std::map<std::string, int> seen;
    int number = 0;
    for (std::string line; std::getline(lines, line);) {
        const std::string where = str(name, ":", ++number, ": ");
        if (number == 1 && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);  // some editors mark UTF-8 by this
        line = trimmed(line);
        if (line.empty() || line[0] == '#') continue;
        const size_t equals = line.find('=');
        std::string flag = trimmed(line.substr(0, equals));
        if (equals == std::string::npos || flag.empty() || flag.find_first_not_of(letters) != std::string::npos)
            input_error(where, "this is not `flag = value`: ", line);
        if (flag[0] == '-') input_error(where, "flags have no dashes before them here: ", flag);
        std::replace(flag.begin(), flag.end(), '_', '-');  // as run.json writes the same names
        if (const auto [first, fresh] = seen.emplace(flag, number); !fresh)
            input_error(where, flag, " is set in line ", first->second, " already");
        settings.push_back({flag, value_of(trimmed(line.substr(equals + 1)), where), number});
        if (settings.back().value.empty() && line.find_first_of("\"'") == std::string::npos)
            input_error(where, flag, " has no value: give one, or \"\" for an empty text");
    }
    return settings;
}

}  // namespace llmc
