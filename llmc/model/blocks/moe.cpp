// Sparse Mixture of Experts: token choice (Shazeer et al. 2017; Fedus et al. 2021, Switch) and expert choice (Zhou et
// al. 2022). Formulas with the same names: docs/moe.md.
//
// N = B*T tokens n, E experts of hidden size F with S slots each; slots and where say which token has which slot: pairs
// n*E + e in slots, rows e*S + s in where.
//   logits[n,e]   = router_e . x_n                                        [B,T,E]
//   probs         = softmax over the experts of logits
//   slots, where  = token choice: every token takes the top_k experts with the largest probs, up to their capacity
//                   expert choice: every expert takes the tokens with the largest probs out of each set of candidates
//   gathered[e,s] = x_n,  slots[e,s] = n*E + e                            [E,S,C]
//   output[e,s]   = f(gathered[e,s] Wup_e^T) Wdown_e^T                    [E,S,C]   or gated, see feed_forward.h
//   sum_n         = sum over the slots (e,s) of token n of probs[n,e] output[e,s]
//   out           = sum (token choice), layernorm(sum) (expert choice)    [B,T,C]
#include "llmc/model/blocks/feed_forward.h"

namespace llmc {
namespace {

constexpr double output_norm_eps = 1e-5;

// What both kinds share: the router, and the experts between gather and scatter.
class Moe : public Block {
public:
    Moe(const ModelConfig& c, const std::string& kind)
        : Block(c), expert("experts.", c.expert_activation,
                           {.d_model = c.d_model, .hidden = c.expert_size, .experts = c.experts,
                            .summed = outputs_that_add_up(c, kind)}) {}

    void declare_params(Unit& dense, Unit& experts) const override {
        dense.weight("router.weight", {config.experts, config.d_model}, config.d_model);
        expert.declare_params(experts);
    }

    std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& p) const override {
        const int64_t E = config.experts, S = slots_per_expert(B, T, p);
        const Shape rows{E, S, config.d_model};
        std::vector<SavedSpec> saved = {{"slots", DType::i32, {E, S}, true},
                                        {"where", DType::i32, {B, T, E}, true},
                                        {"probs", p.stat(), {B, T, E}},
                                        {"output", p.act, rows}};
        expert.declare_saved(saved, rows, p.act);
        return saved;
    }

    std::vector<std::string> declare_metrics() const override {
        return {"router_entropy", "router_entropy_std", "router_logits_mean", "router_logits_std"};
    }

protected:
    virtual int64_t slots_per_expert(int64_t B, int64_t T, const Pass& p) const = 0;

    // probs [B,T,E] of the tokens x. Its statistics go to `metrics` [4].
    void route(const Pass& p, Tensor x, Tensor metrics) const {
        Tensor probs = p.saved("probs"), logits = p.temp("logits", p.stat(), probs.shape);
        if (p.live_rows && p.live_rows < p.B) fill(x.slice(p.live_rows, p.B), 0, p.ctx);
        matmul(logits, x, p.param("router.weight"), {.transpose_b = true}, p.ctx);
        mot_softmax_forward(probs, logits, SoftmaxOver::experts, {}, 1, p.ctx);
        if (metrics) mot_statistics(metrics, probs, logits, SoftmaxOver::experts, {}, p.ctx);
    }

    // sum [B,T,C] of the experts' answers to x, once slots and where are chosen.
    void experts_forward(const Pass& p, Tensor sum, Tensor x) const {
        Tensor output = p.saved("output"), gathered = p.temp("gathered", output.shape);
        moe_gather(gathered, x, p.saved("slots"), config.experts, {}, p.ctx);
        expert.forward(p, output, gathered);
        moe_scatter(sum, output, p.saved("where"), p.saved("probs"), false, p.ctx);
    }

    // dx = the gradient through the experts of dsum; dprobs [B,T,E] = that of the gates.
    void experts_backward(const Pass& p, Tensor dx, Tensor dprobs, Tensor dsum, Tensor x) const {
        Tensor output = p.saved("output"), slots = p.saved("slots");
        Tensor dslots = p.temp("dslots", output.shape);      // [E,S,C]: doutput, then dgathered
        Tensor gathered = p.temp("gathered", output.shape);  // made again: cheaper than kept
        moe_weights_backward(dprobs, dsum, output, p.saved("where"), false, p.ctx);
        moe_gather(dslots, dsum, slots, config.experts, p.saved("probs"), p.ctx);
        moe_gather(gathered, x, slots, config.experts, {}, p.ctx);
        expert.backward(p, dslots, dslots, gathered);
        moe_scatter(dx, dslots, p.saved("where"), {}, false, p.ctx);
    }

    // The gradient that reaches the router through the gates, and through it dx (added).
    void router_backward(const Pass& p, Tensor dx, Tensor dprobs, Tensor x) const {
        Tensor probs = p.saved("probs"), dlogits = p.temp("dlogits", p.stat(), probs.shape);
        mot_softmax_backward(dlogits, dprobs, probs, SoftmaxOver::experts, {}, 1, false, p.ctx);
        logits_backward(p, "router.weight", dx, dlogits, x);
    }

private:
    const FeedForward expert;
};

// ---------------------------------------------------------------------------------------------------- token choice

class TokenChoice final : public Moe {
public:
    explicit TokenChoice(const ModelConfig& c) : Moe(c, "moe_token_choice") {}
    const char* kind() const override { return "moe_token_choice"; }

    std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& p) const override {
        std::vector<SavedSpec> saved = Moe::declare_saved(B, T, p);
        saved.push_back({"counts", DType::i32, {config.experts}, true});
        return saved;
    }

    std::vector<std::string> declare_metrics() const override {
        std::vector<std::string> names = {"balance_loss", "dropped", "load_min", "load_max"};
        for (const std::string& name : Moe::declare_metrics()) names.push_back(name);
        return names;
    }

    void forward(const Pass& p, Tensor out, Tensor x) const override {
        route(p, x, p.metrics ? p.metrics.slice(4, 8) : Tensor{});
        const DropOrder order = config.drop_order == "gate" ? DropOrder::gate : DropOrder::position;
        if (!p.recomputing)
            moe_choose_experts(p.saved("slots"), p.saved("where"), p.saved("counts"), {}, p.saved("probs"),
                               {.k = config.top_k, .order = order}, p.ctx);
        if (p.metrics) moe_balance(p.metrics.slice(0, 4), p.saved("probs"), p.saved("counts"), p.saved("slots"), p.ctx);
        experts_forward(p, out, x);
    }

    void backward(const Pass& p, Tensor dx, Tensor dout, Tensor x) const override {
        Tensor dprobs = p.temp("dprobs", p.stat(), p.saved("probs").shape);
        experts_backward(p, dx, dprobs, dout, x);
        moe_balance_backward(dprobs, p.saved("counts"), config.load_balancing_weight * p.aux_scale, p.ctx);
        router_backward(p, dx, dprobs, x);
    }

private:
    int64_t slots_per_expert(int64_t B, int64_t T, const Pass& p) const override {
        return p.generating ? B * T : expert_capacity(config, B * T);
    }
};

// --------------------------------------------------------------------------------------------------- expert choice

class ExpertChoice final : public Moe {
public:
    explicit ExpertChoice(const ModelConfig& c) : Moe(c, "moe_expert_choice") {}
    const char* kind() const override { return "moe_expert_choice"; }

    void declare_params(Unit& dense, Unit& experts) const override {
        Moe::declare_params(dense, experts);
        dense.ones("output_norm.weight", {config.d_model});
        dense.zeros("output_norm.bias", {config.d_model});
    }

    std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& p) const override {
        std::vector<SavedSpec> saved = Moe::declare_saved(B, T, p);
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
        experts_forward(p, p.saved("sum"), x);
        norm_forward(out, p.saved("mean"), p.saved("rstd"), p.saved("sum"), p.param("output_norm.weight"),
                     p.param("output_norm.bias"), Norm::layernorm, output_norm_eps, p.ctx);
    }

    void backward(const Pass& p, Tensor dx, Tensor dout, Tensor x) const override {
        Tensor dsum = p.temp("dsum", dout.shape), dprobs = p.temp("dprobs", p.stat(), p.saved("probs").shape);
        norm_backward(dsum, p.grad("output_norm.weight"), p.grad("output_norm.bias"), dout, p.saved("sum"),
                      p.saved("mean"), p.saved("rstd"), p.param("output_norm.weight"), Norm::layernorm, false,
                      p.accumulate, p.ctx);
        experts_backward(p, dx, dprobs, dsum, x);
        router_backward(p, dx, dprobs, x);
    }

private:
    // An expert takes `chosen` tokens out of each of `sets` sets; group as moe_choose_tokens has it.
    struct Candidates { int64_t group, chosen, sets; };
    Candidates candidates(int64_t B, int64_t T) const {
        if (config.expert_choice_over == "all") return {0, expert_choices(config, B * T), 1};
        const int64_t group = config.simulate_group_size ? config.simulate_group_size : B;
        return {group, expert_choices(config, group), T * (B / group)};
    }
    int64_t slots_per_expert(int64_t B, int64_t T, const Pass&) const override {
        const Candidates c = candidates(B, T);
        return c.chosen * c.sets;
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
