// The feed-forward layer of dense blocks, of the experts of both kinds of mixtures, and of shared experts.
//
//   plain:           y = f(x Wup^T + b) Wdown^T + b'        x [...,C], Wup [F,C], Wdown [C,F]
//   swiglu, geglu:   y = (f(x Wgate^T) * (x Wup^T)) Wdown^T   Wgate [F,C]; f = silu, gelu_erf (Shazeer 2020)
//   linear:          y = x Wup^T Wdown^T
// With experts the weights are [E,F,C] and [E,C,F], and x is [E,S,C]: S rows for every expert; or [R,C] with offsets
// [E+1]: ragged rows (see ops.h).
#pragma once
#include "llmc/model/blocks/block.h"

namespace llmc {

class FeedForward {
public:
    struct Sizes {
        int64_t d_model, hidden;  // C, F
        int64_t experts = 0;      // 0: one feed-forward, no axis of experts
        int64_t summed = 1;       // number of outputs that add up: factor of Wdown's fan-in for its initialisation
        bool bias = false;        // not with a gated activation
    };
    // prefix is put before the names of parameters and saved tensors: "", "experts.", "shared."
    FeedForward(const std::string& prefix, Hidden activation, const Sizes& sizes);

    void declare_params(Unit& unit) const;
    // `input` is the shape of x.
    void declare_saved(std::vector<SavedSpec>& saved, const Shape& input, DType act) const;
    // y = feed-forward of x, both of x's shape, act. offsets: for ragged rows.
    void forward(const Pass& p, Tensor y, Tensor x, Tensor offsets = {}) const;
    // dx = gradient with respect to x, given dy; dx may be dy. Gradients of parameters go to the pass.
    void backward(const Pass& p, Tensor dx, Tensor dy, Tensor x, Tensor offsets = {}) const;

private:
    bool keeps_product() const { return f != Activation::none && f != Activation::relu; }  // relu' follows from relu(x)
    // Whether backward recomputes f(...), which it passes anyway: this is cheaper than saving it.
    bool makes_hidden_again() const { return gated || keeps_product(); }
    Tensor hidden(const Pass& p, const Tensor& x) const;
    Tensor param(const Pass& p, const std::string& name) const { return p.param(name.c_str()); }
    void product(const Pass& p, Tensor out, Tensor a, Tensor b, const MatmulOptions& options, Tensor offsets) const;

    struct { std::string up, gate, down, up_bias, down_bias; } weights;
    struct { std::string up, gate, hidden; } saved;
    Activation f;
    bool gated;
    Sizes sizes;
};

}  // namespace llmc
