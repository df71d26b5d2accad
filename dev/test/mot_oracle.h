// A MoT block with all its design variants in plain float64 loops, and every legal combination of them.
#pragma once
#include "dev/test/block_lab.h"
#include "llmc/base/rng.h"

namespace llmc::test {

// B x 4 tokens of 5 channels, in groups of 2 (or what the configuration says) for 3 experts of hidden size 4.
constexpr int64_t positions = 4;

inline ModelConfig small_mot(int64_t group_size = 2) {
    ModelConfig c;
    c.pattern = "mot";
    c.vocab_size = 11, c.d_model = 5, c.heads = 1, c.context = positions, c.d_ff = 8;
    c.group_size = group_size, c.experts = 3, c.expert_size = 4;
    c.expert_activation = Hidden::silu;  // smooth
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
        return c.group_axis == GroupAxis::sequence ? b * (T / g) + t / g : b / g * T + t;
    }

    // [N]: the token that stands at each place.
    std::vector<int64_t> order() const {
        std::vector<int64_t> token(static_cast<size_t>(N));
        const bool within = c.group_axis == GroupAxis::sequence;
        std::vector<std::pair<uint64_t, int64_t>> keys;
        const uint64_t seed = hash_of("param");  // the block's name in BlockLab
        for (int64_t i = 0; i < (within ? T : B); i++) {
            const auto bits = philox4x32({uint32_t(i), 0, uint32_t(draw), 0}, {uint32_t(seed), uint32_t(seed >> 32)});
            keys.emplace_back(uint64_t(bits[1]) << 32 | bits[0], i);
        }
        if (c.group_order == GroupOrder::random) std::sort(keys.begin(), keys.end());
        for (int64_t n = 0; n < N; n++)
            token[size_t(n)] = within ? n / T * T + keys[size_t(n % T)].second : keys[size_t(n / T)].second * T + n % T;
        return token;
    }

    // Logits [N,E] of x [N,C] for merge (own = "") or emit ("emit_"), divided by the learned temperature.
    Vector scaled(const Vector& x, const std::string& own) const {
        const std::string prefix = c.controllers == Controllers::shared ? "" : own;
        Vector logits(static_cast<size_t>(N * E));
        for (int64_t e = 0; e < E; e++)
            for (int64_t k = 0; k < C; k++) {
                double w = param(prefix + "controller.weight")[size_t(e * C + k)];
                if (c.controllers == Controllers::common_base) w += param("base_controller.weight")[size_t(e * C + k)];
                if (c.controllers == Controllers::weighted || c.controllers == Controllers::weighted_common) {
                    const bool own_mix = c.controllers == Controllers::weighted;
                    const double a = scalar(own_mix ? prefix + "controller_mix" : "controller_mix");
                    w = a * w + (1 - a) * param("base_controller.weight")[size_t(e * C + k)];
                }
                for (int64_t n = 0; n < N; n++) logits[size_t(n * E + e)] += w * x[size_t(n * C + k)];
            }
        if (c.learn_temperature == LearnTemperature::no) return logits;
        const bool own_temperature = c.learn_temperature == LearnTemperature::separate;
        const std::string name = own_temperature ? own + "temperature" : "temperature";
        for (int64_t n = 0; n < N; n++)
            for (int64_t e = 0; e < E; e++) {
                const double p = scalar(name, e);
                logits[size_t(n * E + e)] /= c.temperature_form == TemperatureForm::exp ? std::exp(p - 1) : p;
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
                rows[at + size_t(k)] =
                    (rows[at + size_t(k)] - mean) / std::sqrt(var + 1e-5) * param(name + ".weight")[size_t(k)] +
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
        if (c.router == Router::learned) merge = scaled(x, "");
        if (c.router == Router::learned && c.merge_softmax) merge = softmax(merge, false);
        if (c.emit == Emit::shared) emit = merge;
        if (c.emit == Emit::group) emit = softmax(scaled(x, "emit_"), false);
        if (c.emit == Emit::experts)
            emit =
                c.router == Router::uniform ? Vector(merge.size(), 1.0 / double(E)) : softmax(scaled(x, "emit_"), true);
        if (c.emit == Emit::raw) emit = Vector(merge.size(), 1.0);
        if (c.emit == Emit::top) emit = top(merge, false);

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
inline bool legal(const ModelConfig& c) {
    try {
        resolved(c);
        return true;
    } catch (const InputError&) {
        return false;
    }
}

inline std::string text_of(const ModelConfig& c) {
    return str("emit ", c.emit, ", controllers ", c.controllers, ", learn ", c.learn_temperature,
               c.temperature_per_expert ? " per expert " : " ", c.temperature_form,
               c.merge_softmax ? "" : ", no softmax", c.mixture_norm ? ", norms" : "", ", ", c.group_order, " over ",
               c.group_axis, ", ", c.router, ", temperature ", c.temperature, ", g ", c.group_size);
}

// Every legal combination; where time is short, every seventh of them.
inline std::vector<ModelConfig> combinations() {
    std::vector<ModelConfig> all;
    for (Emit emit : values_of<Emit>())
        for (Controllers controllers : values_of<Controllers>())
            for (LearnTemperature learn : values_of<LearnTemperature>())
                for (int bits = 0; bits < 128; bits++) {
                    ModelConfig c = small_mot(bits & 64 ? 4 : 2);
                    c.emit = emit, c.controllers = controllers, c.learn_temperature = learn;
                    c.temperature_per_expert = bits & 1, c.mixture_norm = bits & 4;
                    c.temperature_form = bits & 2 ? TemperatureForm::exp : TemperatureForm::plain;
                    c.group_order = bits & 8 ? GroupOrder::random : GroupOrder::consecutive;
                    c.group_axis = bits & 16 ? GroupAxis::sequence : GroupAxis::batch, c.merge_softmax = !(bits & 32);
                    if (c.merge_softmax) c.temperature = 0.7;
                    if (legal(c)) all.push_back(c);
                }
    if (small_sizes()) {
        for (size_t i = 0; 7 * i < all.size(); i++) all[i] = all[7 * i];
        all.resize(all.size() / 7);
    }
    for (Emit emit : {Emit::shared, Emit::experts})
        for (bool norms : {false, true})
            for (GroupOrder order : values_of<GroupOrder>()) {
                ModelConfig c = small_mot();
                c.router = Router::uniform, c.emit = emit, c.mixture_norm = norms, c.group_order = order;
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

}  // namespace llmc::test
