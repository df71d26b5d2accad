#include "llmc/base/json_text.h"

namespace llmc {

bool nested_too_deeply(std::string_view json) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < json.size(); i++) {
        const char c = json[i];
        if (in_string) {
            if (c == '\\') i++;
            else if (c == '"') in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > deepest_json) return true;
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return false;
}

nlohmann::json parse_json_or_null(std::string_view text) {
    if (nested_too_deeply(text)) return nullptr;
    nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
    return json.is_discarded() ? nlohmann::json() : json;
}

}  // namespace llmc
