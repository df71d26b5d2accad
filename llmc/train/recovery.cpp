#include "llmc/train/recovery.h"

#include <cstdio>

#include "llmc/base/files.h"
#include "llmc/base/json_text.h"
#include "llmc/checkpoint/convert.h"

namespace llmc {

using nlohmann::json;

bool watch_recovery(json& transition, int64_t step, const EvalResult& result) {
    if (transition.is_null() || !transition.at("recovered_at").is_null() || transition.at("mot_loss").is_null() ||
        transition.at("tokens") != result.tokens || !(result.loss <= transition.at("mot_loss").get<double>()))
        return false;
    transition["recovered_at"] = step;
    return true;
}

std::optional<ModelConfig> twin_of(const ModelConfig& model, const TrainConfig& config, const std::string& where) {
    const ModelConfig twin = converted(model, Mixture::mot, 0, where);
    if (config.micro_batch % rows_together(twin)) return std::nullopt;
    return twin;
}

json run_of_transition(const std::string& run_dir) {
    const std::string path = run_dir + "/run.json";
    const json run = path_exists(path) ? parse_json_or_null(read_file(path)) : json();
    return run.is_object() && run.contains("transition") ? run : json();
}

void refuse_interrupted_transition(const std::string& run_dir) {
    const json run = run_of_transition(run_dir);
    if (run.is_null()) return;
    const json& origin = run.at("transition");
    input_error("--run-dir ", run_dir, ": a transition was interrupted before its first checkpoint: run it again ",
                "(train_mot transition --from ", origin.value("from", "..."), " --to ", origin.value("mode", "..."),
                ")");
}

std::string transition_table(const json& transition, int64_t step, const json& mot_loss, const EvalResult& sparse) {
    const std::string mode = transition.at("mode"), at_switch = str("step ", transition.at("step").dump()),
                      now = str("step ", step);
    auto row = [](const std::string& name, const std::string& before, const std::string& after) {
        char text[200];
        std::snprintf(text, sizeof text, "  %-20s %14s %14s\n", name.c_str(), before.c_str(), after.c_str());
        return std::string(text);
    };
    auto number = [](const json& loss) {
        char text[40];
        std::snprintf(text, sizeof text, "%.4f", loss.is_null() ? 0 : loss.get<double>());
        return std::string(loss.is_null() ? "not measured" : text);
    };
    std::string text = str("transition from ", transition.at("from").get<std::string>(), "\n");
    text += row("validation loss", at_switch, now);
    text += row("as mot", number(transition.at("mot_loss")), number(mot_loss));
    text += row("as " + mode, number(transition.at("sparse_loss")), number(sparse.loss));
    if (transition.at("tokens") != sparse.tokens)
        return text + str("  not comparable: ", transition.at("tokens").dump(), " validation tokens at the switch, ",
                          sparse.tokens, " now\n");
    if (transition.at("mot_loss").is_null()) return text + "  no loss as mot before the switch: no recovery to tell\n";
    if (const json& back = transition.at("recovered_at"); back.is_null())
        return text + "  the sparse loss has not come back to the one before the switch\n";
    else
        return text + str("  the sparse loss was back after ",
                          back.get<int64_t>() - transition.at("step").get<int64_t>(),
                          " steps (as far as validations tell)\n");
}

}  // namespace llmc
