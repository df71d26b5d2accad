// What a checkpoint records about its run, and the checks before a resume.
#pragma once
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "llmc/checkpoint/checkpoint.h"
#include "llmc/data/loader.h"
#include "llmc/step/config_fields.h"

namespace llmc {

// The identity of a run: configuration, data, version. It is a part of run.json and of every checkpoint.
nlohmann::json describe_run(const ModelConfig& model, const TrainConfig& config, const Dataset& data);

// The text of run.json.
std::string run_json(const nlohmann::json& identity);

// Creates the run directory with run.json and the tokenizer, which generation needs. InputError if it cannot be
// written.
void start_run_directory(const std::string& run_dir, const nlohmann::json& identity, const Dataset& data);

// The state.json of a checkpoint: the run's identity, Adam's count and the skipped steps, the position in the data,
// seconds of training so far, and `fillers`, sequences that fill MoT groups in generation.
nlohmann::json checkpoint_state(nlohmann::json identity, const StepState& state, const LoaderState& position,
                                double seconds, const std::vector<std::vector<int32_t>>& fillers);
// The sequences of `fillers`. InputError unless they are of this model: as long as its context, of its tokens.
std::vector<std::vector<int32_t>> fillers_from(const nlohmann::json& saved, const ModelConfig& model,
                                               const std::string& where);

// InputError, which names the value, unless a checkpoint's state.json is what checkpoint_state has written: every key
// is there, and no number is one that a run could not have.
void check_training_state(const Checkpoint& checkpoint);

// The StepState from a checkpoint's state.json.
StepState step_state_from(const nlohmann::json& saved);

// Replaces the configuration by the saved one, but for the fields that the user gave (`given`) and may change:
// how = always: on a resume; extension, transition: see Change. InputError naming the flag of any other.
void take_saved_configuration(ModelConfig& model, TrainConfig& config, const std::set<std::string>& given,
                              const nlohmann::json& saved, const std::string& where, Change how = Change::always);

// The configuration of a run that goes on from a checkpoint: the saved one, with what was given and may change. Where
// --steps is now after the end of the schedule, the rate would stay at its floor: `speaks` says that, or `extend`
// begins a new schedule at the checkpoint.
void resume_configuration(ModelConfig& model, TrainConfig& config, const std::set<std::string>& given, bool extend,
                          const Checkpoint& found, bool speaks);

// InputError unless `crc32`, of the rank file in `where`, is that of the tokens that the checkpoint in `trained` was
// trained on. Vocabularies of the same size can mean other texts.
void check_same_tokenizer(const nlohmann::json& saved, const std::string& trained, uint32_t crc32,
                          const std::string& where);

// InputError if the data is not the data that the run was trained on.
void check_same_data(const nlohmann::json& saved, const Dataset& data, const std::string& where);

}  // namespace llmc
