// Mixture of Tokens (Antoniak et al. 2023). Derivation with the same names: docs/mot.md.
//
// g tokens at one position of g sequences form a group; r numbers the groups (R = B*T/g), E experts of hidden size F:
//   merge, emit  = weights of the tokens, see mot_weights.h               [B,T,E]
//   mixed[e,r]   = sum_i merge[i,e] x_i                                   [E,R,C]
//   output[e,r]  = f(mixed[e,r] Wup_e^T) Wdown_e^T                        [E,R,C]   or gated, see feed_forward.h
//   out_i        = sum_e emit[i,e] output[e,r]                            [B,T,C]
// With --mixture-norm, mixed and output go through a layernorm each. With --group-order random, the tokens are put in a
// random order before, and out is put back into their order.
#include "llmc/base/rng.h"
#include "llmc/model/blocks/exchange.h"
#include "llmc/model/blocks/experts.h"
#include "llmc/model/blocks/mot_weights.h"

namespace llmc {
namespace {

constexpr double slot_norm_eps = 1e-5;

// A layernorm of slots [E,R,C]: the names of its parameters and saved tensors.
struct SlotNorm {
    const char *weight, *bias, *mean, *rstd, *normed;
};
constexpr SlotNorm mixture_norm{"mixture_norm.weight", "mixture_norm.bias", "mixture_mean", "mixture_rstd", "mixture"};
constexpr SlotNorm expert_norm{"expert_norm.weight", "expert_norm.bias", "expert_mean", "expert_rstd", "answer"};

class Mot final : public Block {
public:
    explicit Mot(const ModelConfig& c)
        : Block(c), weights(c), expert(c.expert_activation, {.d_model = c.d_model,
                                                             .hidden = c.expert_size,
                                                             .experts = c.experts,
                                                             .summed = outputs_that_add_up(c, "mot")}) {}

    void declare_params(Unit& dense, Unit& experts) const override {
        weights.declare_params(dense);
        expert.declare_params(experts);
        if (!config.mixture_norm) return;
        for (const SlotNorm& norm : {mixture_norm, expert_norm}) {
            dense.ones(norm.weight, {config.d_model});
            dense.zeros(norm.bias, {config.d_model});
        }
    }

    std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& p) const override {
        const int64_t E = config.experts, R = B * T / p.group_size;
        const Shape rows{E, R, config.d_model};
        std::vector<SavedSpec> saved = {{"mixed", p.act, rows}, {"output", p.act, rows}};
        if (p.group_ranks) B *= p.group_ranks->size, T /= p.group_ranks->size;
        if (p.group_ranks) saved.push_back({"positions", p.act, {B, T, config.d_model}});
        weights.declare_saved(saved, B, T, p);
        expert.declare_saved(saved, p, rows);
        if (config.mixture_norm)
            for (const SlotNorm& norm : {mixture_norm, expert_norm}) {
                saved.push_back({norm.mean, p.stat(), {E, R}});
                saved.push_back({norm.rstd, p.stat(), {E, R}});
                saved.push_back({norm.normed, p.act, rows});
            }
        if (shuffled(p)) {
            saved.push_back({"slots", DType::i32, {1, B * T}, true});
            saved.push_back({"where", DType::i32, {B, T, 1}, true});
        }
        return saved;
    }

    std::vector<std::string> declare_metrics() const override { return weights.declare_metrics(); }

    void forward(const Pass& p, Tensor out, Tensor x) const override {
        if (p.live_rows && p.live_rows < p.B) fill(x.slice(p.live_rows, p.B), 0, p.ctx);
        if (!p.group_ranks) return forward_here(p, out, x);
        Tensor positions = p.saved("positions"), answers = p.temp("answers", positions.shape);
        to_positions(p, positions, x);
        forward_here(with_all_sequences(p), answers, positions);
        from_positions(p, out, answers);
    }

    void backward(const Pass& p, Tensor dx, Tensor dout, Tensor x) const override {
        if (!p.group_ranks) return backward_here(p, dx, dout, x);
        Tensor positions = p.saved("positions");
        Tensor dpositions = p.temp("dpositions", positions.shape), danswers = p.temp("danswers", positions.shape);
        to_positions(p, danswers, dout);
        backward_here(with_all_sequences(p), dpositions, danswers, positions);
        from_positions(p, dx, dpositions);
    }

private:
    // ---- on this rank: all sequences of the groups, at p.T positions
    void forward_here(const Pass& p, Tensor out, Tensor x) const {
        if (!shuffled(p)) return mix(p, out, x);
        if (!p.recomputing)  // the block's name gives every layer another order
            random_order(p.saved("slots"), p.saved("where"), p.draw, hash_of(p.dense.unit->prefix),
                         config.group_axis == GroupAxis::sequence, p.ctx);
        Tensor mixed_out = p.temp("mixed_out", out.shape);
        mix(p, mixed_out, put_in_order(p, x));
        put_back(p, out, mixed_out);
    }

    void backward_here(const Pass& p, Tensor dx, Tensor dout, Tensor x) const {
        if (!shuffled(p)) return mix_backward(p, dx, dout, x);
        Tensor mixed_dx = p.temp("mixed_dx", dx.shape);
        mix_backward(p, mixed_dx, put_in_order(p, dout), put_in_order(p, x));
        put_back(p, dx, mixed_dx);
    }

    Group group(const Pass& p) const { return {p.group_size, config.group_axis == GroupAxis::sequence}; }

    // ---- random order. Generation keeps the order of its rows: --group-fill decides about its groups.
    bool shuffled(const Pass& p) const { return config.group_order == GroupOrder::random && !p.generating; }
    Tensor put_in_order(const Pass& p, Tensor x) const {
        Tensor ordered = p.temp("ordered", x.shape);
        moe_gather(ordered.view({1, p.B * p.T, config.d_model}), x, p.saved("slots"), 1, {}, p.ctx);
        return ordered;
    }
    void put_back(const Pass& p, Tensor x, Tensor ordered) const {
        moe_scatter(x, ordered.view({1, p.B * p.T, config.d_model}), p.saved("where"), {}, false, p.ctx);
    }

    // ---- norms of slots
    // The slots for the next op: after the norm, if there is one; computed by `normalize`.
    Tensor normed(const Pass& p, const SlotNorm& norm, Tensor slots) const {
        return config.mixture_norm ? p.saved(norm.normed) : slots;
    }
    void normalize(const Pass& p, const SlotNorm& norm, Tensor slots) const {
        if (!config.mixture_norm) return;
        norm_forward(p.saved(norm.normed), p.saved(norm.mean), p.saved(norm.rstd), slots, p.param(norm.weight),
                     p.param(norm.bias), Norm::layernorm, slot_norm_eps, p.ctx);
    }
    // The gradient of the slots, given that of the result of `normed`.
    Tensor normalize_backward(const Pass& p, const SlotNorm& norm, Tensor dnormed, Tensor slots) const {
        if (!config.mixture_norm) return dnormed;
        Tensor dslots = p.temp(norm.normed, slots.shape);
        norm_backward(dslots, p.grad(norm.weight), p.grad(norm.bias), dnormed, slots, p.saved(norm.mean),
                      p.saved(norm.rstd), p.param(norm.weight), Norm::layernorm, false, p.accumulate, p.ctx);
        return dslots;
    }

    // ---- the layer
    void mix(const Pass& p, Tensor out, Tensor x) const {
        Tensor mixed = p.saved("mixed"), output = p.saved("output");  // [E,R,C]
        weights.forward(p, x);
        mot_merge(mixed, weights.merge(p), x, group(p), p.ctx);
        normalize(p, mixture_norm, mixed);
        expert.forward(p, output, normed(p, mixture_norm, mixed));
        normalize(p, expert_norm, output);
        mot_emit(out, weights.emit(p), normed(p, expert_norm, output), group(p), false, p.ctx);
    }

    void mix_backward(const Pass& p, Tensor dx, Tensor dout, Tensor x) const {
        Tensor mixed = p.saved("mixed"), output = p.saved("output");
        Tensor dslots = p.temp("dslots", mixed.shape);                // [E,R,C]
        mot_merge(dslots, weights.emit(p), dout, group(p), p.ctx);    // the transpose of emit is merge
        dslots = normalize_backward(p, expert_norm, dslots, output);  // doutput
        expert.backward(p, dslots, normed(p, mixture_norm, mixed));
        dslots = normalize_backward(p, mixture_norm, dslots, mixed);     // dmixed
        mot_emit(dx, weights.merge(p), dslots, group(p), false, p.ctx);  // the transpose of merge is emit
        weights.backward(p, dx, dout, x, normed(p, expert_norm, output), dslots);
    }

    const MotWeights weights;
    const Experts expert;
};

}  // namespace

std::unique_ptr<Block> make_mot(const ModelConfig& config) { return std::make_unique<Mot>(config); }

}  // namespace llmc
