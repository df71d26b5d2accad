// Every file in configs/: parsed by the flags of train_mot, made into a model (counted, not allocated), and compared
// with what the paper and the file's own first lines say.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "llmc/base/files.h"
#include "llmc/model/model.h"
#include "llmc/train/flags.h"

using namespace llmc;

namespace {

struct Config {
    ModelConfig model;
    TrainConfig train;
};

std::string path_of(const std::string& name) { return "configs/" + name + ".toml"; }

Config parse(const std::string& name) {
    Config config;
    CLI::App app;
    add_fields(app, config.model, config.train);
    app.parse("--config " + path_of(name), false);
    return config;
}

std::vector<std::string> all_names() {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator("configs"))
        if (entry.path().extension() == ".toml") names.push_back(entry.path().stem());
    std::sort(names.begin(), names.end());
    return names;
}

// Parameters, and how many of them are biases of dense feed-forwards (published totals leave those out).
struct Count { int64_t all = 0, ffn_biases = 0; };
Count count(ModelConfig config) {
    if (config.vocab_size == 0) config.vocab_size = 4096;  // what the small files' comments assume
    Context ctx({.counting = true});
    Model model(config, Precision::of(PrecisionMode::fp32), true, ctx);
    Count n;
    n.all = model.table.count();
    for (const Unit& unit : model.table.units)
        for (const ParamSpec& spec : unit.params)
            if (spec.name.ends_with("up.bias") || spec.name.ends_with("down.bias")) n.ffn_biases += spec.shape.numel();
    return n;
}

// The number in "# Parameters: 76.8M (76,796,928)." or the like.
int64_t stated_parameters(const std::string& name) {
    const std::string text = read_file(path_of(name));
    size_t at = text.find('(', text.find("# Parameters: "));
    int64_t n = 0;
    for (at++; text.at(at) != ')'; at++)
        if (text[at] != ',') n = n * 10 + (text[at] - '0');
    return n;
}

}  // namespace

TEST(Configs, EveryFileIsAModelOfTheStatedSize) {
    const std::vector<std::string> names = all_names();
    EXPECT_EQ(names.size(), 28u);
    for (const std::string& name : names) {
        SCOPED_TRACE(name);
        const Config config = parse(name);
        EXPECT_EQ(read_file(path_of(name)).substr(0, 2), "# ");
        EXPECT_EQ(count(config.model).all, stated_parameters(name));
        Context ctx({.counting = true});
        ModelConfig model = config.model;
        model.vocab_size = 4096;
        EXPECT_NO_THROW(
            Model(model, Precision::of(PrecisionMode::fp32), true, ctx).check_rows(config.train.micro_batch));
        EXPECT_EQ(has_mot(config.model), name.find("mot") != std::string::npos);
        EXPECT_EQ(has_moe(config.model), name.find("moe") != std::string::npos);
    }
}

// Totals of the published configurations (facts of the reference, FFN biases not counted), in millions as printed
// there.
TEST(Configs, TotalsOfThePaper) {
    const std::map<std::string, double> published = {
        {"dense_medium", 76.8},       {"mot_medium_8E", 135.5},  {"mot_medium_32E", 336.9}, {"mot_medium_32E_8", 337.3},
        {"mot_medium_32E_16", 337.9}, {"mot_medium_128E", 1142}, {"mot_base_32E", 1040},    {"mot_base_64E_16", 1955},
        {"dense_base", 162.4},        {"mot_mini", 94.5}};
    for (const auto& [name, millions] : published) {
        const Count n = count(parse(name).model);
        const double tolerance = millions < 1000 ? 0.05 : 0.5;  // half of the last printed digit
        EXPECT_NEAR(double(n.all - n.ffn_biases) * 1e-6, millions, tolerance) << name;
    }
}

TEST(Configs, RecipeOfThePaper) {
    const std::map<std::string, double> rates = {
        {"dense_mini", 4e-3},        {"mot_mini", 2e-3},        {"dense_medium", 1e-3},     {"dense_base", 4e-4},
        {"mot_medium_8E", 7e-4},     {"mot_medium_32E", 7e-4},  {"mot_medium_32E_8", 7e-4}, {"mot_medium_32E_16", 7e-4},
        {"moe_medium_32E_switch", 7e-4}, {"moe_medium_32E_expert_choice", 7e-4},
        {"mot_medium_32E_32", 7e-4}, {"mot_medium_128E", 7e-4}, {"mot_base_32E", 2e-4},     {"mot_base_32E_8", 2e-4},
        {"mot_base_64E_16", 2e-4}};
    for (const auto& [name, lr] : rates) {
        SCOPED_TRACE(name);
        const Config c = parse(name);
        const bool mini = name.ends_with("mini");
        EXPECT_EQ(c.train.lr, lr);
        EXPECT_EQ(c.train.micro_batch * c.train.grad_accumulation * c.model.context, 256 * 256);
        EXPECT_EQ(c.train.steps, mini ? 250000 : 150000);
        EXPECT_EQ(c.train.warmup_steps, 2500);
        EXPECT_EQ(c.train.final_lr_fraction, 0.1);
        EXPECT_EQ(c.train.clip, 0.5);
        EXPECT_EQ(c.train.weight_decay, 0.1);
        EXPECT_EQ(c.train.decay, Decay::all);
        EXPECT_EQ(c.model.init_scale, mini ? 1.0 : 0.1);
        EXPECT_FALSE(c.model.final_norm || c.model.tied_head || c.model.attention_bias);
        EXPECT_EQ(c.model.d_ff, 4 * c.model.d_model);
        if (!has_mot(c.model)) continue;
        // FLOP-matched: the experts' work per token is that of a dense layer.
        EXPECT_EQ(c.model.experts * c.model.expert_size, c.model.d_ff * c.model.group_size);
    }
}
