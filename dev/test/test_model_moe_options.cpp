// The options of sparse mixtures of experts: whole blocks against plain loops written from the formulas of docs/moe.md,
// and what the options must be in special cases.
#include <numeric>

#include "dev/test/block_lab.h"
#include "dev/test/moe_oracle.h"

namespace llmc::test {
namespace {

using Row = Vector;
constexpr int64_t B = 6, T = 5, C = 12, E = 4, F = 9;

ModelConfig small(const std::string& kind) {
    ModelConfig c;
    c.pattern = kind;
    c.vocab_size = 50, c.d_model = C, c.heads = 2, c.d_ff = 16, c.context = T;
    c.experts = E, c.expert_size = F;
    return c;
}

Row row_of(const Vector& m, int64_t i, int64_t width) {
    return Row(m.begin() + i * width, m.begin() + (i + 1) * width);
}
// m x, m [rows, x.size()], starting at matrix number `at` of a stack of such.
Row times(const Vector& m, const Row& x, int64_t rows, int64_t at = 0) {
    const auto n = int64_t(x.size());
    Row y(size_t(rows), 0);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < n; c++) y[size_t(r)] += m[size_t((at * rows + r) * n + c)] * x[size_t(c)];
    return y;
}
double activated(Hidden kind, double x) {
    if (kind == Hidden::relu) return std::max(0.0, x);
    if (kind == Hidden::silu || kind == Hidden::swiglu) return x / (1 + std::exp(-x));
    if (kind == Hidden::geglu || kind == Hidden::gelu_erf) return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    return x;  // linear
}
// Feed-forward number `at` of those called prefix.
Row feed_forward(BlockLab& lab, const std::string& prefix, const Row& x, int64_t hidden, int64_t at = 0) {
    const Hidden kind = lab.config.expert_activation;
    Row h = times(lab.param((prefix + "up.weight").c_str()), x, hidden, at);
    if (kind == Hidden::swiglu || kind == Hidden::geglu) {
        const Row gate = times(lab.param((prefix + "gate.weight").c_str()), x, hidden, at);
        for (size_t i = 0; i < h.size(); i++) h[i] *= activated(kind, gate[i]);
    } else {
        for (double& v : h) v = activated(kind, v);
    }
    return times(lab.param((prefix + "down.weight").c_str()), h, C, at);
}
void softmax(Row& v) {
    const double most = *std::max_element(v.begin(), v.end());
    double sum = 0;
    for (double& x : v) sum += x = std::exp(x - most);
    for (double& x : v) x /= sum;
}
Row layernorm(const Row& x, const Vector& weight, const Vector& bias) {
    const double n = double(x.size()), mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
    double var = 0;
    for (double v : x) var += (v - mean) * (v - mean) / n;
    Row y = x;
    for (size_t i = 0; i < x.size(); i++) y[i] = (x[i] - mean) / std::sqrt(var + 1e-5) * weight[i] + bias[i];
    return y;
}
void add_to(Row& a, const Row& b, double factor = 1) {
    for (size_t i = 0; i < a.size(); i++) a[i] += factor * b[i];
}
Vector shared_output(BlockLab& lab, const Row& x) {
    const int64_t hidden = lab.config.shared_experts * F;
    return hidden ? feed_forward(lab, "shared.", x, hidden) : Row(C, 0);
}

// ---------------------------------------------------------------------------------------------------- token choice

Vector token_choice_oracle(BlockLab& lab, const Vector& x) {
    const ModelConfig& c = lab.config;
    const int64_t N = B * T, S = c.dropless ? N : expert_capacity(c, N);
    Vector router = lab.param("router.weight"), out, probs;
    for (int64_t n = 0; n < N; n++) {
        Row p = times(router, row_of(x, n, C), E);
        softmax(p);
        probs.insert(probs.end(), p.begin(), p.end());
    }
    std::vector<int64_t> taken(E, 0);  // slots that are gone: tokens come in the order of n
    for (int64_t n = 0; n < N; n++) {
        const Row p = row_of(probs, n, E);
        std::vector<int64_t> chosen = best(p, c.top_k);
        if (c.balanced_routing)
            for (int64_t i = 0; i < c.top_k; i++) chosen[size_t(i)] = (n * c.top_k + i) % E;
        double total = 1;
        if (c.renormalize_gates) {
            total = 0;
            for (int64_t e : chosen) total += p[size_t(e)];
        }
        Row y = shared_output(lab, row_of(x, n, C));
        for (int64_t e : chosen)
            if (taken[size_t(e)]++ < S)
                add_to(y, feed_forward(lab, "experts.", row_of(x, n, C), F, e), p[size_t(e)] / total);
        out.insert(out.end(), y.begin(), y.end());
    }
    return out;
}

struct Option {
    const char* name;
    void (*change)(ModelConfig&);
};

TEST(TokenChoiceBlock, EqualsPlainLoops) {
    const std::vector<Option> options = {
        {"Switch with drops", [](ModelConfig& c) { c.capacity_factor = 0.8; }},
        {"dropless", [](ModelConfig& c) { c.dropless = true; }},
        {"dropless, two experts", [](ModelConfig& c) { c.dropless = true, c.top_k = 2; }},
        {"dropless, all experts", [](ModelConfig& c) { c.dropless = true, c.top_k = E; }},
        {"gates that sum to 1", [](ModelConfig& c) { c.renormalize_gates = true, c.top_k = 3, c.dropless = true; }},
        {"gates that sum to 1, with drops",
         [](ModelConfig& c) { c.renormalize_gates = true, c.top_k = 2, c.capacity_factor = 0.6; }},
        {"one shared expert", [](ModelConfig& c) { c.shared_experts = 1, c.capacity_factor = 0.5; }},
        {"two shared swiglu experts",
         [](ModelConfig& c) { c.shared_experts = 2, c.expert_activation = Hidden::swiglu, c.dropless = true; }},
        {"geglu", [](ModelConfig& c) { c.expert_activation = Hidden::geglu, c.top_k = 2; }},
        {"linear", [](ModelConfig& c) { c.expert_activation = Hidden::linear, c.dropless = true; }},
        {"silu", [](ModelConfig& c) { c.expert_activation = Hidden::silu, c.dropless = true; }},
        {"balanced", [](ModelConfig& c) { c.balanced_routing = true, c.top_k = 3, c.dropless = true; }},
        {"balanced with drops", [](ModelConfig& c) { c.balanced_routing = true, c.capacity_factor = 0.7; }},
        {"z-loss", [](ModelConfig& c) { c.router_z_loss_weight = 0.1; }},
    };
    const Vector x = random_vector(B * T * C, 1);
    for (const Option& option : options) {
        ModelConfig c = small("moe_token_choice");
        option.change(c);
        for (const char* precision : {"fp64", "fp32"}) {
            BlockLab lab("moe_token_choice", c, B, T, precision);
            const Vector rounded_x = rounded(lab.precision.act, x);
            EXPECT_TRUE(close(lab.forward(rounded_x), token_choice_oracle(lab, rounded_x),
                              tolerance(lab.precision.act, C + F)))
                << option.name << ", " << precision;
        }
    }
}

TEST(TokenChoiceBlock, TheRouterIsNotRounded) {
    ModelConfig c = small("moe_token_choice");
    BlockLab lab("moe_token_choice", c, B, T, "bf16-mixed"), exact("moe_token_choice", c, B, T);
    const Vector x = rounded(DType::bf16, random_vector(B * T * C, 1)), dout = random_vector(B * T * C, 2);
    lab.forward(x), exact.forward(x);
    const Vector probs = read_tensor(lab.pass.saved("probs"), lab.ctx);
    EXPECT_TRUE(close(probs, read_tensor(exact.pass.saved("probs"), exact.ctx), tolerance(DType::f32, C)));
    // Everything else is rounded to bf16, so gradients of the router agree to that.
    lab.backward(dout), exact.backward(dout);
    EXPECT_TRUE(close(lab.grad("router.weight"), exact.grad("router.weight"), tolerance(DType::bf16, B * T)));
}

// --------------------------------------------------------------------------------------------------- expert choice

Vector expert_choice_oracle(BlockLab& lab, const Vector& x) {
    const ModelConfig& c = lab.config;
    const int64_t N = B * T, group = c.simulate_group_size ? c.simulate_group_size : B;
    const bool all = c.expert_choice_over == Candidates::all;
    Vector router = lab.param("router.weight"), probs;
    for (int64_t n = 0; n < N; n++) {
        Row p = times(router, row_of(x, n, C), E);
        if (c.expert_choice_softmax == ChoiceSoftmax::experts) softmax(p);
        probs.insert(probs.end(), p.begin(), p.end());
    }
    std::vector<Row> sums(size_t(N), Row(C, 0));
    for (int64_t t = 0; t < (all ? 1 : T); t++)
        for (int64_t j = 0; j < (all ? 1 : B / group); j++) {
            std::vector<int64_t> members;
            for (int64_t n = 0; n < N; n++)
                if (all || (n % T == t && n / T % (B / group) == j)) members.push_back(n);
            for (int64_t e = 0; e < E; e++) {
                Row values;
                for (int64_t n : members) values.push_back(probs[size_t(n * E + e)]);
                if (c.expert_choice_softmax == ChoiceSoftmax::tokens) softmax(values);
                for (int64_t i : best(values, expert_choices(c, int64_t(members.size())))) {
                    const int64_t n = members[size_t(i)];
                    add_to(sums[size_t(n)], feed_forward(lab, "experts.", row_of(x, n, C), F, e), values[size_t(i)]);
                }
            }
        }
    Vector out;
    for (int64_t n = 0; n < N; n++) {
        Row y = sums[size_t(n)];
        if (c.expert_choice_norm) y = layernorm(y, lab.param("output_norm.weight"), lab.param("output_norm.bias"));
        add_to(y, shared_output(lab, row_of(x, n, C)));
        out.insert(out.end(), y.begin(), y.end());
    }
    return out;
}

const std::vector<Option> expert_choice_options = {
    {"defaults", [](ModelConfig&) {}},
    {"softmax over tokens", [](ModelConfig& c) { c.expert_choice_softmax = ChoiceSoftmax::tokens; }},
    {"softmax over tokens of simulated groups",
     [](ModelConfig& c) { c.expert_choice_softmax = ChoiceSoftmax::tokens, c.simulate_group_size = 3; }},
    {"among all tokens", [](ModelConfig& c) { c.expert_choice_over = Candidates::all; }},
    {"softmax over all tokens",
     [](ModelConfig& c) { c.expert_choice_softmax = ChoiceSoftmax::tokens, c.expert_choice_over = Candidates::all; }},
    {"without norm", [](ModelConfig& c) { c.expert_choice_norm = false; }},
    {"shared expert", [](ModelConfig& c) { c.shared_experts = 1; }},
    {"shared experts without norm",
     [](ModelConfig& c) { c.shared_experts = 2, c.expert_choice_norm = false, c.expert_activation = Hidden::geglu; }},
    {"z-loss", [](ModelConfig& c) { c.router_z_loss_weight = 0.1; }},
};

TEST(ExpertChoiceBlock, EqualsPlainLoops) {
    const Vector x = random_vector(B * T * C, 1);
    for (const Option& option : expert_choice_options) {
        ModelConfig c = small("moe_expert_choice");
        c.expert_choice_fraction = 0.4;
        option.change(c);
        BlockLab lab("moe_expert_choice", c, B, T);
        EXPECT_TRUE(close(lab.forward(x), expert_choice_oracle(lab, x), 1e-11)) << option.name;
    }
}

// x [B,T,C] with sequence b where order[b] was.
Vector reordered(const Vector& x, const std::vector<int64_t>& order) {
    Vector y;
    for (int64_t b : order) {
        const Row sequence = row_of(x, b, T * C);
        y.insert(y.end(), sequence.begin(), sequence.end());
    }
    return y;
}

TEST(ExpertChoiceBlock, PermutesWithTheBatch) {
    const std::vector<int64_t> order = {3, 0, 5, 1, 4, 2};
    for (ChoiceSoftmax softmax_over : values_of<ChoiceSoftmax>()) {
        ModelConfig c = small("moe_expert_choice");
        c.expert_choice_fraction = 0.5, c.expert_choice_softmax = softmax_over;
        BlockLab lab("moe_expert_choice", c, B, T);
        const Vector x = random_vector(B * T * C, 1), out = lab.forward(x);
        EXPECT_TRUE(close(lab.forward(reordered(x, order)), reordered(out, order), 1e-12)) << softmax_over;
        EXPECT_TRUE(different(reordered(out, order), out, 1e-3));
    }
}

// ------------------------------------------------------------------------------------------------------ identities

// The same function, forward and backward, and the same gradients of all parameters.
void expect_same(const std::string& kind, const ModelConfig& one, const ModelConfig& other, const char* what) {
    BlockLab a(kind, one, B, T), b(kind, other, B, T);
    const Vector x = random_vector(B * T * C, 1), dout = random_vector(B * T * C, 2);
    EXPECT_TRUE(close(b.forward(x), a.forward(x), 1e-13)) << what;
    EXPECT_TRUE(close(b.backward(dout), a.backward(dout), 1e-12)) << what;
    for (const Unit& unit : a.table.units)
        for (const ParamSpec& spec : unit.params) {
            const std::string name = spec.name.substr(unit.prefix.size() + 1);
            EXPECT_TRUE(close(b.grad(name.c_str()), a.grad(name.c_str()), 1e-12)) << what << ", " << name;
        }
}

TEST(TokenChoiceBlock, AHugeCapacityIsDropless) {
    for (int64_t k : {1, 2, 4})
        for (Hidden activation : {Hidden::relu, Hidden::swiglu, Hidden::gelu, Hidden::linear}) {
            ModelConfig roomy = small("moe_token_choice");
            roomy.top_k = k, roomy.capacity_factor = 100, roomy.expert_activation = activation;
            ModelConfig dropless = roomy;
            dropless.capacity_factor = 1.25, dropless.dropless = true;
            expect_same("moe_token_choice", roomy, dropless, name_of(activation));
        }
}

TEST(TokenChoiceBlock, GatesOfAllExpertsSumToOneAlready) {
    ModelConfig plain = small("moe_token_choice");
    plain.top_k = E, plain.dropless = true;
    ModelConfig scaled = plain;
    scaled.renormalize_gates = true;
    expect_same("moe_token_choice", plain, scaled, "k = E");
}

TEST(TokenChoiceBlock, BalancedRoutingIsBalanced) {
    ModelConfig c = small("moe_token_choice");
    c.balanced_routing = true, c.top_k = 2, c.capacity_factor = 1;  // N k / E = 15: no room to spare
    BlockLab lab("moe_token_choice", c, B, T);
    lab.forward(random_vector(B * T * C, 1));
    const std::vector<std::string> names = lab.block->declare_metrics();
    const Vector metrics = read_tensor(lab.pass.metrics, lab.ctx);
    for (size_t i = 0; i < names.size(); i++) {
        const bool load = names[i] == "load_min" || names[i] == "load_max";
        if (load || names[i] == "dropped") { EXPECT_EQ(metrics[i], load ? 1 : 0) << names[i]; }
    }
}

TEST(Metrics, ZLossIsTheMeanSquaredLogSumExp) {
    for (const char* kind : {"moe_token_choice", "moe_expert_choice"}) {
        ModelConfig c = small(kind);
        c.router_z_loss_weight = 1e-3, c.expert_choice_fraction = 0.5;
        BlockLab lab(kind, c, B, T);
        const Vector x = random_vector(B * T * C, 1), router = lab.param("router.weight");
        lab.forward(x);
        double want = 0;
        for (int64_t n = 0; n < B * T; n++) {
            double sum = 0;
            for (double logit : times(router, row_of(x, n, C), E)) sum += std::exp(logit);
            want += std::pow(std::log(sum), 2) / double(B * T);
        }
        const std::vector<std::string> names = lab.block->declare_metrics();
        const auto at = std::find(names.begin(), names.end(), "z_loss") - names.begin();
        EXPECT_NEAR(read_tensor(lab.pass.metrics, lab.ctx).at(size_t(at)), want, 1e-12 * want) << kind;
    }
}

}  // namespace
}  // namespace llmc::test
