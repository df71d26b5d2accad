#include "llmc/train/resume.h"

#include <algorithm>
#include <cstdio>

#include "llmc/base/files.h"
#include "llmc/base/rng.h"
#include "llmc/base/version.h"
#include "llmc/data/tokenizer.h"

namespace llmc {

namespace {

// Changes with the content, number or order of the shards, all of which decide what sample i is.
std::string fingerprint(const Dataset& data) {
    std::string text;
    for (const Split* split : {&data.train, &data.val})
        for (const Shard& shard : split->shards) text += str(split->name, " ", shard.count, " ", shard.crc32, "\n");
    char hex[17];
    std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(hash_of(text)));
    return hex;
}

}  // namespace

nlohmann::json describe_run(const ModelConfig& model, const TrainConfig& config, const Dataset& data) {
    return {{"model", to_json(model)},
            {"train", to_json(config)},
            {"data",
             {{"path", data.path},
              {"train_tokens", data.train.tokens},
              {"tokenizer_crc32", data.tokenizer_crc32},
              {"shards", fingerprint(data)}}},
            {"version", project_version},
            {"commit", version_commit()}};
}

std::string run_json(const nlohmann::json& identity) { return identity.dump(2) + "\n"; }

void start_run_directory(const std::string& run_dir, const nlohmann::json& identity, const Dataset& data) {
    const std::string ranks = Tokenizer::load(data.tokenizer_file).rank_file();
    try {
        make_directories(run_dir);
        write_file_atomic(run_dir + "/run.json", run_json(identity));
        write_file_atomic(run_dir + "/tokenizer.tiktoken", ranks);
    } catch (const RunError& error) {
        input_error("--run-dir ", run_dir, " cannot be used: ", error.what());
    }
}

nlohmann::json checkpoint_state(nlohmann::json identity, const StepState& state, const LoaderState& position,
                                double seconds, const std::vector<std::vector<int32_t>>& fillers) {
    identity["adam_t"] = state.t;
    identity["skipped"] = state.skipped;
    identity["skipped_in_a_row"] = state.skipped_in_a_row;
    identity["data_position"] = {{"epoch", position.epoch}, {"sample", position.sample}};
    identity["seconds"] = seconds;
    identity["fillers"] = fillers;
    return identity;
}

namespace {

const nlohmann::json& member(const nlohmann::json& object, const char* name, const std::string& where) {
    if (!object.is_object() || !object.contains(name))
        input_error(where, " is not the state of a training run: it has no ", name);
    return object[name];
}

[[noreturn]] void refuse(const std::string& where, const std::string& name, const nlohmann::json& value,
                         const std::string& want) {
    input_error(where, " is damaged: ", name, " is ", value.dump(), ", not ", want);
}

void check_count(const nlohmann::json& object, const char* name, int64_t most, const std::string& where) {
    const nlohmann::json& value = member(object, name, where);
    if (!is_a<int64_t>(value) || value < 0 || value > most)
        refuse(where, name, value, str("a whole number from 0 to ", most));
}

void check_text(const nlohmann::json& object, const char* name, const std::string& where) {
    if (const nlohmann::json& value = member(object, name, where); !value.is_string())
        refuse(where, name, value, "a text");
}

// See recovery.h.
void check_transition(const nlohmann::json& transition, int64_t step, const std::string& where) {
    for (const char* name : {"from", "mode"}) check_text(transition, name, where);
    check_count(transition, "step", step, where);
    check_count(transition, "tokens", INT64_MAX, where);
    for (const char* name : {"mot_loss", "sparse_loss"})
        if (const nlohmann::json& value = member(transition, name, where); !value.is_null() && !value.is_number())
            refuse(where, name, value, "a loss");
    if (!member(transition, "recovered_at", where).is_null()) check_count(transition, "recovered_at", step, where);
}

// A step that no run reaches would be more tokens than 64 bits count.
void check_step(const Checkpoint& checkpoint, const ModelConfig& model, const TrainConfig& train,
                const std::string& where) {
    const double tokens = double(train.micro_batch) * double(train.grad_accumulation) * double(model.context);
    if (double(checkpoint.step) * tokens >= 0x1p62)
        refuse(where, "step", checkpoint.step, str("a step of a run with ", tokens, " tokens a step"));
}

}  // namespace

std::vector<std::vector<int32_t>> fillers_from(const nlohmann::json& saved, const ModelConfig& model,
                                               const std::string& where) {
    const nlohmann::json& rows = member(saved, "fillers", where);
    if (!rows.is_array()) refuse(where, "fillers", rows, "a list of sequences");
    std::vector<std::vector<int32_t>> fillers;
    for (const nlohmann::json& row : rows) {
        if (!row.is_array() || int64_t(row.size()) != model.context)
            input_error(where, " is damaged: a sequence of fillers is not a list of ", model.context, " tokens");
        std::vector<int32_t>& tokens = fillers.emplace_back();
        for (const nlohmann::json& token : row) {
            if (!is_a<int32_t>(token) || token < 0 || token >= model.vocab_size)
                refuse(where, "a token of fillers", token, str("a whole number below ", model.vocab_size));
            tokens.push_back(token);
        }
    }
    return fillers;
}

void check_training_state(const Checkpoint& checkpoint) {
    const std::string where = checkpoint.directory + "/state.json";
    const nlohmann::json& state = checkpoint.state;
    const ModelConfig model = model_config_from_json(member(state, "model", where), where);
    const TrainConfig train = train_config_from_json(member(state, "train", where), where);
    check_step(checkpoint, model, train, where);
    for (const char* name : {"adam_t", "skipped", "skipped_in_a_row"})
        check_count(state, name, checkpoint.step, where);
    for (const char* name : {"epoch", "sample"})
        check_count(member(state, "data_position", where), name, INT64_MAX, where);
    const nlohmann::json& data = member(state, "data", where);
    for (const char* name : {"path", "shards"}) check_text(data, name, where);
    for (const char* name : {"tokenizer_crc32", "train_tokens"}) check_count(data, name, INT64_MAX, where);
    if (const nlohmann::json& seconds = member(state, "seconds", where); !seconds.is_number() || !(seconds >= 0))
        refuse(where, "seconds", seconds, "a time");
    if (state.contains("evaluation_missing") && !state["evaluation_missing"].is_boolean())
        refuse(where, "evaluation_missing", state["evaluation_missing"], "true or false");
    if (state.contains("transition") && !state["transition"].is_null())
        check_transition(state["transition"], checkpoint.step, where);
    fillers_from(state, model, where);
}

StepState step_state_from(const nlohmann::json& saved) {
    StepState state;
    state.t = saved.at("adam_t");
    state.skipped = saved.at("skipped");
    state.skipped_in_a_row = saved.at("skipped_in_a_row");
    return state;
}

namespace {

// The saved fields, with those of `wanted` that were given. InputError for one that may not be changed.
nlohmann::json merged(nlohmann::json saved, const nlohmann::json& wanted, const std::set<std::string>& given,
                      const std::string& where, Change how) {
    for (const auto& [name, value] : wanted.items()) {
        if (!given.count(name) || saved.at(name) == value) continue;
        if (all_fields().at(name).change < how)
            input_error(flag_of(name), " is ", value.dump(), " but the run in ", where, " was started with ",
                        saved.at(name).dump(),
                        ": a resumed run keeps that value; leave the flag out, or start a new run");
        saved[name] = value;
    }
    return saved;
}

}  // namespace

void take_saved_configuration(ModelConfig& model, TrainConfig& config, const std::set<std::string>& given,
                              const nlohmann::json& saved, const std::string& where, Change how) {
    // Read and written again: fields younger than the checkpoint get their defaults.
    const nlohmann::json old_model = to_json(model_config_from_json(saved.at("model"), where)),
                         old_train = to_json(train_config_from_json(saved.at("train"), where));
    model = model_config_from_json(merged(old_model, to_json(model), given, where, how), where);
    config = train_config_from_json(merged(old_train, to_json(config), given, where, how), where);
}

void resume_configuration(ModelConfig& model, TrainConfig& config, const std::set<std::string>& given, bool extend,
                          const Checkpoint& found, bool speaks) {
    const TrainConfig saved = train_config_from_json(found.state.at("train"), found.directory);
    const int64_t steps = given.count("steps") ? config.steps : saved.steps;
    const bool extends = extend && steps > saved.decay_steps;
    take_saved_configuration(model, config, given, found.state, found.directory,
                             extends ? Change::extension : Change::always);
    if (extends) {
        config.schedule_origin = found.step;
        if (!given.count("decay_steps")) config.decay_steps = config.steps;
        if (speaks)
            std::printf("a new schedule of the learning rate, from step %lld to step %lld\n",
                        static_cast<long long>(found.step), static_cast<long long>(config.decay_steps));
    } else if (speaks && config.steps > saved.steps && config.decay_steps < config.steps) {
        std::fprintf(stderr,
                     "warning: the schedule of this run ends at step %lld; from there on the learning rate stays at "
                     "%.3g. --extend begins a new schedule\n",
                     static_cast<long long>(config.decay_steps), config.lr * config.final_lr_fraction);
    }
}

void check_same_tokenizer(const nlohmann::json& saved, const std::string& trained, uint32_t crc32,
                          const std::string& where) {
    using nlohmann::json;
    const json known = saved.value("data", json::object()).value("tokenizer_crc32", json());
    if (!known.is_null() && known != crc32)
        input_error("the tokens of ", where, " are not those that the model in ", trained,
                    " was trained on: their rank files have other checksums, so the same numbers mean other texts");
}

void check_same_data(const nlohmann::json& saved, const Dataset& data, const std::string& where) {
    const nlohmann::json& old = saved.at("data");
    if (old.at("shards") != fingerprint(data) || old.at("tokenizer_crc32") != data.tokenizer_crc32)
        input_error("the data in ", data.path, " (", data.train.tokens, " training tokens) is not what the run in ",
                    where, " was trained on (", old.at("train_tokens").dump(),
                    " tokens), or it is cut into other shards: a resumed run goes on with the same data");
}

}  // namespace llmc
