// Sparse Mixture of Experts: token choice (Shazeer et al. 2017; Fedus et al. 2021, Switch) and expert choice (Zhou et
// al. 2022). Formulas with the same names: docs/moe.md.
//
// N = B*T tokens n, E experts. The inputs and outputs of all experts are R rows: S for every expert ("slots"), or as
// many as it needs ("ragged", see ops.h). The tables slots and where say which token has which row:
//   logits[n,e]  = router_e . x_n                                         [B,T,E]
//   probs        = softmax of logits over the experts (for expert choice also over the tokens, as an option)
//   slots, where = token choice: every token takes the top_k experts with the largest probs, up to their capacity
//                  expert choice: every expert takes the tokens with the largest probs out of each set of candidates
//   gates        = probs, or scaled to sum to 1 over the experts of a token
//   gathered[r]  = x_n,  (n,e) = slots[r]                                 [R,C]
//   output[r]    = f(gathered[r] Wup_e^T) Wdown_e^T                       [R,C]   or gated, see feed_forward.h
//   sum_n        = sum over the rows (n,e) of token n of gates[n,e] output[r]
//   out          = sum (token choice), layernorm(sum) (expert choice)     [B,T,C]
// Shared experts process every token: out += their outputs.
#include "llmc/model/blocks/experts.h"

namespace llmc {
namespace {

constexpr double output_norm_eps = 1e-5;

// The common part of both kinds: the router, and the experts between gather and scatter.
class Moe : public Block {
public:
    Moe(const ModelConfig& c, const std::string& kind)
        : Block(c), expert(c.expert_activation, {.d_model = c.d_model, .hidden = c.expert_size, .experts = c.experts,
                                              .summed = outputs_that_add_up(c, kind)}),
          shared("shared.", c.expert_activation, {.d_model = c.d_model, .hidden = c.shared_experts * c.expert_size}) {}

    void declare_params(Unit& dense, Unit& experts) const override {
        dense.weight("router.weight", {config.experts, config.d_model}, config.d_model);
        dense.masters = true;
        if (has_shared()) shared.declare_params(dense);
        expert.declare_params(experts);
    }

    std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& p) const override {
        const int64_t E = config.experts, C = config.d_model, S = slots_per_expert(B, T, p);
        const int64_t R = ragged(p) ? ragged_rows(B * T * config.top_k, E) : E * S;
        const Shape rows = ragged(p) ? Shape{R, C} : Shape{E, S, C};
        std::vector<SavedSpec> saved = {{"slots", DType::i32, ragged(p) ? Shape{R} : Shape{E, S}, true},
                                        {"where", DType::i32, {B, T, E}, true},
                                        {"probs", p.stat(), {B, T, E}},
                                        {"output", p.act, rows}};
        if (ragged(p)) saved.push_back({"offsets", DType::i32, {E + 1}, true});
        if (z_loss()) saved.push_back({"lse", p.stat(), {B, T}});
        expert.declare_saved(saved, p, rows, ragged(p) ? B * T * config.top_k : 0);
        if (has_shared()) shared.declare_saved(saved, {B, T, C}, p.act);
        return saved;
    }

    std::vector<std::string> declare_metrics() const override {
        std::vector<std::string> names = {"router_entropy", "router_entropy_std", "router_logits_mean",
                                          "router_logits_std"};
        if (z_loss()) names.push_back("z_loss");
        return names;
    }

protected:
    virtual bool ragged(const Pass&) const { return false; }
    virtual int64_t slots_per_expert(int64_t B, int64_t T, const Pass& p) const = 0;  // not for ragged rows

    // The softmax that makes probs: over `over`, of tensors [B,T,E] seen as `shape`.
    struct RouterSoftmax {
        SoftmaxOver over = SoftmaxOver::experts;
        Group group{};
        Shape shape;
    };
    virtual RouterSoftmax router_softmax(const Pass& p) const { return {.shape = {p.B, p.T, config.experts}}; }

    // probs [B,T,E] of the tokens x. Its statistics, and the z-loss, go to `metrics` [4, 5 with z-loss].
    void route(const Pass& p, Tensor x, Tensor metrics) const {
        const RouterSoftmax s = router_softmax(p);
        Tensor logits = p.temp("logits", p.stat(), {p.B, p.T, config.experts});
        Tensor seen = logits.view(s.shape), probs = p.saved("probs").view(s.shape);
        if (p.live_rows && p.live_rows < p.B) fill(x.slice(p.live_rows, p.B), 0, p.ctx);
        Tensor router = p.master("router.weight");
        matmul(logits, as(router.dtype, p, x), router, {.transpose_b = true}, p.ctx);
        mot_softmax_forward(probs, seen, s.over, s.group, 1, p.ctx);
        if (metrics) mot_statistics(metrics.slice(0, 4), probs, seen, s.over, s.group, p.ctx);
        if (z_loss()) moe_z_loss(metrics ? metrics.slice(4, 5) : Tensor{}, p.saved("lse"), logits, p.ctx);
    }

    // sum [B,T,C] = (or +=) the experts' outputs for x, after slots and where are chosen.
    void experts_forward(const Pass& p, Tensor sum, Tensor x, Tensor gates, bool accumulate) const {
        Tensor output = p.saved("output"), gathered = p.temp("gathered", output.shape);  // [R,C]
        moe_gather(gathered, x, p.saved("slots"), config.experts, {}, p.ctx);
        expert.forward(p, output, gathered, offsets(p));
        moe_scatter(sum, output, p.saved("where"), gates, accumulate, p.ctx);
    }

    // dx = (or +=) the gradient of dsum through the experts; dgates [B,T,E] = the gradient of the gates.
    void experts_backward(const Pass& p, Tensor dx, Tensor dgates, Tensor dsum, Tensor x, Tensor gates,
                          bool accumulate) const {
        Tensor output = p.saved("output"), slots = p.saved("slots");
        Tensor drows = p.temp("drows", output.shape);  // [R,C]: doutput, then dgathered
        moe_weights_backward(dgates, dsum, output, p.saved("where"), false, p.ctx);
        moe_gather(drows, dsum, slots, config.experts, gates, p.ctx);
        Tensor gathered{};
        if (!p.expert_ranks) {
            gathered = p.temp("gathered", output.shape);  // recomputed: cheaper than saved
            moe_gather(gathered, x, slots, config.experts, {}, p.ctx);
        }
        expert.backward(p, drows, gathered, offsets(p));
        moe_scatter(dx, drows, p.saved("where"), {}, accumulate, p.ctx);
    }

    // Gradient of the router through probs and the z-loss; adds its part to dx.
    void router_backward(const Pass& p, Tensor dx, Tensor dprobs, Tensor x) const {
        const RouterSoftmax s = router_softmax(p);
        Tensor dlogits = p.temp("dlogits", p.stat(), dprobs.shape), probs = p.saved("probs");
        mot_softmax_backward(dlogits.view(s.shape), dprobs.view(s.shape), probs.view(s.shape), s.over, s.group, 1,
                             false, p.ctx);
        if (z_loss())
            moe_z_loss_backward(dlogits, p.saved("lse"), probs, config.router_z_loss_weight * p.aux_scale, p.ctx);
        router_logits_backward(p, dx, dlogits, x);
    }

    Tensor offsets(const Pass& p) const { return ragged(p) ? p.saved("offsets") : Tensor{}; }
    bool has_shared() const { return config.shared_experts > 0; }

private:
    bool z_loss() const { return config.router_z_loss_weight > 0; }

    // In bf16-mixed the router also uses f32 parameters, because a rounded logit could change the choice of experts.
    static Tensor as(DType dtype, const Pass& p, Tensor x) {
        if (x.dtype == dtype) return x;
        Tensor other = p.temp("x", dtype, x.shape);
        copy(other, x, p.ctx);
        return other;
    }
    static void router_logits_backward(const Pass& p, Tensor dx, Tensor dlogits, Tensor x) {
        Tensor router = p.master("router.weight");
        if (router.dtype == x.dtype) return logits_backward(p, "router.weight", dx, dlogits, x);
        Tensor wide = as(router.dtype, p, x), through = p.temp("through the router", dx.shape);  // [B,T,C]
        matmul(p.grad("router.weight"), dlogits, wide, {.transpose_a = true, .accumulate = p.accumulate}, p.ctx);
        matmul(wide, dlogits, router, {}, p.ctx);
        copy(through, wide, p.ctx);
        add(dx, dx, through, p.ctx);
    }

    const Experts expert;

protected:
    const FeedForward shared;  // the shared experts side by side: one feed-forward of all their hidden units
};

// ---------------------------------------------------------------------------------------------------- token choice

class TokenChoice final : public Moe {
public:
    explicit TokenChoice(const ModelConfig& c)
        : Moe(c, "moe_token_choice"), balance_weight(aux_loss_weight(c, "balance_loss")) {}

    std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& p) const override {
        std::vector<SavedSpec> saved = Moe::declare_saved(B, T, p);
        saved.push_back({"counts", DType::i32, {config.experts}, true});
        if (config.renormalize_gates) saved.push_back({"gates", p.stat(), {B, T, config.experts}});
        return saved;
    }

    std::vector<std::string> declare_metrics() const override {
        std::vector<std::string> names = {"balance_loss", "dropped", "load_min", "load_max"};
        for (const std::string& name : Moe::declare_metrics()) names.push_back(name);
        return names;
    }

    void forward(const Pass& p, Tensor out, Tensor x) const override {
        route(p, x, p.metrics ? p.metrics.slice(4, p.metrics.shape[0]) : Tensor{});
        Tensor probs = p.saved("probs"), where = p.saved("where"), counts = p.saved("counts");
        if (!p.recomputing) moe_choose_experts(p.saved("slots"), where, counts, offsets(p), probs, choices(), p.ctx);
        if (p.metrics) moe_balance(p.metrics.slice(0, 4), probs, counts, p.saved("slots"), p.ctx);
        if (config.renormalize_gates) moe_renormalize(gates(p), probs, where, p.ctx);
        if (has_shared()) shared.forward(p, out, x);
        experts_forward(p, out, x, gates(p), has_shared());
    }

    void backward(const Pass& p, Tensor dx, Tensor dout, Tensor x) const override {
        Tensor probs = p.saved("probs"), dprobs = p.temp("dprobs", p.stat(), probs.shape);  // first of the gates
        if (has_shared()) shared.backward(p, dx, dout, x);
        experts_backward(p, dx, dprobs, dout, x, gates(p), has_shared());
        if (config.renormalize_gates)
            moe_renormalize_backward(dprobs, dprobs, gates(p), probs, p.saved("where"), p.ctx);
        moe_balance_backward(dprobs, p.saved("counts"), balance_weight * p.aux_scale, p.ctx);
        router_backward(p, dx, dprobs, x);
    }

private:
    // In generation no token is dropped: a continuation must not depend on what else is generated.
    bool ragged(const Pass& p) const override { return config.dropless || p.generating; }
    int64_t slots_per_expert(int64_t B, int64_t T, const Pass& p) const override {
        return ragged(p) ? 0 : expert_capacity(config, B * T);
    }
    ExpertChoices choices() const {
        return {config.top_k, config.drop_order == DropOrder::gate ? DropOrder::gate : DropOrder::position,
                config.balanced_routing};
    }
    Tensor gates(const Pass& p) const { return p.saved(config.renormalize_gates ? "gates" : "probs"); }

    const double balance_weight;
};

// --------------------------------------------------------------------------------------------------- expert choice

class ExpertChoice final : public Moe {
public:
    explicit ExpertChoice(const ModelConfig& c) : Moe(c, "moe_expert_choice") {}

    void declare_params(Unit& dense, Unit& experts) const override {
        Moe::declare_params(dense, experts);
        if (!config.expert_choice_norm) return;
        dense.ones("output_norm.weight", {config.d_model});
        dense.zeros("output_norm.bias", {config.d_model});
    }

    std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& p) const override {
        std::vector<SavedSpec> saved = Moe::declare_saved(B, T, p);
        if (!config.expert_choice_norm) return saved;
        saved.push_back({"sum", p.act, {B, T, config.d_model}});
        saved.push_back({"mean", p.stat(), {B, T}});
        saved.push_back({"rstd", p.stat(), {B, T}});
        return saved;
    }

    void forward(const Pass& p, Tensor out, Tensor x) const override {
        route(p, x, p.metrics);
        if (!p.recomputing) {
            const Candidates c = candidates(p.B, p.T);
            moe_choose_tokens(p.saved("slots"), p.saved("where"), p.saved("probs"), c.chosen, c.group, p.ctx);
        }
        if (has_shared()) shared.forward(p, out, x);
        if (!config.expert_choice_norm) return experts_forward(p, out, x, p.saved("probs"), has_shared());
        Tensor normed = has_shared() ? p.temp("normed", out.shape) : out;  // [B,T,C]
        experts_forward(p, p.saved("sum"), x, p.saved("probs"), false);
        norm_forward(normed, p.saved("mean"), p.saved("rstd"), p.saved("sum"), p.param("output_norm.weight"),
                     p.param("output_norm.bias"), Norm::layernorm, output_norm_eps, p.ctx);
        if (has_shared()) add(out, out, normed, p.ctx);
    }

    void backward(const Pass& p, Tensor dx, Tensor dout, Tensor x) const override {
        Tensor probs = p.saved("probs"), dprobs = p.temp("dprobs", p.stat(), probs.shape), dsum = dout;
        if (config.expert_choice_norm) {
            dsum = p.temp("dsum", dout.shape);
            norm_backward(dsum, p.grad("output_norm.weight"), p.grad("output_norm.bias"), dout, p.saved("sum"),
                          p.saved("mean"), p.saved("rstd"), p.param("output_norm.weight"), Norm::layernorm, false,
                          p.accumulate, p.ctx);
        }
        if (has_shared()) shared.backward(p, dx, dout, x);
        experts_backward(p, dx, dprobs, dsum, x, probs, has_shared());
        router_backward(p, dx, dprobs, x);
    }

private:
    // An expert takes `chosen` tokens out of each of `sets` sets; group as moe_choose_tokens has it.
    struct Candidates { int64_t group, chosen, sets; };
    Candidates candidates(int64_t B, int64_t T) const {
        const int64_t group = competing_sequences(config, B);
        if (group == 0) return {0, expert_choices(config, B * T), 1};
        return {group, expert_choices(config, group), T * (B / group)};
    }
    int64_t slots_per_expert(int64_t B, int64_t T, const Pass&) const override {
        const Candidates c = candidates(B, T);
        return c.chosen * c.sets;
    }
    // Over the tokens of one candidate set: with [B,T,E] seen as [g, B/g * T, E], a set is one column of g rows.
    RouterSoftmax router_softmax(const Pass& p) const override {
        if (config.expert_choice_softmax == ChoiceSoftmax::experts) return Moe::router_softmax(p);
        const int64_t group = candidates(p.B, p.T).group, size = group ? group : p.B * p.T;
        return {SoftmaxOver::group, {.size = size}, {size, p.B * p.T / size, config.experts}};
    }
};

}  // namespace

std::unique_ptr<Block> make_moe_token_choice(const ModelConfig& config) {
    return std::make_unique<TokenChoice>(config);
}
std::unique_ptr<Block> make_moe_expert_choice(const ModelConfig& config) {
    return std::make_unique<ExpertChoice>(config);
}

}  // namespace llmc
