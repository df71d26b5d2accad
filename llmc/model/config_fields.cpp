#include "llmc/model/config_fields.h"

#include "llmc/model/blocks/kinds.h"

namespace llmc {

const char* pattern_help() {
    static const std::string help = [] {
        std::string text = "blocks from bottom to top, e.g. \"4x(attention ffn) 4x(attention mot)\"; there are";
        const char* before = " ";
        for (const BlockKind& kind : block_kinds()) text += str(before, kind.name, " (", kind.help, ")"), before = ", ";
        return text;
    }();
    return help.c_str();
}

nlohmann::json to_json(const ModelConfig& config) {
    return fields_to_json([&](auto&& f) { for_each_model_field(config, f); });
}

ModelConfig model_config_from_json(const nlohmann::json& json, const std::string& where) {
    ModelConfig config;
    fields_from_json([&](auto&& f) { for_each_model_field(config, f); }, json, where);
    return config;
}

}  // namespace llmc
