#include "llmc/model/blocks/block.h"

#include <algorithm>
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

std::string block_kind_names() {
    std::string names;
    for (const BlockKind& kind : block_kinds()) names += str(names.empty() ? "" : ", ", kind.name);
    return names;
}

const BlockKind* find_block_kind(const std::string& name) {
    for (const BlockKind& kind : block_kinds())
        if (name == kind.name) return &kind;
    return nullptr;
}

const BlockKind& block_kind(const std::string& name) {
    if (const BlockKind* kind = find_block_kind(name)) return *kind;
    input_error("unknown block kind \"", name, "\": use ", block_kind_names());
}

std::vector<const BlockKind*> kinds_in(const ModelConfig& config) {
    const std::vector<std::string> blocks = parse_pattern(config.pattern);
    std::vector<const BlockKind*> kinds;
    for (const BlockKind& kind : block_kinds())
        if (std::find(blocks.begin(), blocks.end(), kind.name) != blocks.end()) kinds.push_back(&kind);
    return kinds;
}

std::unique_ptr<Block> make_block(const std::string& kind, const ModelConfig& config) {
    return block_kind(kind).make(config);
}

}  // namespace llmc
