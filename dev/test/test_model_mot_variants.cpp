// The design variants of MoT: every legal combination against plain float64 loops of its formulas, gradients against
// differences of those loops; identities between variants; what is refused; what a run does with them.
#include "dev/test/block_lab.h"
#include "dev/test/trainee.h"
#include "llmc/base/rng.h"

namespace llmc::test {
namespace {

// ------------------------------------------------------------------------------------------------------------ an oracle
// B x 4 tokens of 5 channels, in groups of 2 (or what the configuration says) for 3 experts of hidden size 4.
constexpr int64_t positions = 4;

ModelConfig small(int64_t group_size = 2) {
    ModelConfig c;
    c.pattern = "mot";
    c.vocab_size = 11, c.d_model = 5, c.heads = 1, c.context = positions, c.d_ff = 8;
    c.group_size = group_size, c.experts = 3, c.expert_size = 4;
    c.expert_activation = "silu";  // smooth
    return c;
}

using Params = std::map<std::string, Vector>;

// The block's formulas (docs/mot.md) in loops over tokens, experts and channels; nothing of the library but Philox.
struct Oracle {
    const ModelConfig& c;
    const Params& params;
    int64_t B, draw = 0;
    bool discrete = false;
    const int64_t T = positions, C = c.d_model, E = c.experts, F = c.expert_size, g = c.group_size;
    const int64_t N = B * T, R = N / g;

    const Vector& param(const std::string& name) const { return params.at(name); }
    double scalar(const std::string& name, int64_t e = 0) const {
        const Vector& v = param(name);
        return v[v.size() == 1 ? 0 : size_t(e)];
    }
    int64_t group_of(int64_t n) const {
        const int64_t b = n / T, t = n % T;
        return c.group_axis == "sequence" ? b * (T / g) + t / g : b / g * T + t;
    }

    // [N]: the token that stands at each place.
    std::vector<int64_t> order() const {
        std::vector<int64_t> token(static_cast<size_t>(N));
        const bool within = c.group_axis == "sequence";
        std::vector<std::pair<uint64_t, int64_t>> keys;
        const uint64_t seed = hash_of("param");  // the block's name in BlockLab
        for (int64_t i = 0; i < (within ? T : B); i++) {
            const auto bits = philox4x32({uint32_t(i), 0, uint32_t(draw), 0}, {uint32_t(seed), uint32_t(seed >> 32)});
            keys.emplace_back(uint64_t(bits[1]) << 32 | bits[0], i);
        }
        if (c.group_order == "random") std::sort(keys.begin(), keys.end());
        for (int64_t n = 0; n < N; n++)
            token[size_t(n)] = within ? n / T * T + keys[size_t(n % T)].second : keys[size_t(n / T)].second * T + n % T;
        return token;
    }

    // Logits [N,E] of x [N,C] for merge (own = "") or emit ("emit_"), divided by the learned temperature.
    Vector scaled(const Vector& x, const std::string& own) const {
        const std::string prefix = c.controllers == "shared" ? "" : own;
        Vector logits(static_cast<size_t>(N * E));
        for (int64_t e = 0; e < E; e++)
            for (int64_t k = 0; k < C; k++) {
                double w = param(prefix + "controller.weight")[size_t(e * C + k)];
                if (c.controllers == "common-base") w += param("base_controller.weight")[size_t(e * C + k)];
                if (c.controllers.starts_with("weighted")) {
                    const double a = scalar(c.controllers == "weighted" ? prefix + "controller_mix" : "controller_mix");
                    w = a * w + (1 - a) * param("base_controller.weight")[size_t(e * C + k)];
                }
                for (int64_t n = 0; n < N; n++) logits[size_t(n * E + e)] += w * x[size_t(n * C + k)];
            }
        if (c.learn_temperature == "no") return logits;
        const std::string name = c.learn_temperature == "separate" ? own + "temperature" : "temperature";
        for (int64_t n = 0; n < N; n++)
            for (int64_t e = 0; e < E; e++) {
                const double p = scalar(name, e);
                logits[size_t(n * E + e)] /= c.temperature_form == "exp" ? std::exp(p - 1) : p;
            }
        return logits;
    }

    // The members of element (n,e)'s softmax: of its group for this expert, or of its token.
    std::vector<size_t> members(int64_t n, int64_t e, bool over_experts) const {
        std::vector<size_t> all;
        for (int64_t m = 0; m < N && !over_experts; m++)
            if (group_of(m) == group_of(n)) all.push_back(size_t(m * E + e));
        for (int64_t f = 0; f < E && over_experts; f++) all.push_back(size_t(n * E + f));
        return all;
    }
    Vector softmax(const Vector& logits, bool over_experts) const {
        Vector w(logits.size());
        for (int64_t n = 0; n < N; n++)
            for (int64_t e = 0; e < E; e++) {
                double sum = 0;
                for (size_t i : members(n, e, over_experts)) sum += std::exp(logits[i] / c.temperature);
                w[size_t(n * E + e)] = std::exp(logits[size_t(n * E + e)] / c.temperature) / sum;
            }
        return discrete ? top(w, over_experts) : w;
    }
    Vector top(const Vector& w, bool over_experts) const {
        Vector one(w.size());
        for (int64_t n = 0; n < N; n++)
            for (int64_t e = 0; e < E; e++) {
                size_t best = members(n, e, over_experts)[0];
                for (size_t i : members(n, e, over_experts))
                    if (w[i] > w[best]) best = i;
                one[size_t(n * E + e)] = best == size_t(n * E + e);
            }
        return one;
    }

    // Layernorm of rows [.,C].
    void norm(Vector& rows, const std::string& name) const {
        if (!c.mixture_norm) return;
        for (size_t at = 0; at < rows.size(); at += size_t(C)) {
            double mean = 0, var = 0;
            for (int64_t k = 0; k < C; k++) mean += rows[at + size_t(k)] / double(C);
            for (int64_t k = 0; k < C; k++) var += std::pow(rows[at + size_t(k)] - mean, 2) / double(C);
            for (int64_t k = 0; k < C; k++)
                rows[at + size_t(k)] = (rows[at + size_t(k)] - mean) / std::sqrt(var + 1e-5) *
                                           param(name + ".weight")[size_t(k)] +
                                       param(name + ".bias")[size_t(k)];
        }
    }

    // output [E,R,C] of mixed [E,R,C].
    Vector experts(const Vector& mixed) const {
        const Vector &up = param("experts.up.weight"), &down = param("experts.down.weight");
        Vector output(mixed.size());
        for (int64_t e = 0; e < E; e++)
            for (int64_t r = 0; r < R; r++)
                for (int64_t f = 0; f < F; f++) {
                    double h = 0;
                    for (int64_t k = 0; k < C; k++)
                        h += mixed[size_t((e * R + r) * C + k)] * up[size_t((e * F + f) * C + k)];
                    h /= 1 + std::exp(-h);  // silu
                    for (int64_t k = 0; k < C; k++)
                        output[size_t((e * R + r) * C + k)] += h * down[size_t((e * C + k) * F + f)];
                }
        return output;
    }

    Vector operator()(const Vector& input) const {
        const std::vector<int64_t> token = order();
        Vector x(input.size()), out(input.size());
        for (int64_t n = 0; n < N; n++)
            for (int64_t k = 0; k < C; k++) x[size_t(n * C + k)] = input[size_t(token[size_t(n)] * C + k)];

        Vector merge(size_t(N * E), 1.0 / double(g)), emit;
        if (c.router == "learned") merge = scaled(x, "");
        if (c.router == "learned" && c.merge_softmax) merge = softmax(merge, false);
        if (c.emit == "shared") emit = merge;
        if (c.emit == "group") emit = softmax(scaled(x, "emit_"), false);
        if (c.emit == "experts")
            emit = c.router == "uniform" ? Vector(merge.size(), 1.0 / double(E)) : softmax(scaled(x, "emit_"), true);
        if (c.emit == "raw") emit = Vector(merge.size(), 1.0);
        if (c.emit == "top") emit = top(merge, false);

        Vector mixed(static_cast<size_t>(E * R * C));
        for (int64_t n = 0; n < N; n++)
            for (int64_t e = 0; e < E; e++)
                for (int64_t k = 0; k < C; k++)
                    mixed[size_t((e * R + group_of(n)) * C + k)] += merge[size_t(n * E + e)] * x[size_t(n * C + k)];
        norm(mixed, "mixture_norm");
        Vector output = experts(mixed);
        norm(output, "expert_norm");
        for (int64_t n = 0; n < N; n++)
            for (int64_t e = 0; e < E; e++)
                for (int64_t k = 0; k < C; k++)
                    out[size_t(token[size_t(n)] * C + k)] +=
                        emit[size_t(n * E + e)] * output[size_t((e * R + group_of(n)) * C + k)];
        return out;
    }
};

// ------------------------------------------------------------------------------------------------------- combinations
bool legal(const ModelConfig& c) {
    try {
        resolved(c);
        return true;
    } catch (const InputError&) {
        return false;
    }
}

std::string text_of(const ModelConfig& c) {
    return str("emit ", c.emit, ", controllers ", c.controllers, ", learn ", c.learn_temperature,
               c.temperature_per_expert ? " per expert " : " ", c.temperature_form, c.merge_softmax ? "" : ", no softmax",
               c.mixture_norm ? ", norms" : "", ", ", c.group_order, " over ", c.group_axis, ", ", c.router,
               ", temperature ", c.temperature, ", g ", c.group_size);
}

// Every legal combination; where time is short, every seventh of them.
std::vector<ModelConfig> combinations() {
    std::vector<ModelConfig> all;
    for (const char* emit : {"shared", "group", "experts", "raw", "top"})
        for (const char* controllers : {"shared", "separate", "common-base", "weighted", "weighted-common"})
            for (const char* learn : {"no", "tied", "separate"})
                for (int bits = 0; bits < 128; bits++) {
                    ModelConfig c = small(bits & 64 ? 4 : 2);
                    c.emit = emit, c.controllers = controllers, c.learn_temperature = learn;
                    c.temperature_per_expert = bits & 1, c.temperature_form = bits & 2 ? "exp" : "plain";
                    c.mixture_norm = bits & 4, c.group_order = bits & 8 ? "random" : "consecutive";
                    c.group_axis = bits & 16 ? "sequence" : "batch", c.merge_softmax = !(bits & 32);
                    if (c.merge_softmax) c.temperature = 0.7;
                    if (legal(c)) all.push_back(c);
                }
    if (small_sizes()) {
        for (size_t i = 0; 7 * i < all.size(); i++) all[i] = all[7 * i];
        all.resize(all.size() / 7);
    }
    for (const char* emit : {"shared", "experts"})
        for (bool norms : {false, true})
            for (const char* order : {"consecutive", "random"}) {
                ModelConfig c = small();
                c.router = "uniform", c.emit = emit, c.mixture_norm = norms, c.group_order = order;
                if (legal(c)) all.push_back(c);
            }
    return all;
}

// A block with random parameters and a numbered order.
struct Variant : BlockLab {
    static constexpr int64_t rows = 8;
    const Vector input, dout;

    explicit Variant(const ModelConfig& c, const std::string& precision = "fp64", int64_t draw = 3)
        : BlockLab("mot", c, rows, positions, precision), input(random_vector(rows * positions * c.d_model, 7)),
          dout(random_vector(rows * positions * c.d_model, 8)) {
        pass.draw = arena.tensor("draw", DType::i32, {1});
        set_draw(draw);
    }
    void set_draw(int64_t draw) { write_tensor(pass.draw, {double(draw)}, ctx); }
    std::vector<std::string> names() const {
        std::vector<std::string> all;
        for (const Unit& unit : table.units)
            for (const ParamSpec& spec : unit.params) all.push_back(spec.name.substr(6));  // without "param."
        return all;
    }
    Params parameters() {
        Params all;
        for (const std::string& name : names()) all[name] = param(name.c_str());
        return all;
    }
    Vector run() { return forward(input); }
};

// f' at x[i] by central differences.
double slope(const std::function<double()>& f, double& x) {
    const double old = x, h = 1e-5;
    x = old + h;
    const double up = f();
    x = old - h;
    const double down = f();
    x = old;
    return (up - down) / (2 * h);
}

void expect_like_oracle(const ModelConfig& c) {
    SCOPED_TRACE(text_of(c));
    Variant lab(c);
    Params params = lab.parameters();
    Vector x = lab.input;
    const Oracle oracle{lab.config, params, Variant::rows, 3};
    ASSERT_TRUE(close(lab.run(), oracle(x), 1e-12));
    const Vector dx = lab.backward(lab.dout);
    auto loss = [&] { return dot(lab.dout, oracle(x)); };
    auto expect_slope = [&](double got, double& at, double scale, const std::string& name) {
        const double want = slope(loss, at);
        EXPECT_NEAR(got, want, 1e-6 * scale + 1e-9) << name;
    };
    auto largest = [](const Vector& v) {
        double most = 0;
        for (double d : v) most = std::max(most, std::abs(d));
        return most;
    };
    for (double i : random_integers(3, 0, int64_t(x.size()), 1))
        expect_slope(dx[size_t(i)], x[size_t(i)], largest(dx), "x");
    for (auto& [name, values] : params) {
        const Vector gradient = lab.grad(name.c_str());
        const int64_t n = int64_t(values.size());
        for (double i : n <= 5 ? Vector{0, double(n - 1)} : random_integers(3, 0, n, 2))
            expect_slope(gradient[size_t(i)], values[size_t(i)], largest(gradient), name);
        EXPECT_GT(largest(gradient), 1e-6) << name;
    }
}

TEST(MotVariants, EveryCombinationMatchesItsFormulasAndTheirDifferences) {
    const std::vector<ModelConfig> all = combinations();
    EXPECT_GT(all.size(), small_sizes() ? 60u : 400u);
    for (const ModelConfig& c : all) {
        expect_like_oracle(c);
        if (HasFailure()) return;  // one is enough
    }
}

// The gradients of a second micro-batch are added to those of the first.
TEST(MotVariants, GradientsAccumulate) {
    for (const ModelConfig& c : combinations()) {
        if (c.group_size == 4 || c.group_axis == "sequence") continue;
        SCOPED_TRACE(text_of(c));
        Variant lab(c);
        lab.run();
        lab.backward(lab.dout);
        std::map<std::string, Vector> once;
        for (const std::string& name : lab.names()) once[name] = lab.grad(name.c_str());
        lab.pass.accumulate = true;
        lab.backward(lab.dout);
        for (auto& [name, values] : once) {
            for (double& v : values) v *= 2;
            EXPECT_TRUE(close(lab.grad(name.c_str()), values, 1e-13)) << name;
        }
    }
}

// In f32 and bf16 the same numbers as in f64, up to the rounding of what is stored on the way: about ten tensors in each
// direction, and divisions by temperatures and deviations below one that make the errors before them larger. In f32 the
// rounding of the sums adds to it.
TEST(MotVariants, OtherPrecisionsAreClose) {
    for (const ModelConfig& c : combinations()) {
        if (c.group_size == 4) continue;
        SCOPED_TRACE(text_of(c));
        for (const char* precision : {"fp32", "bf16"}) {
            Variant low(c, precision), exact(c);
            const DType act = low.precision.act;
            for (const auto& [name, values] : low.parameters()) exact.set_param(name.c_str(), values);
            const Vector x = rounded(act, low.input), dout = rounded(act, low.dout);
            const double tol = (act == DType::bf16 ? 40 : 96) * roundoff(act);
            const Vector out = low.forward(x), exact_out = exact.forward(x);
            EXPECT_TRUE(close(out, exact_out, tol)) << precision;
            const Vector dx = low.backward(dout), exact_dx = exact.backward(dout);
            EXPECT_TRUE(close(dx, exact_dx, tol)) << precision;
        }
    }
}

TEST(MotVariants, DiscreteWeights) {
    for (const char* emit : {"shared", "group", "experts", "raw", "top"})
        for (const char* order : {"consecutive", "random"}) {
            ModelConfig c = small(4);
            c.emit = emit, c.group_order = order;
            if (c.emit == "group") c.controllers = "separate";
            Variant lab(c);
            lab.pass.discrete = true;
            const Params params = lab.parameters();
            EXPECT_TRUE(close(lab.run(), Oracle{lab.config, params, Variant::rows, 3, true}(lab.input), 1e-12)) << emit;
        }
}

// ---------------------------------------------------------------------------------------------------------- identities
// The outputs and input gradients of two variants, with what `set` makes of the parameters of the first.
void expect_same(ModelConfig a, ModelConfig b, const std::function<void(Params&)>& set, double tol = 1e-13) {
    SCOPED_TRACE(text_of(a) + "\nand " + text_of(b));
    Variant first(a), second(b);
    Params params = second.parameters();
    for (const auto& [name, values] : first.parameters())
        if (!params.count(name)) params[name] = values;
    set(params);
    for (const std::string& name : first.names()) first.set_param(name.c_str(), params.at(name));
    for (const std::string& name : second.names()) second.set_param(name.c_str(), params.at(name));
    EXPECT_TRUE(close(first.run(), second.run(), tol));
    EXPECT_TRUE(close(first.backward(first.dout), second.backward(second.dout), tol));
}

ModelConfig with(const std::function<void(ModelConfig&)>& change) {
    ModelConfig c = small(4);
    change(c);
    return c;
}

TEST(MotIdentities, TemperatureOneIsNone) {
    for (const char* form : {"plain", "exp"})
        for (bool per_expert : {false, true})
            expect_same(with([&](ModelConfig& c) {
                            c.learn_temperature = "tied", c.temperature_form = form;
                            c.temperature_per_expert = per_expert;
                        }),
                        small(4), [](Params& p) { std::fill(p["temperature"].begin(), p["temperature"].end(), 1.0); });
}

TEST(MotIdentities, ALearnedTemperatureIsAFactorOfTheGiven) {
    expect_same(with([](ModelConfig& c) { c.learn_temperature = "tied"; }),
                with([](ModelConfig& c) { c.temperature = 0.7; }), [](Params& p) { p["temperature"] = {0.7}; });
}

TEST(MotIdentities, EqualControllersAreOne) {
    auto equal = [](Params& p) { p["emit_controller.weight"] = p["controller.weight"]; };
    expect_same(with([](ModelConfig& c) { c.emit = "group", c.controllers = "separate"; }), small(4), equal);
    expect_same(with([](ModelConfig& c) { c.emit = "experts", c.controllers = "separate"; }),
                with([](ModelConfig& c) { c.emit = "experts"; }), equal);
}

TEST(MotIdentities, EqualTemperaturesAreOne) {
    expect_same(with([](ModelConfig& c) { c.emit = "group", c.learn_temperature = "separate"; }),
                with([](ModelConfig& c) { c.learn_temperature = "tied"; }),
                [](Params& p) { p["emit_temperature"] = p["temperature"]; });
}

TEST(MotIdentities, NoBaseIsSeparate) {
    for (const char* emit : {"group", "experts"}) {
        auto variant = [&](const char* controllers) {
            return with([&](ModelConfig& c) { c.emit = emit, c.controllers = controllers; });
        };
        expect_same(variant("common-base"), variant("separate"),
                    [](Params& p) { std::fill_n(p["base_controller.weight"].begin(), 15, 0.0); });
        auto ones = [](Params& p) { p["controller_mix"] = p["emit_controller_mix"] = {1}; };
        expect_same(variant("weighted"), variant("separate"), ones);
        expect_same(variant("weighted-common"), variant("separate"), ones);
        expect_same(variant("weighted"), variant("weighted-common"),
                    [](Params& p) { p["emit_controller_mix"] = p["controller_mix"]; });
    }
}

// With one group over the whole batch, every order is the same group.
TEST(MotIdentities, AnOrderInsideOneGroupChangesNothing) {
    auto whole = [](const char* order) {
        ModelConfig c = small(Variant::rows);
        c.group_order = order;
        return c;
    };
    expect_same(whole("random"), whole("consecutive"), [](Params&) {});
    Variant random(with([](ModelConfig& c) { c.group_order = "random"; })), consecutive(small(4));
    EXPECT_GT(relative_error(random.run(), consecutive.run()), 1e-3);
    Variant other(with([](ModelConfig& c) { c.group_order = "random"; }), "fp64", 4);
    EXPECT_GT(relative_error(random.run(), other.run()), 1e-3);
    EXPECT_TRUE(identical(random.run(), random.run()));
}

// --------------------------------------------------------------------------------------------------- in whole models
// Some of everything.
std::vector<ModelConfig> models() {
    auto model = [](const std::function<void(ModelConfig&)>& change) {
        ModelConfig c = tiny("attention mot mot");
        change(c);
        return c;
    };
    return {
        model([](ModelConfig& c) { c.emit = "group", c.controllers = "separate", c.group_order = "random"; }),
        model([](ModelConfig& c) { c.emit = "experts", c.controllers = "common-base", c.learn_temperature = "tied"; }),
        model([](ModelConfig& c) { c.emit = "group", c.controllers = "weighted-common", c.mixture_norm = true; }),
        model([](ModelConfig& c) { c.emit = "group", c.learn_temperature = "separate", c.temperature_form = "exp"; }),
        model([](ModelConfig& c) { c.merge_softmax = false, c.mixture_norm = true, c.group_order = "random"; }),
        model([](ModelConfig& c) { c.emit = "top", c.learn_temperature = "tied", c.temperature_per_expert = true; }),
        model([](ModelConfig& c) { c.emit = "raw", c.group_order = "random", c.expert_activation = "geglu"; }),
        model([](ModelConfig& c) { c.emit = "experts", c.controllers = "weighted", c.learn_temperature = "separate"; }),
    };
}

TEST(MotModels, RecomputationGivesTheSameBits) {
    const Tokens tokens = random_tokens(8 * 8, 3), targets = random_tokens(8 * 8, 4);
    for (const ModelConfig& c : models())
        for (const char* precision : {"fp32", "bf16-mixed"}) {
            SCOPED_TRACE(text_of(c));
            Lab kept(c, precision), recomputed(c, precision);
            const Vector losses = kept.train(tokens, targets, 8, {});
            EXPECT_TRUE(identical(losses, recomputed.train(tokens, targets, 8, {.recompute = true})));
            EXPECT_TRUE(identical(kept.gradients(), recomputed.gradients()));
        }
}

TEST(MotModels, MetricsAreNamedAndFinite) {
    const Tokens tokens = random_tokens(8 * 8, 3);
    for (const ModelConfig& c : models()) {
        SCOPED_TRACE(text_of(c));
        Lab lab(c, "fp64");
        const auto metrics = lab.train_measured(tokens, tokens, 8).metrics;
        for (const auto& [name, value] : metrics) EXPECT_TRUE(std::isfinite(value)) << name;
        EXPECT_TRUE(metrics.count("blocks.1.merge_logits_std"));
        EXPECT_EQ(metrics.count("blocks.1.merge_entropy"), c.merge_softmax);
        EXPECT_EQ(metrics.count("blocks.2.emit_entropy"), c.emit == "group" || c.emit == "experts");
        EXPECT_EQ(metrics.count("blocks.2.temperature"), c.learn_temperature != "no");
        EXPECT_EQ(metrics.count("blocks.2.emit_temperature"), c.learn_temperature == "separate");
        if (c.learn_temperature == "no") continue;
        double mean = 0;
        const Vector p = read_tensor(lab.parameter("blocks.2.temperature"), lab.ctx);
        for (double v : p) mean += (c.temperature_form == "exp" ? std::exp(v - 1) : v) / double(p.size());
        EXPECT_NEAR(metrics.at("blocks.2.temperature"), mean, 1e-15);
    }
}

// What a token becomes depends on its own group only.
TEST(MotModels, RowsOfOtherGroupsStayApart) {
    for (const ModelConfig& c : models()) {
        if (c.group_order == "random") continue;
        SCOPED_TRACE(text_of(c));
        Lab lab(c, "fp64");
        Tokens tokens = random_tokens(8 * 8, 3);
        const Vector before = lab.logits(tokens, 8);
        for (size_t i = 32; i < 64; i++) tokens[i] = (tokens[i] + 1) % 50;  // the second group
        const Vector after = lab.logits(tokens, 8);
        for (size_t i = 0; i < before.size() / 2; i++) ASSERT_EQ(before[i], after[i]);
    }
}

// Nothing that a variant does looks at a later position, generation gives what whole sequences give.
TEST(MotModels, AreCausalAndGenerate) {
    for (ModelConfig c : models()) {
        SCOPED_TRACE(text_of(c));
        Lab lab(c, "fp64");
        Tokens tokens = random_tokens(8 * 8, 3);
        const Vector before = lab.logits(tokens, 8);
        for (size_t b = 0; b < 8; b++) tokens[b * 8 + 6] = (tokens[b * 8 + 6] + 1) % 50;
        const Vector after = lab.logits(tokens, 8);
        for (size_t b = 0; b < 8; b++)
            for (size_t i = 0; i < 6 * 50; i++) ASSERT_EQ(before[b * 400 + i], after[b * 400 + i]);
        c.group_order = "consecutive";
        Lab in_order(c, "fp64");
        const Vector all = in_order.logits(tokens, 8);
        const std::vector<Vector> steps = lab.extend(tokens, 8, {5, 1, 2});  // in order, whatever training does
        Vector last;
        for (size_t b = 0; b < 8; b++)
            for (size_t i = 0; i < 50; i++) last.push_back(all[b * 400 + 350 + i]);
        EXPECT_TRUE(close(steps.back(), last, 1e-12));
    }
}

// --------------------------------------------------------------------------------------------------------- in training
TEST(MotTraining, EveryMicroBatchHasItsOwnOrder) {
    ModelConfig c = tiny("mot mot");
    c.group_order = "random";
    const Tokens tokens = random_tokens(16 * 8, 3), targets = random_tokens(16 * 8, 4);
    auto losses_of = [&](int64_t number, int64_t micro_batches) {
        Trainee run(c, training(8, micro_batches));
        Vector losses;
        run.step->begin(0, number);
        for (int64_t k = 0; k < micro_batches; k++) {
            run.step->micro_batch(tokens.data(), targets.data(), k, false);
            losses.push_back(run.step->state().loss_sum);
        }
        for (size_t k = losses.size(); k-- > 1;) losses[k] -= losses[k - 1];
        return losses;
    };
    const Vector first = losses_of(0, 2), second = losses_of(1, 2);
    EXPECT_NE(first[0], first[1]);  // of the same tokens
    EXPECT_NE(first[0], second[0]);
    // a step of two micro-batches is numbers 2 n and 2 n + 1, a resumed run goes on counting
    EXPECT_EQ(losses_of(2, 1)[0], second[0]);
    EXPECT_EQ(losses_of(1, 2), second);
    // without a number, and in evaluation, it is order 0
    Trainee run(c, training(8));
    EXPECT_NEAR(run.step->evaluate(tokens.data(), targets.data(), {}) * 64, first[0], 1e-4);
    Lab lab(c);
    EXPECT_TRUE(identical(lab.train(tokens, targets, 16, {}), lab.train(tokens, targets, 16, {})));
}

TEST(MotTraining, TemperaturesStartLateAndNeverDecay) {
    ModelConfig c = tiny("mot");
    c.emit = "experts", c.learn_temperature = "separate", c.temperature_start = 2, c.controllers = "weighted";
    TrainConfig train = training(8);
    train.decay = "all", train.weight_decay = 0.5;
    Trainee run(c, train);
    const Tokens tokens = random_tokens(8 * 8, 3), targets = random_tokens(8 * 8, 4);
    for (int step = 0; step < 4; step++) {
        const NamedVectors before = run.parameters();
        run(tokens, targets);
        const NamedVectors after = run.parameters();
        for (const char* name : {"blocks.0.temperature", "blocks.0.emit_temperature"}) {
            EXPECT_EQ(after.at(name)[0] == 1, step < 2) << name << " after step " << step;
            EXPECT_EQ(run.gradients().at(name)[0] == 0, step < 2) << name;
        }
        EXPECT_NE(after.at("blocks.0.controller_mix"), before.at("blocks.0.controller_mix"));
    }
    // Without gradients, what decays shrinks and what does not stays.
    fill(run.model.grads, 0, run.ctx);
    fill(run.model.moment1, 0, run.ctx);
    const NamedVectors before = run.parameters();
    run.step->begin(0.1);
    run.step->update();
    const NamedVectors after = run.parameters();
    for (const auto& [name, values] : before) {
        const bool scalar = name.find("temperature") != std::string::npos || name.ends_with("_mix");
        for (size_t i = 0; i < values.size(); i++)
            EXPECT_EQ(after.at(name)[i] == values[i], scalar || values[i] == 0) << name;
    }
}

// Temperatures that are not trained yet train nothing else differently either.
TEST(MotTraining, AFrozenTemperatureIsNone) {
    ModelConfig plain = tiny(mot_pattern), frozen = plain;
    frozen.learn_temperature = "tied", frozen.temperature_start = 1000;
    const Tokens tokens = random_tokens(8 * 8, 3), targets = random_tokens(8 * 8, 4);
    Trainee a(plain, training(8)), b(frozen, training(8));
    for (int step = 0; step < 3; step++) EXPECT_EQ(a(tokens, targets), b(tokens, targets));
    NamedVectors rest = b.parameters();
    EXPECT_EQ(rest["blocks.3.temperature"], Vector{1});
    rest.erase("blocks.3.temperature");
    EXPECT_TRUE(identical(rest, a.parameters()));
}

// ------------------------------------------------------------------------------------------------------------- refusals
// The message of what is refused, or "" if it is not.
std::string message_of(const std::function<void()>& f) {
    try {
        f();
    } catch (const InputError& e) {
        return e.what();
    }
    return "";
}

TEST(MotRefusals, WhatContradictsOrChangesNothingIsNamed) {
    struct Case {
        std::vector<std::string> words;
        void (*change)(ModelConfig&);
    };
    const std::vector<Case> cases = {
        {{"--emit group", "--emit shared"}, [](ModelConfig& c) { c.emit = "group"; }},
        {{"--emit group"}, [](ModelConfig& c) { c.emit = "group", c.learn_temperature = "tied"; }},
        {{"--controllers separate", "--emit shared"}, [](ModelConfig& c) { c.controllers = "separate"; }},
        {{"--controllers common-base", "--emit raw"},
         [](ModelConfig& c) { c.controllers = "common-base", c.emit = "raw"; }},
        {{"--controllers weighted", "--emit top"}, [](ModelConfig& c) { c.controllers = "weighted", c.emit = "top"; }},
        {{"--learn-temperature separate", "--emit shared"}, [](ModelConfig& c) { c.learn_temperature = "separate"; }},
        {{"--learn-temperature separate", "--emit top"},
         [](ModelConfig& c) { c.learn_temperature = "separate", c.emit = "top"; }},
        {{"--temperature-per-expert", "--learn-temperature"}, [](ModelConfig& c) { c.temperature_per_expert = true; }},
        {{"--temperature-form", "--learn-temperature"}, [](ModelConfig& c) { c.temperature_form = "exp"; }},
        {{"--temperature-start", "--learn-temperature"}, [](ModelConfig& c) { c.temperature_start = 5; }},
        {{"--merge-softmax", "--emit experts"}, [](ModelConfig& c) { c.merge_softmax = false, c.emit = "experts"; }},
        {{"--merge-softmax", "--learn-temperature"},
         [](ModelConfig& c) { c.merge_softmax = false, c.learn_temperature = "tied"; }},
        {{"--merge-softmax", "--temperature"}, [](ModelConfig& c) { c.merge_softmax = false, c.temperature = 0.5; }},
        {{"--router uniform", "--merge-softmax"}, [](ModelConfig& c) { c.router = "uniform", c.merge_softmax = false; }},
        {{"--router uniform", "--emit"}, [](ModelConfig& c) { c.router = "uniform", c.emit = "top"; }},
        {{"--router uniform", "--learn-temperature"},
         [](ModelConfig& c) { c.router = "uniform", c.learn_temperature = "tied"; }},
        {{"--router uniform", "--controllers"},
         [](ModelConfig& c) { c.router = "uniform", c.controllers = "separate", c.emit = "experts"; }},
    };
    for (const Case& test : cases) {
        ModelConfig c = tiny(mot_pattern);
        test.change(c);
        const std::string message = message_of([&] { resolved(c); });
        for (const std::string& word : test.words)
            EXPECT_NE(message.find(word), std::string::npos) << word << ": " << message;
        c.pattern = dense_pattern;  // where there is no MoT its options mean nothing
        EXPECT_EQ(message_of([&] { resolved(c); }), "");
    }
}

TEST(MotRefusals, DiscreteWeightsNeedASoftmax) {
    ModelConfig c = tiny(mot_pattern);
    c.merge_softmax = false;
    Lab lab(c);
    const Tokens tokens = random_tokens(4 * 8, 3);
    const EvalOptions discrete{.discrete = true};
    for (const auto& ask : std::vector<std::function<void()>>{[&] { lab.logits(tokens, 4, discrete); },
                                                              [&] { lab.evaluate(tokens, tokens, 4, discrete); },
                                                              [&] { lab.extend(tokens, 4, {2}, discrete); }})
        EXPECT_NE(message_of(ask).find("--merge-softmax off"), std::string::npos);
}

}  // namespace
}  // namespace llmc::test
