// Causal multi-head self-attention (Vaswani et al. 2017), optionally with rotary positions.
//
//   q | k | v = x Wqkv^T (+ b)      x [B,T,C], Wqkv [3C,C]
//   attended  = softmax(q k^T / sqrt(D), masked) v, per head of size D = C/H
//   out       = attended Wproj^T (+ b)
#include "llmc/model/blocks/block.h"

namespace llmc {
namespace {

class Attention final : public Block {
public:
    using Block::Block;

    void declare_params(Unit& dense, Unit&) const override {
        const int64_t C = config.d_model;
        dense.hidden_weight("qkv.weight", {3 * C, C}, C, 3);
        dense.hidden_weight("proj.weight", {C, C}, C);
        if (config.attention_bias) {
            dense.bias("qkv.bias", {3 * C}, C);
            dense.bias("proj.bias", {C}, C);
        }
    }

    std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& p) const override {
        const int64_t C = config.d_model;
        return {{"qkv", p.act, {B, T, 3 * C}}, {"attended", p.act, {B, T, C}}, {"lse", p.stat(), {B, config.heads, T}}};
    }

    std::vector<StateSpec> declare_state(int64_t B, DType act) const override {
        return {{"keys", act, {B, config.context, config.d_model}},
                {"values", act, {B, config.context, config.d_model}}};
    }

    void forward(const Pass& p, Tensor out, Tensor x) const override {
        Tensor qkv = p.saved("qkv"), attended = p.saved("attended"), lse = p.saved("lse");
        project_qkv(p, qkv, x);
        attention_forward(attended, lse, qkv, config.heads, p.ctx);
        project_out(p, out, attended);
    }

    void backward(const Pass& p, Tensor dx, Tensor dout, Tensor x) const override {
        Tensor qkv = p.saved("qkv"), attended = p.saved("attended"), lse = p.saved("lse");
        Tensor dattended = p.temp("dattended", attended.shape);  // [B,T,C]
        Tensor dqkv = p.temp("dqkv", qkv.shape);                 // [B,T,3C]

        matmul(dattended, dout, p.param("proj.weight"), {}, p.ctx);
        matmul(p.grad("proj.weight"), dout, attended, {.transpose_a = true, .accumulate = p.accumulate}, p.ctx);
        attention_backward(dqkv, dattended, qkv, attended, lse, config.heads, p.ctx);
        if (config.positions == Positions::rope) rope(dqkv, config.heads, 0, true, p.ctx);
        matmul(dx, dqkv, p.param("qkv.weight"), {}, p.ctx);
        matmul(p.grad("qkv.weight"), dqkv, x, {.transpose_a = true, .accumulate = p.accumulate}, p.ctx);
        if (config.attention_bias) {
            bias_backward(p.grad("proj.bias"), dout, p.accumulate, p.ctx);
            bias_backward(p.grad("qkv.bias"), dqkv, p.accumulate, p.ctx);
        }
    }

    void extend(const Pass& p, Tensor out, Tensor x) const override {
        Tensor qkv = p.temp("qkv", {p.B, p.T, 3 * config.d_model}), attended = p.temp("attended", x.shape);
        project_qkv(p, qkv, x);
        attention_extend(attended, p.carried("keys"), p.carried("values"), qkv, p.first_position, config.heads, p.ctx);
        project_out(p, out, attended);
    }

private:
    Tensor bias(const Pass& p, const char* name) const { return config.attention_bias ? p.param(name) : Tensor{}; }

    void project_qkv(const Pass& p, Tensor qkv, Tensor x) const {
        matmul(qkv, x, p.param("qkv.weight"), {.transpose_b = true, .bias = bias(p, "qkv.bias")}, p.ctx);
        if (config.positions == Positions::rope) rope(qkv, config.heads, p.first_position, false, p.ctx);
    }
    void project_out(const Pass& p, Tensor out, Tensor attended) const {
        matmul(out, attended, p.param("proj.weight"), {.transpose_b = true, .bias = bias(p, "proj.bias")}, p.ctx);
    }
};

}  // namespace

std::unique_ptr<Block> make_attention(const ModelConfig& config) { return std::make_unique<Attention>(config); }

}  // namespace llmc
