#include "llmc/model/blocks/block.h"

#include <cstring>

namespace llmc {

Tensor Pass::named(const std::vector<Tensor>& list, const char* name) const {
    for (const Tensor& t : list)
        if (std::strcmp(t.name, name) == 0) return t;
    run_error("block ", dense.unit ? dense.unit->prefix : "?", " has not declared ", name);
}

std::unique_ptr<Block> make_block(const std::string& kind, const ModelConfig& config) {
    if (kind == "attention") return make_attention(config);
    if (kind == "ffn") return make_ffn(config);
    if (kind == "mot") return make_mot(config);
    if (kind == "moe_token_choice") return make_moe_token_choice(config);
    if (kind == "moe_expert_choice") return make_moe_expert_choice(config);
    input_error("unknown block kind \"", kind, "\"");
}

}  // namespace llmc
