// What a checkpoint says about its run, and whether a resume may go on from it.
#pragma once
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "llmc/data/shards.h"
#include "llmc/train/config.h"

namespace llmc {

// Identity of a run, part of run.json and of every checkpoint: configuration, data, version.
nlohmann::json describe_run(const ModelConfig& model, const TrainConfig& config, const Dataset& data);

// Replaces the configuration by the saved one. Fields the user gave may differ only if they do not change the function
// that is trained (lengths, intervals, recomputation); any other is refused by name.
void take_saved_configuration(ModelConfig& model, TrainConfig& config, const std::set<std::string>& given,
                              const nlohmann::json& saved, const std::string& where);

// InputError if the tokens are not the ones that the run was trained on.
void check_same_data(const nlohmann::json& saved, const Dataset& data, const std::string& where);

}  // namespace llmc
