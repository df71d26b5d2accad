#include "llmc/model/blocks/mot_weights.h"

#include <algorithm>

namespace llmc {

namespace {

// grad (+)= d, for gradients that are made elsewhere first.
void put_gradient(Tensor grad, Tensor d, bool accumulate, Context& ctx) {
    if (accumulate)
        add(grad, grad, d, ctx);
    else
        copy(grad, d, ctx);
}

}  // namespace

MotWeights::MotWeights(const ModelConfig& c)
    : config(c), merge_path{"merge",          "scaled",      "controller.weight",
                            "controller_mix", "temperature", SoftmaxOver::group},
      emit_path{merge_path} {
    emit_path.weights = "emit", emit_path.scaled = "emit_scaled";
    emit_path.over = c.emit == Emit::experts ? SoftmaxOver::experts : SoftmaxOver::group;
    if (c.controllers != Controllers::shared) emit_path.controller = "emit_controller.weight";
    if (c.controllers == Controllers::weighted) emit_path.mix = "emit_controller_mix";
    if (c.learn_temperature == LearnTemperature::separate) emit_path.temperature = "emit_temperature";
}

void MotWeights::declare_params(Unit& unit) const {
    if (!learned()) return;
    const int64_t C = config.d_model, E = config.experts,
                  fan_in = config.controllers == Controllers::common_base ? 2 * C : C;
    unit.weight(merge_path.controller, {E, C}, fan_in);
    if (emit_path.controller != merge_path.controller) unit.weight(emit_path.controller, {E, C}, fan_in);
    if (based()) unit.weight("base_controller.weight", {E, C}, fan_in);
    if (weighted()) unit.scalar(merge_path.mix, {1}, 0.5);
    if (weighted() && emit_path.mix != merge_path.mix) unit.scalar(emit_path.mix, {1}, 0.5);
    if (config.learn_temperature == LearnTemperature::no) return;
    const Shape shape{config.temperature_per_expert ? E : 1};
    unit.scalar(merge_path.temperature, shape, 1, config.temperature_start);
    if (emit_path.temperature != merge_path.temperature)
        unit.scalar(emit_path.temperature, shape, 1, config.temperature_start);
}

void MotWeights::declare_saved(std::vector<SavedSpec>& saved, int64_t B, int64_t T, const Pass& p) const {
    const Shape shape{B, T, config.experts};
    saved.push_back({"merge", p.stat(), shape});
    if (config.emit != Emit::shared) saved.push_back({"emit", p.stat(), shape, config.emit == Emit::top});
    if (config.learn_temperature == LearnTemperature::no) return;
    saved.push_back({merge_path.scaled, p.stat(), shape});
    if (emit_logits()) saved.push_back({emit_path.scaled, p.stat(), shape});
}

std::vector<std::string> MotWeights::declare_metrics() const {
    if (!learned()) return {};
    std::vector<std::string> names;
    auto add = [&](const std::string& weights, bool softmax) {
        if (softmax) names.insert(names.end(), {weights + "_entropy", weights + "_entropy_std"});
        names.insert(names.end(), {weights + "_logits_mean", weights + "_logits_std"});
    };
    add("merge", config.merge_softmax);
    if (emit_softmax()) add("emit", true);
    if (config.learn_temperature != LearnTemperature::no) names.push_back(merge_path.temperature);
    if (config.learn_temperature == LearnTemperature::separate) names.push_back(emit_path.temperature);
    return names;
}

// The metrics from `first` on.
Tensor MotWeights::metric(const Pass& p, const std::string& first, int64_t count) const {
    const std::vector<std::string> names = declare_metrics();
    const int64_t at = std::find(names.begin(), names.end(), first) - names.begin();
    return p.metrics.slice(at, at + count);
}

// ------------------------------------------------------------------------------------------------------------- forward

void MotWeights::forward(const Pass& p, Tensor x) const {
    Tensor merge = this->merge(p);
    if (!learned()) {
        fill(merge, 1.0 / double(p.group_size), p.ctx);
        if (config.emit == Emit::experts) fill(emit(p), 1.0 / double(config.experts), p.ctx);
        return;
    }
    Tensor logits = config.merge_softmax ? p.temp("logits", p.stat(), merge.shape) : merge;
    matmul(logits, x, controller(p, merge_path), {.transpose_b = true}, p.ctx);
    Tensor scaled = scale(p, merge_path, logits);
    weigh(p, merge_path, logits, scaled);
    if (config.emit != Emit::shared) emit_forward(p, x, logits, scaled);
}

// logits, scaled: those of merge.
void MotWeights::emit_forward(const Pass& p, Tensor x, Tensor logits, Tensor scaled) const {
    Tensor emit = this->emit(p);
    if (config.emit == Emit::raw) return fill(emit, 1, p.ctx);
    if (config.emit == Emit::top) {
        if (p.recomputing) return;  // a decision
        copy(emit, merge(p), p.ctx);
        return mot_discretize(emit, SoftmaxOver::group, group(p), p.ctx);
    }
    if (emit_path.controller != merge_path.controller)
        matmul(logits, x, controller(p, emit_path), {.transpose_b = true}, p.ctx);
    weigh(p, emit_path, logits, emit_logits() ? scale(p, emit_path, logits) : scaled);
}

// The weights [E,C] act of a path's logits.
Tensor MotWeights::controller(const Pass& p, const Path& path) const {
    Tensor own = p.param(path.controller);
    if (!based()) return own;
    Tensor base = p.param("base_controller.weight"), sum = p.temp("controller", own.shape);
    if (weighted())
        interpolate(sum, own, base, p.param(path.mix), p.ctx);
    else
        add(sum, own, base, p.ctx);
    return sum;
}

// logits / tau [B,T,E].
Tensor MotWeights::scale(const Pass& p, const Path& path, Tensor logits) const {
    if (config.learn_temperature == LearnTemperature::no) return logits;
    Tensor scaled = p.saved(path.scaled), temperature = p.param(path.temperature);
    temperature_forward(scaled, logits, temperature, exponential(), p.ctx);
    if (p.metrics) temperature_mean(metric(p, path.temperature, 1), temperature, exponential(), p.ctx);
    return scaled;
}

// The path's weights, and their statistics with those of its logits.
void MotWeights::weigh(const Pass& p, const Path& path, Tensor logits, Tensor scaled) const {
    Tensor weights = p.saved(path.weights);
    const std::string name = path.weights;
    if (!config.merge_softmax) {  // the logits are the weights: they have no entropy
        if (!p.metrics) return;
        Tensor all = p.temp("statistics", DType::f64, {4});
        mot_statistics(all, weights, logits, path.over, group(p), p.ctx);
        return copy(metric(p, name + "_logits_mean", 2), all.slice(2, 4), p.ctx);
    }
    mot_softmax_forward(weights, scaled, path.over, group(p), config.temperature, p.ctx);
    if (p.metrics) mot_statistics(metric(p, name + "_entropy", 4), weights, logits, path.over, group(p), p.ctx);
    if (p.discrete) mot_discretize(weights, path.over, group(p), p.ctx);
}

// ------------------------------------------------------------------------------------------------------------ backward

void MotWeights::backward(const Pass& p, Tensor dx, Tensor dout, Tensor x, Tensor output, Tensor dmixed) const {
    if (!learned()) return;
    Tensor merge = this->merge(p), dweights = p.temp("dweights", p.stat(), merge.shape);  // [B,T,E]
    Tensor dscaled = config.merge_softmax ? p.temp("dscaled", p.stat(), merge.shape) : dweights;
    const bool shared = config.emit == Emit::shared;  // raw and top are constants
    if (shared || emit_softmax()) mot_weights_backward(dweights, dout, output, group(p), false, p.ctx);
    if (emit_softmax()) {
        mot_softmax_backward(dscaled, dweights, emit(p), emit_path.over, group(p), config.temperature, false, p.ctx);
        if (emit_logits()) path_backward(p, emit_path, dx, dscaled, x, false);
    }
    mot_weights_backward(dweights, x, dmixed, group(p), shared, p.ctx);
    if (config.merge_softmax)
        mot_softmax_backward(dscaled, dweights, merge, merge_path.over, group(p), config.temperature,
                             emit_softmax() && !emit_logits(), p.ctx);
    path_backward(p, merge_path, dx, dscaled, x, emit_logits());
}

// Back from the gradient of `scaled`, which is overwritten. second: the other path has been here in this pass.
void MotWeights::path_backward(const Pass& p, const Path& path, Tensor dx, Tensor dscaled, Tensor x,
                               bool second) const {
    if (config.learn_temperature != LearnTemperature::no)
        temperature_backward(dscaled, p.grad(path.temperature), dscaled, p.saved(path.scaled),
                             p.param(path.temperature), exponential(),
                             p.accumulate || (second && emit_path.temperature == merge_path.temperature), p.ctx);
    controller_backward(p, path, dx, dscaled, x, second);
}

void MotWeights::controller_backward(const Pass& p, const Path& path, Tensor dx, Tensor dlogits, Tensor x,
                                     bool second) const {
    Tensor own = p.param(path.controller), gradient = p.grad(path.controller), whole = controller(p, path);
    const bool accumulate = p.accumulate || (second && emit_path.controller == merge_path.controller);
    if (!based()) return logits_backward(p, dx, gradient, accumulate, dlogits, x, whole);

    Tensor dwhole = p.temp("dcontroller", p.stat(), own.shape), base_gradient = p.grad("base_controller.weight");
    logits_backward(p, dx, dwhole, false, dlogits, x, whole);
    if (weighted()) {
        const bool mixed_before = p.accumulate || (second && emit_path.mix == merge_path.mix);
        interpolate_backward(gradient, base_gradient, p.grad(path.mix), dwhole, own, p.param("base_controller.weight"),
                             p.param(path.mix), {accumulate, p.accumulate || second, mixed_before}, p.ctx);
    } else {
        put_gradient(gradient, dwhole, accumulate, p.ctx);
        put_gradient(base_gradient, dwhole, p.accumulate || second, p.ctx);
    }
}

}  // namespace llmc
