// The merge and emit weights of a Mixture of Tokens: controllers, learned temperatures, softmaxes, in all variants.
// Formulas with the same names: docs/mot.md, "Variants".
//
//   logits  = x controller^T                                   [B,T,E]   one for merge, with some variants one for emit
//   scaled  = logits / tau                                               tau: learned factor, one or one per expert
//   weights = softmax of scaled / temperature; --emit and --merge-softmax choose other formulas
#pragma once
#include "llmc/model/blocks/block.h"

namespace llmc {

class MotWeights {
public:
    explicit MotWeights(const ModelConfig& config);

    // Parameters, saved tensors and metrics, for the block's own declare functions.
    void declare_params(Unit& unit) const;
    void declare_saved(std::vector<SavedSpec>& saved, int64_t B, int64_t T, const Pass& p) const;
    std::vector<std::string> declare_metrics() const;

    // Computes the merge and emit weights of the tokens x [B,T,C] act into the saved tensors, and the metrics.
    void forward(const Pass& p, Tensor x) const;
    // The weights, [B,T,E] stat, after forward.
    Tensor merge(const Pass& p) const { return p.saved("merge"); }
    Tensor emit(const Pass& p) const { return p.saved(config.emit == Emit::shared ? "merge" : "emit"); }
    // Gradients of the controllers and temperatures (to p.grad), and of the tokens (added to dx [B,T,C] act). The
    // weights get gradients from two sides: from merge, given dmixed [E,R,C], the gradient of the mixtures; and from
    // emit, given dout [B,T,C] and output [E,R,C], the experts' output. x [B,T,C] is forward's input.
    void backward(const Pass& p, Tensor dx, Tensor dout, Tensor x, Tensor output, Tensor dmixed) const;

private:
    // How merge or emit gets its weights from tokens: names of its parameters and saved tensors, and the softmax. If
    // emit shares something with merge, both have the same pointer.
    struct Path {
        const char *weights, *scaled, *controller, *mix, *temperature;
        SoftmaxOver over;
    };
    bool learned() const { return config.router == Router::learned; }
    bool emit_softmax() const { return config.emit == Emit::group || config.emit == Emit::experts; }
    bool emit_logits() const {  // emit has logits of its own
        return emit_softmax() &&
               (emit_path.controller != merge_path.controller || emit_path.temperature != merge_path.temperature);
    }
    // The controllers are added to, or averaged with, a base controller; the average has a learned weight.
    bool based() const {
        return config.controllers != Controllers::shared && config.controllers != Controllers::separate;
    }
    bool weighted() const {
        return config.controllers == Controllers::weighted || config.controllers == Controllers::weighted_common;
    }
    bool exponential() const { return config.temperature_form == TemperatureForm::exp; }
    Group group(const Pass& p) const { return {p.group_size, config.group_axis == GroupAxis::sequence}; }

    void emit_forward(const Pass& p, Tensor x, Tensor logits, Tensor scaled) const;
    Tensor controller(const Pass& p, const Path& path) const;
    Tensor scale(const Pass& p, const Path& path, Tensor logits) const;
    void weigh(const Pass& p, const Path& path, Tensor logits, Tensor scaled) const;
    void path_backward(const Pass& p, const Path& path, Tensor dx, Tensor dscaled, Tensor x, bool second) const;
    void controller_backward(const Pass& p, const Path& path, Tensor dx, Tensor dlogits, Tensor x, bool second) const;
    Tensor metric(const Pass& p, const std::string& first, int64_t count) const;

    const ModelConfig config;
    Path merge_path, emit_path;
};

}  // namespace llmc
