#include "llmc/step/config_fields.h"

namespace llmc {

nlohmann::json to_json(const TrainConfig& config) {
    return fields_to_json([&](auto&& f) { for_each_train_field(config, f); });
}

TrainConfig train_config_from_json(const nlohmann::json& json, const std::string& where) {
    TrainConfig config;
    fields_from_json([&](auto&& f) { for_each_train_field(config, f); }, json, where);
    return config;
}

const std::map<std::string, FieldInfo>& all_fields() {
    static const std::map<std::string, FieldInfo> fields = [] {
        std::map<std::string, FieldInfo> by_name;
        auto add = [&](const FieldInfo& info, const auto&) { by_name.emplace(info.name, info); };
        const ModelConfig model;
        const TrainConfig train;
        for_each_model_field(model, add);
        for_each_train_field(train, add);
        return by_name;
    }();
    return fields;
}

}  // namespace llmc
