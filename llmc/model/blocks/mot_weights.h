// The merge and emit weights of a Mixture of Tokens: controllers, learned temperatures, softmaxes, in all variants.
// Formulas with the same names: docs/mot.md, "Variants".
//
//   logits  = x controller^T                                   [B,T,E]   one for merge, with some variants one for emit
//   scaled  = logits / tau                                               tau: learned, one or one per expert
//   weights = softmax of scaled / temperature, or what --emit and --merge-softmax say instead
#pragma once
#include "llmc/model/blocks/block.h"

namespace llmc {

class MotWeights {
public:
    explicit MotWeights(const ModelConfig& config);

    void declare_params(Unit& unit) const;
    void declare_saved(std::vector<SavedSpec>& saved, int64_t B, int64_t T, const Pass& p) const;
    std::vector<std::string> declare_metrics() const;

    // Makes the weights of the tokens x [B,T,C] and the metrics.
    void forward(const Pass& p, Tensor x) const;
    Tensor merge(const Pass& p) const { return p.saved("merge"); }  // [B,T,E] stat
    Tensor emit(const Pass& p) const { return p.saved(config.emit == "shared" ? "merge" : "emit"); }
    // The gradient that reaches the controllers through merge (dmixed [E,R,C] is that of the mixtures) and emit (dout
    // [B,T,C] that of the answers, which were made of output [E,R,C]), and through them dx [B,T,C] (added).
    void backward(const Pass& p, Tensor dx, Tensor dout, Tensor x, Tensor output, Tensor dmixed) const;

private:
    // One way from tokens to weights: the names of its parameters and saved tensors. What emit shares with merge has
    // the same pointer.
    struct Path {
        const char *weights, *scaled, *controller, *mix, *temperature;
        SoftmaxOver over;
    };
    bool learned() const { return config.router == "learned"; }
    bool emit_softmax() const { return config.emit == "group" || config.emit == "experts"; }
    bool emit_logits() const {  // of its own
        return emit_softmax() &&
               (emit_path.controller != merge_path.controller || emit_path.temperature != merge_path.temperature);
    }
    bool based() const { return config.controllers != "shared" && config.controllers != "separate"; }
    bool weighted() const { return config.controllers == "weighted" || config.controllers == "weighted-common"; }
    bool exponential() const { return config.temperature_form == "exp"; }
    Group group(const Pass& p) const { return {p.group_size, config.group_axis == "sequence"}; }

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
