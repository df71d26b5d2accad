// A new kind of block needs its own file and a row of the table, nothing else: this program is the product with one row
// more, and everything that depends on the kind of a block takes it like the others.
#include <set>

#include "dev/test/model_lab.h"
#include "dev/test/toy_block.h"
#include "llmc/model/blocks/kind_table.h"
#include "llmc/model/config_fields.h"

namespace llmc {

// Linked in place of blocks/kind_table.cpp, as that file would be with the row of a toy.
std::span<const BlockKind> block_kinds() {
    static const std::vector<BlockKind> rows = [] {
        std::vector<BlockKind> list(std::begin(block_kind_table), std::end(block_kind_table));
        list.push_back(test::toy_kind);
        return list;
    }();
    return rows;
}

namespace test {
namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(BlockKinds, EveryRowIsComplete) {
    std::set<std::string> names;
    for (const BlockKind& kind : block_kinds()) {
        EXPECT_TRUE(names.insert(kind.name).second) << kind.name << " is there twice";
        EXPECT_TRUE(kind.make && *kind.help) << kind.name;
        ModelConfig c = tiny(kind.name);
        EXPECT_EQ(has_experts(c), kind.has_experts()) << kind.name;
        EXPECT_TRUE(make_block(kind.name, resolved(c))) << kind.name;
    }
}

TEST(BlockKinds, PatternMessageAndHelpKnowTheToy) {
    EXPECT_EQ(parse_pattern("2x(toy ffn)"), (std::vector<std::string>{"toy", "ffn", "toy", "ffn"}));
    EXPECT_TRUE(refuses<InputError>([] { parse_pattern("attention tyo"); }, "moe_expert_choice, toy or ( ... )"));
    EXPECT_TRUE(refuses<InputError>([] { make_block("tyo", {}); }, "toy"));
    ModelConfig c;
    for_each_model_field(c, [](const FieldInfo& info, auto&) {
        if (info.name != std::string("pattern")) return;
        EXPECT_TRUE(contains(info.help, "mot (Mixture of Tokens)")) << info.help;
        EXPECT_TRUE(contains(info.help, "toy (one matrix)")) << info.help;
    });
}

TEST(BlockKinds, ConfigurationAsksTheToy) {
    ModelConfig c = tiny("attention toy");
    c.expert_size = 0;
    EXPECT_EQ(resolved(c).capacity_factor, 7);
    EXPECT_EQ(resolved(c).expert_size, 24 / 3);
    EXPECT_EQ(outputs_that_add_up(c, "toy"), 3);
    EXPECT_TRUE(has_experts(c));
    EXPECT_FALSE(has_mot(c) || has_moe(c) || mixtures_span_ranks(c));
    EXPECT_EQ(rows_together(c), 6);
    EXPECT_EQ(rows_together(tiny("toy mot")), 12);  // groups of 6 and of 4
    EXPECT_TRUE(refuses<InputError>([&] { check_rows(c, 8); }, "8 sequences"));
    EXPECT_NO_THROW(check_rows(c, 12));
    EXPECT_EQ(sees_the_future(c), "");
    EXPECT_TRUE(warnings_of(c).empty());
    c.dropless = true;
    EXPECT_EQ(sees_the_future(c), "with dropless toys");
    EXPECT_EQ(warnings_of(c), std::vector<std::string>{"dropless toys see their own future"});
    c.heads = 1;
    EXPECT_TRUE(refuses<InputError>([&] { resolved(c); }, "--heads"));
    c.pattern = "attention";  // no toy: nobody asks
    EXPECT_NO_THROW(resolved(c));
    EXPECT_EQ(sees_the_future(c), "");
}

// Its gradient inside a model is the slope of the loss, and it generates what it computes.
TEST(BlockKinds, ToyTrainsAndGenerates) {
    constexpr int64_t rows = 6, T = 8;
    Lab lab(tiny("attention toy ffn"), "fp64");
    const Tokens tokens = random_tokens(rows * T, 3), targets = random_tokens(rows * T, 4);
    lab.train(tokens, targets, rows, {});
    const std::string name = "blocks.1.mix.weight";
    const Vector gradient = lab.gradients().at(name), values = read_tensor(lab.parameter(name), lab.ctx);
    for (size_t i : {0u, 37u, 255u}) {
        auto loss = [&](double h) {
            Vector moved = values;
            moved[i] += h;
            write_tensor(lab.parameter(name), moved, lab.ctx);
            double sum = 0;
            for (double x : lab.evaluate(tokens, targets, rows)) sum += x;
            return sum;
        };
        const double h = 1e-5;
        EXPECT_NEAR((loss(h) - loss(-h)) / (2 * h), gradient[i], 1e-6 * (1 + std::abs(gradient[i])));
        loss(0);
    }
    const Vector all = lab.logits(tokens, rows), last = lab.extend(tokens, rows, {5, 3}).back();
    for (int64_t b = 0, V = 50; b < rows; b++)
        for (int64_t v = 0; v < V; v++)
            EXPECT_NEAR(last[size_t(b * V + v)], all[size_t((b * T + T - 1) * V + v)], 1e-12);
    EXPECT_TRUE(refuses<InputError>([&] { lab.train(tokens, targets, 4, {}); }, "4 sequences"));
}

}  // namespace
}  // namespace test
}  // namespace llmc
