// A block of a kind that the product does not have: out = x mix^T. This file and a row (test_block_kinds.cpp) are all
// of it.
#pragma once
#include "llmc/model/blocks/block.h"

namespace llmc::test {

class Toy final : public Block {
public:
    explicit Toy(const ModelConfig& config) : Block(config) {}

    void declare_params(Unit& dense, Unit&) const override {
        dense.weight("mix.weight", {config.d_model, config.d_model}, config.d_model);
    }
    std::vector<SavedSpec> declare_saved(int64_t, int64_t, const Pass&) const override { return {}; }
    void forward(const Pass& p, Tensor out, Tensor x) const override {
        matmul(out, x, p.param("mix.weight"), {.transpose_b = true}, p.ctx);
    }
    void backward(const Pass& p, Tensor dx, Tensor dout, Tensor x) const override {
        matmul(p.grad("mix.weight"), dout, x, {.transpose_a = true, .accumulate = p.accumulate}, p.ctx);
        matmul(dx, dout, p.param("mix.weight"), {}, p.ctx);
    }
};

inline std::unique_ptr<Block> make_toy(const ModelConfig& config) { return std::make_unique<Toy>(config); }

// Its options are those of other kinds, so that no field has to be added.
inline double toy_experts_of_a_token(const ModelConfig&) { return 3; }
inline int64_t toy_rows_together(const ModelConfig&) { return 6; }
inline void resolve_toy(ModelConfig& c) {
    if (c.heads == 1) input_error("a toy needs more than one of --heads");
    c.capacity_factor = 7;
}
inline void check_toy_rows(const ModelConfig&, int64_t rows, int64_t) {
    if (rows % 6) input_error("a batch of ", rows, " sequences is no multiple of 6");
}
inline std::string toy_sees_the_future(const ModelConfig& c) { return c.dropless ? "with dropless toys" : ""; }
inline std::vector<std::string> toy_warnings(const ModelConfig& c) {
    if (!c.dropless) return {};
    return {"dropless toys see their own future"};
}

inline constexpr BlockKind toy_kind = {.name = "toy",
                                       .help = "one matrix",
                                       .make = make_toy,
                                       .experts_of_a_token = toy_experts_of_a_token,
                                       .down_init = DownInit::chosen,
                                       .resolve = resolve_toy,
                                       .rows_together = toy_rows_together,
                                       .check_rows = check_toy_rows,
                                       .sees_the_future = toy_sees_the_future,
                                       .warnings = toy_warnings};

}  // namespace llmc::test
