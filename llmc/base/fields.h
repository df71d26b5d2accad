// Reads and writes structs whose fields are listed once by a visitor (for_each_model_field, for_each_train_field): one
// list serves flags, help texts, JSON, printing, and the rules for a resume or a transition.
#pragma once
#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "llmc/base/errors.h"
#include "llmc/base/words.h"

namespace llmc {

// May the field of a run that goes on be changed?
enum class Change {
    never,       // what was trained so far depends on it
    transition,  // by a transition, which starts a new run from old weights
    extension,   // and by a resume that begins a new schedule of the learning rate (--extend)
    always,      // no step computes anything else because of it
};

// One field. Its flag is --name with dashes. Its default is that of the struct.
struct FieldInfo {
    const char *name, *help;
    double least = 0, most = 1e18;          // of a number
    std::vector<std::string> choices = {};  // of an enum, if these are not all its words
    Change change = Change::never;
    const char* group = "Model";  // heading in the help text
    const char* only_kind = "";   // the one kind of blocks that it is about; "": several kinds, or the whole model
};

// The flag of a field: "--micro-batch" for micro_batch.
inline std::string flag_of(std::string name) {
    std::replace(name.begin(), name.end(), '_', '-');
    return "--" + name;
}

// f, with the fields under this heading.
template <class F>
auto in_group(const char* group, F& f) {
    return [group, &f](FieldInfo info, auto& field) {
        info.group = group;
        f(info, field);
    };
}

// The words that a field of type E can have.
template <HasWords E>
std::vector<std::string> choices_of(const FieldInfo& info) {
    return info.choices.empty() ? all_words<E>() : info.choices;
}

template <class T>
nlohmann::json field_to_json(const T& field) {
    if constexpr (HasWords<T>)
        return name_of(field);
    else
        return field;
}

// The fields as a JSON object. visit(f) must call f(info, field) for every field; info.name is the key.
template <class Visit>
nlohmann::json fields_to_json(Visit&& visit) {
    nlohmann::json json = nlohmann::json::object();
    visit([&](const FieldInfo& info, const auto& field) { json[info.name] = field_to_json(field); });
    return json;
}

// InputError if the field cannot have this word.
template <HasWords E>
void check_word(const FieldInfo& info, const std::string& word, const std::string& where) {
    const std::vector<std::string> choices = choices_of<E>(info);
    if (std::find(choices.begin(), choices.end(), word) == choices.end())
        input_error(where, ": the field \"", info.name, "\" is \"", word, "\", not one of ", listed(choices));
}

// InputError if a word is none of the field's choices, or a number is outside its range.
template <class T>
void check_field(const FieldInfo& info, const T& field, const std::string& where) {
    if constexpr (HasWords<T>) {
        check_word<T>(info, name_of(field), where);
    } else if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
        if (!(double(field) >= info.least && double(field) <= info.most))
            input_error(where, ": the field \"", info.name, "\" is ", field, ", not between ", info.least, " and ",
                        info.most);
    }
}

// True if the value is a T as it stands: a fraction is no whole number, and no number wraps around.
template <class T>
bool is_a(const nlohmann::json& value) {
    if constexpr (std::is_same_v<T, bool>) {
        return value.is_boolean();
    } else if constexpr (std::is_integral_v<T>) {
        if (value.is_number_unsigned()) return std::in_range<T>(value.get<uint64_t>());
        return value.is_number_integer() && std::in_range<T>(value.get<int64_t>());
    } else if constexpr (std::is_floating_point_v<T>) {
        return value.is_number();
    } else {
        static_assert(std::is_same_v<T, std::string>);
        return value.is_string();
    }
}

// Sets one field. InputError as check_field, and if the value has the wrong type.
template <class T>
void field_from_json(const FieldInfo& info, T& field, const nlohmann::json& value, const std::string& where) {
    using Read = std::conditional_t<HasWords<T>, std::string, T>;
    if (!is_a<Read>(value))
        input_error(where, ": the field \"", info.name, "\" has the wrong type: ", value.dump());
    const auto read = value.get<Read>();
    if constexpr (HasWords<T>) {
        check_word<T>(info, read, where);
        field = from_word<T>(read);
    } else {
        field = read;
        check_field(info, field, where);
    }
}

// Sets the fields that `json` has. A missing field keeps its default, because it may be newer than the file. InputError
// as field_from_json, and for an unknown key.
template <class Visit>
void fields_from_json(Visit&& visit, const nlohmann::json& json, const std::string& where) {
    if (!json.is_object()) input_error(where, ": the configuration is not a JSON object");
    std::set<std::string> known;
    visit([&](const FieldInfo& info, auto& field) {
        known.insert(info.name);
        if (json.contains(info.name)) field_from_json(info, field, json.at(info.name), where);
    });
    for (const auto& [key, value] : json.items())
        if (!known.count(key)) input_error(where, ": unknown field \"", key, "\"");
}

}  // namespace llmc
