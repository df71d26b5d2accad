#include "llmc/step/config.h"

#include "llmc/base/fields.h"

namespace llmc {

nlohmann::json to_json(const TrainConfig& config) {
    return fields_to_json([&](auto&& f) { for_each_train_field(config, f); });
}

TrainConfig train_config_from_json(const nlohmann::json& json, const std::string& where) {
    TrainConfig config;
    fields_from_json([&](auto&& f) { for_each_train_field(config, f); }, json, where);
    return config;
}

}  // namespace llmc
