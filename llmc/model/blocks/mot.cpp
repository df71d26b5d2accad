// Mixture of Tokens (Antoniak et al. 2023). Derivation with the same names: docs/mot.md.
//
// g tokens at one position of g sequences form a group; r numbers the groups (R = B*T/g), E experts of hidden size F:
//   logits[i,e]  = controller_e . x_i                                     [B,T,E]
//   merge        = softmax over the group's tokens of logits / temperature
//   emit         = merge, or softmax over the experts of logits / temperature
//   mixed[e,r]   = sum_i merge[i,e] x_i                                   [E,R,C]
//   output[e,r]  = f(mixed[e,r] Wup_e^T) Wdown_e^T                        [E,R,C]   or gated, see feed_forward.h
//   out_i        = sum_e emit[i,e] output[e,r]                            [B,T,C]
#include "llmc/model/blocks/feed_forward.h"

namespace llmc {
namespace {

class Mot final : public Block {
public:
    explicit Mot(const ModelConfig& c)
        : Block(c), expert("experts.", c.expert_activation,
                           {.d_model = c.d_model, .hidden = c.expert_size, .experts = c.experts,
                            .summed = outputs_that_add_up(c, "mot")}) {}
    const char* kind() const override { return "mot"; }

    void declare_params(Unit& dense, Unit& experts) const override {
        if (learned()) dense.weight("controller.weight", {config.experts, config.d_model}, config.d_model);
        expert.declare_params(experts);
    }

    std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& p) const override {
        const int64_t E = config.experts;
        const Shape rows{E, B * T / p.group_size, config.d_model};  // [E,R,C]
        std::vector<SavedSpec> saved = {
            {"merge", p.stat(), {B, T, E}}, {"mixed", p.act, rows}, {"output", p.act, rows}};
        if (separate_emit()) saved.push_back({"emit", p.stat(), {B, T, E}});
        expert.declare_saved(saved, rows, p.act);
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
        Tensor mixed = p.saved("mixed"), output = p.saved("output");  // [E,R,C]
        if (p.live_rows && p.live_rows < p.B) fill(x.slice(p.live_rows, p.B), 0, p.ctx);
        weigh(p, merge, emit, x);
        mot_merge(mixed, merge, x, group(p), p.ctx);
        expert.forward(p, output, mixed);
        mot_emit(out, emit, output, group(p), false, p.ctx);
    }

    void backward(const Pass& p, Tensor dx, Tensor dout, Tensor x) const override {
        Tensor merge = p.saved("merge"), emit = separate_emit() ? p.saved("emit") : merge;
        Tensor mixed = p.saved("mixed"), output = p.saved("output");
        Tensor dslots = p.temp("dslots", mixed.shape);  // [E,R,C]: doutput, then dmixed

        mot_merge(dslots, emit, dout, group(p), p.ctx);  // the transpose of emit is merge
        expert.backward(p, dslots, dslots, mixed);
        mot_emit(dx, merge, dslots, group(p), false, p.ctx);  // the transpose of merge is emit
        if (learned()) controller_backward(p, dx, dout, x, merge, emit, output, dslots);
    }

private:
    bool learned() const { return config.router == "learned"; }
    bool separate_emit() const { return config.emit == "experts"; }
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

    const FeedForward expert;
};

}  // namespace

std::unique_ptr<Block> make_mot(const ModelConfig& config) { return std::make_unique<Mot>(config); }

}  // namespace llmc
