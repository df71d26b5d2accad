#include "llmc/model/blocks/feed_forward.h"

namespace llmc {

FeedForward::FeedForward(const std::string& prefix, Hidden activation, const Sizes& sizes)
    : weights{prefix + "up.weight", prefix + "gate.weight", prefix + "down.weight", prefix + "up.bias",
              prefix + "down.bias"},
      saved{prefix + "up", prefix + "gate", prefix + "hidden"}, f(activation_of(activation)),
      gated(is_gated(activation)), sizes(sizes) {}

void FeedForward::declare_params(Unit& unit) const {
    const int64_t C = sizes.d_model, F = sizes.hidden, E = sizes.experts;
    auto shape = [&](int64_t rows, int64_t columns) { return E ? Shape{E, rows, columns} : Shape{rows, columns}; };
    unit.hidden_weight(weights.up, shape(F, C), C);
    if (gated) unit.hidden_weight(weights.gate, shape(F, C), C);
    unit.hidden_weight(weights.down, shape(C, F), F * sizes.summed);
    if (sizes.bias) {
        unit.bias(weights.up_bias, {F}, C);
        unit.bias(weights.down_bias, {C}, F);
    }
}

static Shape with_last(Shape shape, int64_t columns) {
    shape.dim[size_t(shape.rank - 1)] = columns;
    return shape;
}

void FeedForward::declare_saved(std::vector<SavedSpec>& list, const Shape& input, DType act) const {
    const Shape wide = with_last(input, sizes.hidden);
    if (gated) list.push_back({saved.gate.c_str(), act, wide});
    if (gated || keeps_product()) list.push_back({saved.up.c_str(), act, wide});
    if (!makes_hidden_again()) list.push_back({saved.hidden.c_str(), act, wide});
}

// f(...) [...,F] of x [...,C]: room for it, or what forward has left there.
Tensor FeedForward::hidden(const Pass& p, const Tensor& x) const {
    return makes_hidden_again() ? p.temp("hidden", with_last(x.shape, sizes.hidden)) : p.saved(saved.hidden.c_str());
}

void FeedForward::product(const Pass& p, Tensor out, Tensor a, Tensor b, const MatmulOptions& options,
                          Tensor offsets) const {
    if (!offsets) return matmul(out, a, b, options, p.ctx);
    MatmulOptions ragged = options;
    ragged.expected_rows = p.expected_rows;
    matmul_ragged(out, a, b, offsets, ragged, p.ctx);
}

void FeedForward::forward(const Pass& p, Tensor y, Tensor x, Tensor offsets) const {
    Tensor hidden = this->hidden(p, x);  // [...,F]
    if (gated) {
        Tensor gate = p.saved(saved.gate.c_str()), up = p.saved(saved.up.c_str());
        product(p, gate, x, param(p, weights.gate), {.transpose_b = true}, offsets);
        product(p, up, x, param(p, weights.up), {.transpose_b = true}, offsets);
        gated_forward(hidden, gate, up, f, p.ctx);
    } else {
        product(p, hidden, x, param(p, weights.up),
                {.transpose_b = true, .bias = sizes.bias ? param(p, weights.up_bias) : Tensor{}, .activation = f,
                 .pre = keeps_product() ? p.saved(saved.up.c_str()) : Tensor{}},
                offsets);
    }
    product(p, y, hidden, param(p, weights.down),
            {.transpose_b = true, .bias = sizes.bias ? param(p, weights.down_bias) : Tensor{}}, offsets);
}

void FeedForward::backward(const Pass& p, Tensor dx, Tensor dy, Tensor x, Tensor offsets) const {
    Tensor hidden = this->hidden(p, x), again = makes_hidden_again() ? hidden : Tensor{};
    Tensor dhidden = p.temp("dhidden", hidden.shape);  // [...,F], before the activation (gated: of up)
    Tensor dgate = gated ? p.temp("dgate", hidden.shape) : Tensor{};
    const MatmulOptions gradient{.transpose_a = true, .accumulate = p.accumulate};
    auto grad = [&](const std::string& name) { return p.grad(name.c_str()); };

    if (gated) {
        Tensor gate = p.saved(saved.gate.c_str()), up = p.saved(saved.up.c_str());
        product(p, dhidden, dy, param(p, weights.down), {}, offsets);
        gated_backward(dgate, dhidden, again, dhidden, gate, up, f, p.ctx);
    } else {
        const Tensor pre = keeps_product() ? p.saved(saved.up.c_str()) : f == Activation::relu ? hidden : Tensor{};
        product(p, dhidden, dy, param(p, weights.down), {.backward = f, .pre = pre, .value = again}, offsets);
    }
    product(p, grad(weights.down), dy, hidden, gradient, offsets);
    if (sizes.bias) bias_backward(grad(weights.down_bias), dy, p.accumulate, p.ctx);

    if (gated) {
        product(p, dx, dgate, param(p, weights.gate), {}, offsets);
        product(p, grad(weights.gate), dgate, x, gradient, offsets);
    }
    product(p, dx, dhidden, param(p, weights.up), {.accumulate = gated}, offsets);
    product(p, grad(weights.up), dhidden, x, gradient, offsets);
    if (sizes.bias) bias_backward(grad(weights.up_bias), dhidden, p.accumulate, p.ctx);
}

}  // namespace llmc
