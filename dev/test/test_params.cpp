// The parameter table: layout, counts of the paper's models, decay; and initial weights.
#include <cmath>
#include <set>

#include "dev/test/model_lab.h"

namespace llmc::test {
namespace {

// A model that only counts: no memory.
struct Counted {
    Context ctx{ContextOptions{.counting = true}};
    Model model;
    explicit Counted(const ModelConfig& config, bool decay_everything = true)
        : model(config, Precision::of(PrecisionMode::fp32), decay_everything, ctx) {}
};

ModelConfig medium(const std::string& pattern, int64_t group, int64_t experts) {
    ModelConfig c;
    c.pattern = pattern, c.d_model = 512, c.heads = 8, c.group_size = group, c.experts = experts;
    return c;
}

TEST(Counts, ThePapersModels) {
    const std::string half = "4x(attention ffn) 4x(attention mot)";
    ModelConfig base = medium("6x(attention ffn) 6x(attention mot)", 32, 32);
    base.d_model = 768, base.heads = 12;
    // layers' weights by hand: attention 4 d^2, dense 8 d^2 + 5 d (biases), norms 2 d each; MoT 2 E d es + E d
    const int64_t d = 512, outside = 2 * 50257 * d + 256 * d, attention = 4 * d * d + 2 * d, dense = 8 * d * d + 7 * d;
    auto mot = [&](int64_t E, int64_t es) { return 2 * E * d * es + E * d + 2 * d; };
    // The published totals are those of matrices and embeddings; norms and biases add up to 0.03M (base: 0.06M), which
    // shows in 32E/8 only: 337.36M with them.
    struct Case {
        const char* name;
        ModelConfig config;
        double millions, within;
        int64_t exact;
    };
    const std::vector<Case> cases = {
        {"medium dense", medium("8x(attention ffn)", 32, 32), 76.8, 0.05, outside + 8 * (attention + dense)},
        {"medium 8E", medium(half, 8, 8), 135.5, 0.05, outside + 8 * attention + 4 * (dense + mot(8, 2048))},
        {"medium 32E", medium(half, 32, 32), 336.9, 0.05, outside + 8 * attention + 4 * (dense + mot(32, 2048))},
        {"medium 32E/8", medium(half, 32, 256), 337.3, 0.05, outside + 8 * attention + 4 * (dense + mot(256, 256))},
        {"medium 32E/16", medium(half, 32, 512), 337.9, 0.05, outside + 8 * attention + 4 * (dense + mot(512, 128))},
        {"medium 128E", medium(half, 128, 128), 1142, 0.5, outside + 8 * attention + 4 * (dense + mot(128, 2048))},
        {"base 32E", base, 1040, 0.5, -1},
    };
    for (const Case& c : cases) {
        const Counted counted(c.config);
        const int64_t count = counted.model.table.count();
        const int64_t matrices = counted.model.table.count_matrices();
        EXPECT_NEAR(double(matrices) / 1e6, c.millions, c.within) << c.name;
        EXPECT_NEAR(double(count) / 1e6, c.millions, c.within + 0.01) << c.name;
        if (c.exact >= 0) {
            EXPECT_EQ(count, c.exact) << c.name;
        }
    }
}

TEST(Counts, Options) {
    ModelConfig plain = tiny(dense_pattern);
    const int64_t count = Counted(plain).model.table.count(), C = 16, V = 50, F = 24;
    auto difference = [&](auto&& change) {
        ModelConfig c = plain;
        change(c);
        return Counted(c).model.table.count() - count;
    };
    EXPECT_EQ(difference([](ModelConfig& c) { c.tied_head = true; }), -V * C);
    EXPECT_EQ(difference([](ModelConfig& c) { c.final_norm = true; }), 2 * C);
    EXPECT_EQ(difference([](ModelConfig& c) { c.norm_bias = false; }), -4 * C);
    EXPECT_EQ(difference([](ModelConfig& c) { c.norm = Norm::rmsnorm; }), 0);  // the reference's RMSNorm has a bias too
    EXPECT_EQ(difference([](ModelConfig& c) { c.attention_bias = true; }), 2 * 4 * C);
    EXPECT_EQ(difference([](ModelConfig& c) { c.ffn_bias = false; }), -2 * (F + C));
    EXPECT_EQ(difference([](ModelConfig& c) { c.ffn_activation = Hidden::swiglu; }), 2 * (F * C - F - C));
    EXPECT_EQ(difference([](ModelConfig& c) { c.positions = Positions::rope; }), -8 * C);
    ModelConfig mot = tiny("mot");
    const int64_t learned = Counted(mot).model.table.count();
    mot.router = Router::uniform;
    EXPECT_EQ(Counted(mot).model.table.count(), learned - 6 * C);
}

TEST(Table, LayoutHasNoOverlapAndIsAligned) {
    for (bool decay_everything : {true, false}) {
        ModelConfig config = tiny(mot_pattern);
        config.final_norm = config.attention_bias = true;
        Counted counted(config, decay_everything);
        const ParamTable& table = counted.model.table;
        int64_t offset = 0;
        std::set<std::string> names;
        for (const Unit& unit : table.units) {
            EXPECT_EQ(unit.offset, offset) << unit.name;
            EXPECT_EQ(unit.size % 128, 0);
            offset += unit.size;
            int64_t end = 0, matrices_end = 0;
            for (const ParamSpec& p : unit.params) {
                EXPECT_TRUE(names.insert(p.name).second) << p.name;
                EXPECT_EQ(p.offset, end) << p.name;  // in order, each at the next multiple of 128
                end = p.offset + (p.shape.numel() + 127) / 128 * 128;
                if (p.matrix()) matrices_end = end;
                EXPECT_EQ(unit.experts, p.name.find(".experts.") != std::string::npos) << p.name;
                if (unit.experts) {
                    EXPECT_EQ(p.shape[0], config.experts);
                }
            }
            EXPECT_EQ(unit.size, end);
            EXPECT_EQ(unit.decayed, decay_everything ? unit.size : matrices_end) << unit.name;
        }
        EXPECT_EQ(table.size, offset);
    }
}

TEST(Table, UnitsAndNames) {
    ModelConfig config = tiny("attention mot");
    config.final_norm = true;
    Counted counted(config);
    std::vector<std::string> units;
    for (const Unit& unit : counted.model.table.units) units.push_back(unit.name);
    EXPECT_EQ(units, (std::vector<std::string>{"embedding", "blocks.0", "blocks.1", "blocks.1.experts", "final_norm",
                                               "head"}));
    const std::map<std::string, Shape> shapes = {{"embedding.token.weight", {50, 16}},
                                                 {"embedding.position.weight", {8, 16}},
                                                 {"blocks.0.norm.weight", {16}},
                                                 {"blocks.0.norm.bias", {16}},
                                                 {"blocks.0.qkv.weight", {48, 16}},
                                                 {"blocks.0.proj.weight", {16, 16}},
                                                 {"blocks.1.norm.weight", {16}},
                                                 {"blocks.1.norm.bias", {16}},
                                                 {"blocks.1.controller.weight", {6, 16}},
                                                 {"blocks.1.experts.up.weight", {6, 10, 16}},
                                                 {"blocks.1.experts.down.weight", {6, 16, 10}},
                                                 {"final_norm.weight", {16}},
                                                 {"final_norm.bias", {16}},
                                                 {"head.weight", {50, 16}}};
    int64_t found = 0;
    for (const auto& [name, shape] : shapes) EXPECT_EQ(counted.model.table.find(name).spec->shape, shape) << name;
    for (const Unit& unit : counted.model.table.units) found += int64_t(unit.params.size());
    EXPECT_EQ(found, int64_t(shapes.size()));
    EXPECT_EQ(counted.model.table.find_unit("blocks.2"), nullptr);
    EXPECT_TRUE(refuses([&] { counted.model.table.find("blocks.2.norm.weight"); }, "blocks.2.norm.weight"));
}

// ----------------------------------------------------------------------------------------------------- initial weights

struct Moments {
    double mean, std, most;
};
Moments moments(const Vector& values) {
    double sum = 0, squares = 0;
    for (double v : values) sum += v, squares += v * v;
    const double n = double(values.size()), mean = sum / n;
    return {mean, std::sqrt(squares / n - mean * mean), largest(values)};
}

// Standard deviation of a normal of standard deviation `std`, conditioned on |x| <= cut.
double truncated_std(double std, double cut) {
    const double a = cut / std, density = std::exp(-a * a / 2) / std::sqrt(2 * M_PI),
                 inside = std::erf(a / std::sqrt(2.0));
    return std * std::sqrt(1 - 2 * a * density / inside);
}

// A model of which each tensor has at least 16,000 elements: a sample's standard deviation is then known to 0.6 % (one
// sigma).
struct Fresh {
    Context ctx;
    Model model;
    explicit Fresh(const ModelConfig& config, uint64_t seed = 1, const char* precision = "fp32")
        : ctx({.threads = 1}), model(config, Precision::of(from_word<PrecisionMode>(precision)), true, ctx) {
        model.allocate(false);
        model.initialize(seed);
    }
    NamedVectors parameters() { return read_all(model.parameters(), ctx); }
};
ModelConfig wide() {
    ModelConfig c = tiny("attention ffn mot");
    c.vocab_size = 500, c.d_model = 128, c.d_ff = 256, c.context = 128, c.heads = 2, c.experts = 128, c.expert_size = 8;
    c.attention_bias = true;
    return c;
}

TEST(Initialisation, StandardDeviationsAndCuts) {
    for (double scale : {0.1, 1.0})
        for (bool fixed : {false, true}) {
            ModelConfig config = wide();
            config.init_scale = scale;
            config.init = fixed ? Init::truncated_normal_fixed : Init::truncated_normal;
            NamedVectors values = Fresh(config).parameters();
            const std::map<std::string, double> fan_in = {
                {"embedding.token.weight", 1},       {"embedding.position.weight", 1},
                {"blocks.0.qkv.weight", 128},        {"blocks.0.proj.weight", 128},
                {"blocks.1.up.weight", 128},         {"blocks.1.down.weight", 256},
                {"blocks.2.controller.weight", 128}, {"blocks.2.experts.up.weight", 128},
                {"blocks.2.experts.down.weight", 8}, {"head.weight", 128}};
            for (const auto& [name, n] : fan_in) {
                const double std = fixed ? scale / std::sqrt(n) : std::sqrt(scale / n),
                             cut = fixed ? 2 * std : 2 * scale;
                const Moments m = moments(values.at(name));
                const double want = truncated_std(std, cut);
                EXPECT_NEAR(m.std, want, 0.03 * want) << name << " scale " << scale << " fixed " << fixed;
                EXPECT_NEAR(m.mean, 0, 5 * want / std::sqrt(double(values.at(name).size()))) << name;
                EXPECT_LE(m.most, cut * (1 + 1e-6)) << name;
                if (cut < 3 * std) {
                    EXPECT_GT(m.most, 0.99 * cut) << name;
                }  // the cut is really there
            }
        }
}

TEST(Initialisation, TheReferencesNumbers) {
    ModelConfig config = wide();
    config.init_scale = 0.1;
    Moments m = moments(Fresh(config).parameters().at("embedding.token.weight"));
    EXPECT_NEAR(m.std, 0.112, 0.001);  // nominal 0.316, cut at 0.2
    EXPECT_LE(m.most, 0.2);
    config.init_scale = 1;
    EXPECT_NEAR(moments(Fresh(config).parameters().at("embedding.token.weight")).std, 0.88, 0.01);
    EXPECT_NEAR(truncated_std(std::sqrt(0.1), 0.2), 0.112, 0.0005);
}

TEST(Initialisation, BiasesAndNorms) {
    NamedVectors values = Fresh(wide()).parameters();
    for (const auto& [name, fan_in] : std::map<std::string, double>{{"blocks.0.qkv.bias", 128},
                                                                    {"blocks.1.up.bias", 128},
                                                                    {"blocks.1.down.bias", 256},
                                                                    {"blocks.0.proj.bias", 128}}) {
        const Moments m = moments(values.at(name));  // uniform in +-1/sqrt(fan_in)
        EXPECT_LE(m.most, 1 / std::sqrt(fan_in)) << name;
        EXPECT_GT(m.most, 0.9 / std::sqrt(fan_in)) << name;
        EXPECT_NEAR(m.std, 1 / std::sqrt(3 * fan_in), 0.15 / std::sqrt(fan_in)) << name;
    }
    for (const auto& [name, tensor] : values) {
        if (name.find("norm.") == std::string::npos) continue;
        EXPECT_TRUE(identical(tensor, Vector(tensor.size(), name.find("weight") != std::string::npos ? 1 : 0))) << name;
    }
}

TEST(Initialisation, DependsOnSeedAndNameOnly) {
    ModelConfig config = tiny(mot_pattern), deeper = tiny(mot_pattern + " attention ffn");
    NamedVectors values = Fresh(config).parameters(), same = Fresh(config).parameters();
    EXPECT_TRUE(identical(values, same));
    EXPECT_FALSE(identical(values.at("head.weight"), Fresh(config, 2).parameters().at("head.weight")));
    EXPECT_FALSE(identical(values.at("blocks.0.qkv.weight"), values.at("blocks.2.qkv.weight")));
    NamedVectors more = Fresh(deeper).parameters(), wider = Fresh(config, 1, "fp64").parameters(),
                 bf16s = Fresh(config, 1, "bf16").parameters();
    for (const auto& [name, v] : values) {
        EXPECT_TRUE(identical(more.at(name), v)) << name;
        EXPECT_TRUE(identical(rounded(DType::f32, wider.at(name)), v)) << name;
        EXPECT_TRUE(identical(rounded(DType::bf16, wider.at(name)), bf16s.at(name))) << name;
    }
}

}  // namespace
}  // namespace llmc::test
