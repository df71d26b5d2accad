#include "llmc/model/blocks/block.h"

#include <cstring>

namespace llmc {

Tensor Pass::named(const std::vector<Tensor>& list, const char* name) const {
    for (const Tensor& t : list)
        if (std::strcmp(t.name, name) == 0) return t;
    run_error("block ", dense.unit ? dense.unit->prefix : "?", " has not declared ", name);
}

void logits_backward(const Pass& p, Tensor dx, Tensor dweight, bool accumulate, Tensor dlogits, Tensor x,
                     Tensor weight) {
    if (p.act != dlogits.dtype) {  // both factors of a matmul have one type
        Tensor rounded = p.temp("dlogits", dlogits.shape);
        copy(rounded, dlogits, p.ctx);
        dlogits = rounded;
    }
    matmul(dx, dlogits, weight, {.accumulate = true}, p.ctx);
    matmul(dweight, dlogits, x, {.transpose_a = true, .accumulate = accumulate}, p.ctx);
}
void Block::logits_backward(const Pass& p, const char* weight, Tensor dx, Tensor dlogits, Tensor x) {
    llmc::logits_backward(p, dx, p.grad(weight), p.accumulate, dlogits, x, p.param(weight));
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
