// Dense feed-forward.
//
//   plain:   out = f(x Wup^T + b) Wdown^T + b                       x [B,T,C], Wup [F,C], Wdown [C,F]
//   swiglu:  out = (silu(x Wgate^T) * (x Wup^T)) Wdown^T            no biases (Shazeer 2020)
#include "llmc/model/blocks/block.h"

namespace llmc {
namespace {

class Ffn final : public Block {
public:
    using Block::Block;
    const char* kind() const override { return "ffn"; }

    void declare_params(Unit& dense, Unit&) const override {
        const int64_t C = config.d_model, F = config.d_ff;
        if (gated()) dense.weight("gate.weight", {F, C}, C);
        dense.weight("up.weight", {F, C}, C);
        dense.weight("down.weight", {C, F}, F);
        if (biased()) {
            dense.bias("up.bias", {F}, C);
            dense.bias("down.bias", {C}, F);
        }
    }

    std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& p) const override {
        const Shape wide{B, T, config.d_ff};
        if (gated()) return {{"gate", p.act, wide}, {"up", p.act, wide}, {"hidden", p.act, wide}};
        if (config.ffn_activation == "relu") return {{"hidden", p.act, wide}};  // f' is known from f's output
        return {{"up", p.act, wide}, {"hidden", p.act, wide}};
    }

    void forward(const Pass& p, Tensor out, Tensor x) const override {
        const Activation f = activation_of(config.ffn_activation);
        Tensor hidden = p.saved("hidden");  // [B,T,F]
        Tensor up_bias = biased() ? p.param("up.bias") : Tensor{},
               down_bias = biased() ? p.param("down.bias") : Tensor{};
        if (gated()) {
            matmul(p.saved("gate"), x, p.param("gate.weight"), {.transpose_b = true}, p.ctx);
            matmul(p.saved("up"), x, p.param("up.weight"), {.transpose_b = true}, p.ctx);
            gated_forward(hidden, p.saved("gate"), p.saved("up"), f, p.ctx);
        } else {
            const Tensor pre = f == Activation::relu ? Tensor{} : p.saved("up");
            matmul(hidden, x, p.param("up.weight"),
                   {.transpose_b = true, .bias = up_bias, .activation = f, .pre = pre}, p.ctx);
        }
        matmul(out, hidden, p.param("down.weight"), {.transpose_b = true, .bias = down_bias}, p.ctx);
    }

    void backward(const Pass& p, Tensor dx, Tensor dout, Tensor x) const override {
        const Activation f = activation_of(config.ffn_activation);
        Tensor hidden = p.saved("hidden");
        Tensor dhidden = p.temp("dhidden", hidden.shape);  // [B,T,F], before the activation (swiglu: of up)
        if (gated()) {
            matmul(dhidden, dout, p.param("down.weight"), {}, p.ctx);
            Tensor dgate = p.temp("dgate", hidden.shape);
            gated_backward(dgate, dhidden, dhidden, p.saved("gate"), p.saved("up"), f, p.ctx);
            matmul(dx, dgate, p.param("gate.weight"), {}, p.ctx);
            matmul(p.grad("gate.weight"), dgate, x, {.transpose_a = true, .accumulate = p.accumulate}, p.ctx);
        } else {
            const Tensor pre = f == Activation::relu ? hidden : p.saved("up");
            matmul(dhidden, dout, p.param("down.weight"), {.backward = f, .pre = pre}, p.ctx);
        }
        matmul(p.grad("down.weight"), dout, hidden, {.transpose_a = true, .accumulate = p.accumulate}, p.ctx);
        matmul(dx, dhidden, p.param("up.weight"), {.accumulate = gated()}, p.ctx);
        matmul(p.grad("up.weight"), dhidden, x, {.transpose_a = true, .accumulate = p.accumulate}, p.ctx);
        if (biased()) {
            bias_backward(p.grad("up.bias"), dhidden, p.accumulate, p.ctx);
            bias_backward(p.grad("down.bias"), dout, p.accumulate, p.ctx);
        }
    }

private:
    bool gated() const { return config.ffn_activation == "swiglu"; }
    bool biased() const { return config.ffn_bias && !gated(); }
};

}  // namespace

std::unique_ptr<Block> make_ffn(const ModelConfig& config) { return std::make_unique<Ffn>(config); }

}  // namespace llmc
