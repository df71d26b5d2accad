// Reads and writes structs whose fields are listed by a visitor (see ModelConfig), so that one list serves flags, JSON
// and comparison.
#pragma once
#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <type_traits>

#include "llmc/base/errors.h"

namespace llmc {

// A check of CLI11 for options with a range: every comparison with NaN is false, so no range excludes it.
inline std::string refuse_nan(const std::string& text) {
    return text.find("nan") == std::string::npos && text.find("NaN") == std::string::npos
               ? std::string()
               : str(text, " is not a number");
}

// The fields as a JSON object. visit(f) must call f(info, field) for every field; info.name is the key.
template <class Visit>
nlohmann::json fields_to_json(Visit&& visit) {
    nlohmann::json json = nlohmann::json::object();
    visit([&](const auto& info, const auto& field) { json[info.name] = field; });
    return json;
}

// InputError unless a word is one of info.choices (if there are any) and a number lies in [info.least, info.most].
template <class Info, class T>
void check_field(const Info& info, const T& field, const std::string& where) {
    if constexpr (std::is_same_v<T, std::string>) {
        if (info.choices.empty() || std::find(info.choices.begin(), info.choices.end(), field) != info.choices.end())
            return;
        std::string known;
        for (const std::string& choice : info.choices) known += (known.empty() ? "" : ", ") + choice;
        input_error(where, ": the field \"", info.name, "\" is \"", field, "\", not one of ", known);
    } else if constexpr (!std::is_same_v<T, bool>) {
        if (!(double(field) >= info.least && double(field) <= info.most))
            input_error(where, ": the field \"", info.name, "\" is ", field, ", not between ", info.least, " and ",
                        info.most);
    }
}

// Sets the fields that `json` has. A missing field keeps its default, because it may be newer than the file. InputError
// naming the key and `where` for a wrong type, a value outside its range, or an unknown key.
template <class Visit>
void fields_from_json(Visit&& visit, const nlohmann::json& json, const std::string& where) {
    if (!json.is_object()) input_error(where, ": the configuration is not a JSON object");
    std::set<std::string> known;
    visit([&](const auto& info, auto& field) {
        known.insert(info.name);
        if (!json.contains(info.name)) return;
        try {
            json.at(info.name).get_to(field);
        } catch (const nlohmann::json::exception&) {
            input_error(where, ": the field \"", info.name, "\" has the wrong type: ", json.at(info.name).dump());
        }
        check_field(info, field, where);
    });
    for (const auto& [key, value] : json.items())
        if (!known.count(key)) input_error(where, ": unknown field \"", key, "\"");
}

}  // namespace llmc
