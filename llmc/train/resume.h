// What a checkpoint says about its run, and whether a resume may go on from it.
#pragma once
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "llmc/data/loader.h"
#include "llmc/step/config.h"

namespace llmc {

// Identity of a run, part of run.json and of every checkpoint: configuration, data, version.
nlohmann::json describe_run(const ModelConfig& model, const TrainConfig& config, const Dataset& data);

// What run.json holds.
std::string run_json(const nlohmann::json& identity);

// Makes the directory and what belongs to a run from its first moment: run.json, and the tokenizer that generation
// needs. InputError if it cannot be written.
void start_run_directory(const std::string& run_dir, const nlohmann::json& identity, const Dataset& data);

// The state.json of a checkpoint: the run's identity, Adam's count and the skipped steps, the position in the data,
// seconds of training so far, and sequences to fill up MoT groups with in generation.
nlohmann::json checkpoint_state(nlohmann::json identity, const StepState& state, const LoaderState& position,
                                double seconds, const std::vector<std::vector<int32_t>>& fillers);
StepState step_state_from(const nlohmann::json& saved);

std::string flag_of(std::string name);  // of a field: "--micro-batch" for micro_batch

// Replaces the configuration by the saved one. Fields the user gave may differ only if they do not change the function
// that is trained (lengths, intervals, recomputation) or are in `also_free`; any other is refused by name.
void take_saved_configuration(ModelConfig& model, TrainConfig& config, const std::set<std::string>& given,
                              const nlohmann::json& saved, const std::string& where,
                              const std::set<std::string>& also_free = {});

// InputError if the tokens are not the ones that the run was trained on.
void check_same_data(const nlohmann::json& saved, const Dataset& data, const std::string& where);

}  // namespace llmc
