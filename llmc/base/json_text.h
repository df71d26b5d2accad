// JSON that others may have written: parsed only if it is not nested so deeply that copying or printing it, which
// recurses, could overflow the stack.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "llmc/base/errors.h"

namespace llmc {

inline constexpr int deepest_json = 64;  // brackets in brackets; our own files have 6

// True if brackets outside of strings are nested deeper than deepest_json. The text may be anything.
bool nested_too_deeply(std::string_view json);

// InputError, which begins with `name`, if the text is nested too deeply or is not JSON.
template <class Json = nlohmann::json>
Json parse_json(std::string_view text, const std::string& name,
                const typename Json::parser_callback_t& callback = nullptr) {
    if (nested_too_deeply(text)) input_error(name, " is damaged: its JSON is nested deeper than ", deepest_json);
    try {
        return Json::parse(text, callback);
    } catch (const typename Json::exception& error) {
        input_error(name, " is damaged: it is not valid JSON (", error.what(), ")");
    }
}

// Null where parse_json would throw.
nlohmann::json parse_json_or_null(std::string_view text);

}  // namespace llmc
