// Mixture of Tokens (Antoniak et al. 2023). Derivation with the same names: docs/mot.md.
//
// g tokens at one position of g sequences form a group; r numbers the groups (R = B*T/g), E experts of hidden size F:
//   logits[i,e]  = controller_e . x_i                                     [B,T,E]
//   merge        = softmax over the group's tokens of logits / temperature
//   emit         = merge, or softmax over the experts of logits / temperature
//   mixed[e,r]   = sum_i merge[i,e] x_i                                   [E,R,C]
//   hidden[e,r]  = f(mixed[e,r] Wup_e^T)                                  [E,R,F]
//   output[e,r]  = hidden[e,r] Wdown_e^T                                  [E,R,C]
//   out_i        = sum_e emit[i,e] output[e,r]                            [B,T,C]
#include "llmc/model/blocks/block.h"

namespace llmc {
namespace {

class Mot final : public Block {
public:
    using Block::Block;
    const char* kind() const override { return "mot"; }

    void declare_params(Unit& dense, Unit& experts) const override {
        const int64_t C = config.d_model, E = config.experts, F = config.expert_size;
        if (learned()) dense.weight("controller.weight", {E, C}, C);
        experts.weight("experts.up.weight", {E, F, C}, C);
        experts.weight("experts.down.weight", {E, C, F}, F);
    }

    std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& p) const override {
        const int64_t C = config.d_model, E = config.experts, F = config.expert_size, R = B * T / p.group_size;
        std::vector<SavedSpec> saved = {{"merge", p.stat(), {B, T, E}},
                                        {"mixed", p.act, {E, R, C}},
                                        {"hidden", p.act, {E, R, F}},
                                        {"output", p.act, {E, R, C}}};
        if (separate_emit()) saved.push_back({"emit", p.stat(), {B, T, E}});
        if (!relu()) saved.push_back({"up", p.act, {E, R, F}});
        return saved;
    }

    std::vector<std::string> declare_metrics() const override {
        std::vector<std::string> names;
        for (const char* weights : {"merge", "emit"}) {
            if (!learned() || (weights == std::string("emit") && !separate_emit())) continue;
            for (const char* value : {"entropy", "entropy_std", "logits_mean", "logits_std"})
                names.push_back(str(weights, "_", value));
        }
        return names;
    }

    void forward(const Pass& p, Tensor out, Tensor x) const override {
        Tensor merge = p.saved("merge"), emit = separate_emit() ? p.saved("emit") : merge;
        Tensor mixed = p.saved("mixed"), hidden = p.saved("hidden"), output = p.saved("output");
        if (p.live_rows && p.live_rows < p.B) fill(x.slice(p.live_rows, p.B), 0, p.ctx);
        weigh(p, merge, emit, x);
        mot_merge(mixed, merge, x, group(p), p.ctx);
        matmul(hidden, mixed, p.param("experts.up.weight"),
               {.transpose_b = true, .activation = activation(), .pre = relu() ? Tensor{} : p.saved("up")}, p.ctx);
        matmul(output, hidden, p.param("experts.down.weight"), {.transpose_b = true}, p.ctx);
        mot_emit(out, emit, output, group(p), false, p.ctx);
    }

    void backward(const Pass& p, Tensor dx, Tensor dout, Tensor x) const override {
        Tensor merge = p.saved("merge"), emit = separate_emit() ? p.saved("emit") : merge;
        Tensor mixed = p.saved("mixed"), hidden = p.saved("hidden"), output = p.saved("output");
        Tensor dslots = p.temp("dslots", mixed.shape);     // [E,R,C]: doutput, later dmixed
        Tensor dhidden = p.temp("dhidden", hidden.shape);  // [E,R,F], before the activation

        mot_merge(dslots, emit, dout, group(p), p.ctx);  // the transpose of emit is merge
        matmul(dhidden, dslots, p.param("experts.down.weight"),
               {.backward = activation(), .pre = relu() ? hidden : p.saved("up")}, p.ctx);
        matmul(p.grad("experts.down.weight"), dslots, hidden, {.transpose_a = true, .accumulate = p.accumulate}, p.ctx);
        matmul(dslots, dhidden, p.param("experts.up.weight"), {}, p.ctx);
        matmul(p.grad("experts.up.weight"), dhidden, mixed, {.transpose_a = true, .accumulate = p.accumulate}, p.ctx);
        mot_emit(dx, merge, dslots, group(p), false, p.ctx);  // the transpose of merge is emit
        if (learned()) controller_backward(p, dx, dout, x, merge, emit, output, dslots);
    }

private:
    bool learned() const { return config.router == "learned"; }
    bool separate_emit() const { return config.emit == "experts"; }
    Activation activation() const { return activation_of(config.expert_activation); }
    bool relu() const { return config.expert_activation == "relu"; }
    Group group(const Pass& p) const { return {p.group_size, config.group_axis == "sequence"}; }

    // Merge and emit weights [B,T,E] of the tokens x.
    void weigh(const Pass& p, Tensor merge, Tensor emit, Tensor x) const {
        if (!learned()) {
            fill(merge, 1.0 / double(p.group_size), p.ctx);
            if (separate_emit()) fill(emit, 1.0 / double(config.experts), p.ctx);
            return;
        }
        Tensor logits = p.temp("logits", p.stat(), merge.shape);
        matmul(logits, x, p.param("controller.weight"), {.transpose_b = true}, p.ctx);
        softmax(p, merge, logits, SoftmaxOver::group, 0);
        if (separate_emit()) softmax(p, emit, logits, SoftmaxOver::experts, 4);
    }

    void softmax(const Pass& p, Tensor weights, Tensor logits, SoftmaxOver over, int64_t first_metric) const {
        mot_softmax_forward(weights, logits, over, group(p), config.temperature, p.ctx);
        if (p.metrics)
            mot_statistics(p.metrics.slice(first_metric, first_metric + 4), weights, logits, over, group(p), p.ctx);
        if (p.discrete) mot_discretize(weights, over, group(p), p.ctx);
    }

    // The gradient that reaches the controller through merge and emit weights, and through it dx (added).
    void controller_backward(const Pass& p, Tensor dx, Tensor dout, Tensor x, Tensor merge, Tensor emit, Tensor output,
                             Tensor dmixed) const {
        Tensor dweights = p.temp("dweights", p.stat(), merge.shape),
               dlogits = p.temp("dlogits", p.stat(), merge.shape);  // [B,T,E]
        mot_weights_backward(dweights, dout, output, group(p), false, p.ctx);
        if (separate_emit())
            mot_softmax_backward(dlogits, dweights, emit, SoftmaxOver::experts, group(p), config.temperature, false,
                                 p.ctx);
        mot_weights_backward(dweights, x, dmixed, group(p), !separate_emit(), p.ctx);
        mot_softmax_backward(dlogits, dweights, merge, SoftmaxOver::group, group(p), config.temperature,
                             separate_emit(), p.ctx);
        logits_backward(p, "controller.weight", dx, dlogits, x);
    }
};

}  // namespace

std::unique_ptr<Block> make_mot(const ModelConfig& config) { return std::make_unique<Mot>(config); }

}  // namespace llmc
