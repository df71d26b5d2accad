// Command-line flags and config files from the field lists of ModelConfig and TrainConfig.
#pragma once
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <set>
#include <string>

#include "llmc/base/flags.h"
#include "llmc/base/standard_output.h"
#include "llmc/step/config_fields.h"

namespace llmc {

// Adds the flag --some-field for one field; a bool also gets --no-some-field.
template <class T>
void add_field(CLI::App& app, const FieldInfo& info, T& field) {
    const std::string flag = flag_of(info.name);
    CLI::Option* option;
    if constexpr (std::is_same_v<T, bool>) {
        option = app.add_flag(flag + ",!--no-" + flag.substr(2), field, info.help);
    } else if constexpr (HasWords<T>) {
        option = add_word(app, flag, field, info.help, info.choices)->default_str(name_of(field));
    } else {
        option = app.add_option(flag, field, info.help)->capture_default_str();
        if constexpr (std::is_integral_v<T>) option->transform(whole_number(int64_t(info.least), int64_t(info.most)));
        if constexpr (std::is_floating_point_v<T>) option->transform(real_number(info.least, info.most));
    }
    option->group(info.group);
}

// Adds the flags of all fields, and --config.
inline void add_fields(CLI::App& app, ModelConfig& model, TrainConfig& train) {
    auto add = [&](const FieldInfo& info, auto& field) { add_field(app, info, field); };
    for_each_model_field(model, add);
    for_each_train_field(train, add);
    app.set_config("--config", "",
                   "read flags from this file, one `flag = value` a line, without dashes; the command line wins")
        ->group("Run");
    app.config_formatter(std::make_shared<ConfigReader>(app));
}

// The fields that the user set, by flag or config file.
inline std::set<std::string> given_fields(const CLI::App& app, ModelConfig& model, TrainConfig& train) {
    std::set<std::string> given;
    auto look = [&](const FieldInfo& info, auto&) {
        if (app.get_option(flag_of(info.name))->count() > 0) given.insert(info.name);
    };
    for_each_model_field(model, look);
    for_each_train_field(train, look);
    return given;
}

// InputError if --granularity and --expansion change a number that the user gave.
inline void check_overruled(const ModelConfig& model, const std::set<std::string>& given) {
    const nlohmann::json asked = to_json(model), got = to_json(resolved(model));
    for (const std::string& name : given)
        if (asked.contains(name) && asked[name] != got[name] && asked[name] != 0)
            input_error("--granularity ", model.granularity, " and --expansion ", model.expansion, " make ", name, " ",
                        got[name].dump(), ", but you asked for ", asked[name].dump());
}

// What a parse error says, after the file and line if the flag that it begins with stands in a file only.
inline std::string with_place(const CLI::App& app, const std::string& what, int argc, char** argv) {
    const auto* reader = dynamic_cast<const ConfigReader*>(app.get_config_formatter().get());
    const std::string flag = what.substr(0, what.find(':'));
    const bool on_command_line = std::any_of(
        argv + 1, argv + argc, [&](const std::string& word) { return word == flag || word.starts_with(flag + "="); });
    return (reader && !on_command_line ? reader->place_of(flag) : "") + what;
}

// What CLI11 says, or for the first argument that no option takes, what may have been meant. A required option may be
// missing because its name was misspelt.
inline std::string sentence_of(const CLI::ParseError& error, const CLI::App& app) {
    if (!dynamic_cast<const CLI::ExtrasError*>(&error) && !dynamic_cast<const CLI::RequiredError*>(&error))
        return error.what();
    const std::vector<CLI::App*> chosen = app.get_subcommands();
    for (const std::string& word : app.remaining(true))
        if (word.starts_with('-') && word.find_first_not_of('-') != std::string::npos)
            return no_such_flag(chosen.empty() || chosen[0]->get_fallthrough() ? app : *chosen[0],
                                word.substr(0, word.find('=')));
    return error.what();
}

// The end of every main: parses the arguments and returns the exit code of `body`, or 1 if that is 0 but what was
// printed did not arrive. An exception becomes one sentence on stderr and exit code 2 (bad input) or 1 (failure);
// `also` is called with both before that.
template <class Body, class Also>
int run_program(CLI::App& app, int argc, char** argv, Body&& body, Also&& also) {
    auto fail = [&](const std::string& what, int code) {
        std::fflush(stdout);
        also(what, code);
        std::fprintf(stderr, "error: %s\n", what.c_str());
        return code;
    };
    try {
        app.parse(argc, argv);
        return finish_output(body());
    } catch (const CLI::ParseError& error) {
        if (error.get_exit_code() == 0) return finish_output(app.exit(error));  // --help, --version
        return fail(with_place(app, sentence_of(error, app), argc, argv) + " (see --help)", 2);
    } catch (const InputError& error) {
        return fail(error.what(), 2);
    } catch (const std::exception& error) {
        return fail(error.what(), 1);
    }
}
template <class Body>
int run_program(CLI::App& app, int argc, char** argv, Body&& body) {
    return run_program(app, argc, argv, body, [](const std::string&, int) {});
}

}  // namespace llmc
