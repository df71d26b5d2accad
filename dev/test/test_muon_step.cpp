// Muon in steps of a model: orthogonalised matrices, which parameters it is for, and what it keeps.
#include "dev/test/muon_oracle.h"
#include "dev/test/trainee.h"
#include "llmc/step/muon.h"

namespace llmc::test {
namespace {

struct Matrices {
    int64_t n, rows, columns;
};

TEST(Orthogonalized, MatchesPlainLoops) {
    for (const Matrices& size :
         few_or_all<Matrices>({{3, 5, 7}, {2, 7, 5}, {1, 1, 9}, {1, 16, 16}}, {{1, 33, 130}, {4, 65, 31}, {2, 48, 48}}))
        for (DType dtype : arithmetic_types) {
            Device d;
            Arena arena("test", d.ctx);
            arena.allocate(64 << 20);
            const WorkspaceOnArena workspace(arena, d.ctx);
            const int64_t of_one = size.rows * size.columns;
            const Vector start = rounded(dtype, random_vector(size.n * of_one, 1, 1e-3));
            Tensor x = d.tensor(dtype, {size.n, size.rows, size.columns}, start, "x");
            const Vector got = d.read(orthogonalized(x, arena, d.ctx));
            for (int64_t i = 0; i < size.n; i++) {
                auto part = [&](const Vector& v) {
                    return Vector(v.begin() + i * of_one, v.begin() + (i + 1) * of_one);
                };
                EXPECT_TRUE(close(part(got), plain_orthogonalized(part(start), size.rows, size.columns),
                                  orthogonalized_tolerance(dtype, size.rows, size.columns)))
                    << size.rows << " x " << size.columns << ", matrix " << i;
            }
        }
}

// What it is for: orthogonal vectors of lengths 1 : 0.1 : 0.01 become vectors of about equal lengths.
TEST(Orthogonalized, SingularValuesComeNearOne) {
    Device d;
    Arena arena("test", d.ctx);
    arena.allocate(64 << 20);
    const WorkspaceOnArena workspace(arena, d.ctx);
    Tensor x = d.tensor(DType::f32, {1, 3, 4}, {0, 0, 2, 0, 0.2, 0, 0, 0, 0, 0, 0, 0.02}, "x");
    const Vector got = d.read(orthogonalized(x, arena, d.ctx));
    for (size_t i = 0; i < got.size(); i++) {
        const bool one = i == 2 || i == 4 || i == 11;
        EXPECT_GE(got[i], one ? 0.68 : -1e-6) << i;
        EXPECT_LE(got[i], one ? 1.2 : 1e-6) << i;
    }
}

// Every kind of block, with everything that has matrices.
ModelConfig every_kind() {
    ModelConfig c = tiny("attention ffn mot moe_token_choice moe_expert_choice");
    c.ffn_activation = c.expert_activation = Hidden::swiglu;
    c.shared_experts = 1, c.expert_choice_fraction = 0.25, c.attention_bias = true;
    c.learn_temperature = LearnTemperature::tied;
    return c;
}
TrainConfig muon(int64_t micro_batch, const std::string& precision = "fp32") {
    TrainConfig c = training(micro_batch, 1, precision);
    c.optimizer = OptimizerName::muon, c.muon_momentum = 0.9, c.weight_decay = 0.25, c.lr = 0.125;
    return c;
}

// The matrices of a parameter that are for Muon, by what its name says; none for all others.
Matrices matrices_of(const std::string& name, const Shape& shape) {
    auto ends = [&](std::initializer_list<const char*> endings) {
        return std::any_of(endings.begin(), endings.end(), [&](const char* end) { return name.ends_with(end); });
    };
    if (ends({".qkv.weight"})) return {3, shape[0] / 3, shape[1]};
    if (ends({".experts.up.weight", ".experts.gate.weight", ".experts.down.weight"}))
        return {shape[0], shape[1], shape[2]};
    if (ends({".proj.weight", ".up.weight", ".gate.weight", ".down.weight"})) return {1, shape[0], shape[1]};
    return {0, 0, 0};
}

// One step from the same weights: matrices as the formula says, from the run's own gradients; every other parameter
// and its moments as in a run of AdamW, to the bit.
TEST(MuonStep, UpdatesMatricesAndLeavesTheRestToAdamW) {
    for (const char* precision : {"fp64", "fp32", "bf16-mixed", "bf16"}) {
        if (!backend_supports(Precision::of(from_word<PrecisionMode>(precision)).act)) continue;
        TrainConfig train = muon(8, precision);
        Trainee run(every_kind(), train);
        train.optimizer = OptimizerName::adamw;
        Trainee adamw(every_kind(), train);
        const NamedVectors before = run.parameters();
        const Tokens tokens = random_tokens(8 * T, 1), targets = random_tokens(8 * T, 2);
        run(tokens, targets), adamw(tokens, targets);
        const NamedVectors after = run.parameters(), others = adamw.parameters(), gradients = run.gradients();
        NamedVectors state = read_all(run.optimizer->state_parts(false), run.ctx),
                     moments = read_all(adamw.optimizer->state_parts(false), adamw.ctx);
        const double b = train.muon_momentum, scale = run.step->state().grad_scale;
        int64_t by_muon = 0;
        for (const NamedTensor& t : run.model.parameters()) {
            const Matrices m = matrices_of(t.name, t.shape());
            const std::string what = std::string(precision) + " " + t.name;
            EXPECT_EQ(state.count("v." + t.name), m.n ? 0u : 1u) << what;
            if (m.n == 0) {
                EXPECT_TRUE(identical(after.at(t.name), others.at(t.name))) << what;
                EXPECT_TRUE(identical(state.at("m." + t.name), moments.at("m." + t.name))) << what;
                EXPECT_TRUE(identical(state.at("v." + t.name), moments.at("v." + t.name))) << what;
                continue;
            }
            by_muon++;
            const Vector &p = before.at(t.name), &g = gradients.at(t.name);
            Vector want(p), momentum(g);
            for (size_t i = 0; i < g.size(); i++) momentum[i] *= (1 - b) * scale;
            const int64_t of_one = m.rows * m.columns;
            const double length = 0.2 * std::sqrt(double(std::max(m.rows, m.columns)));
            for (int64_t i = 0; i < m.n; i++) {
                Vector u(g.begin() + i * of_one, g.begin() + (i + 1) * of_one);
                for (double& value : u) value *= (b * (1 - b) + (1 - b)) * scale;
                u = plain_orthogonalized(u, m.rows, m.columns);
                for (int64_t j = 0; j < of_one; j++) {
                    double& w = want[size_t(i * of_one + j)];
                    w = w * (1 - train.lr * train.weight_decay) - train.lr * length * u[size_t(j)];
                }
            }
            const DType grad = run.model.precision.grad, param = run.model.precision.param;
            EXPECT_TRUE(close(state.at("m." + t.name), momentum, 8 * roundoff(grad))) << what;
            EXPECT_TRUE(
                close(after.at(t.name), want, orthogonalized_tolerance(grad, m.rows, m.columns) + 2 * roundoff(param)))
                << what;
        }
        EXPECT_EQ(by_muon, 2 + 3 + 3 + 6 + 6) << precision;
    }
}

// The state takes no place for what it does not keep.
TEST(MuonStep, KeepsOneMomentumOfMatrices) {
    TrainConfig train = muon(8);
    const Plan plan = make_plan(every_kind(), train, true, 1);
    Trainee run(every_kind(), train);
    int64_t all = run.model.table.size, matrices = 0;
    for (const Unit& unit : run.model.table.units)
        for (size_t i = 0; i < unit.params.size(); i++)
            if (unit.params[i].hidden.rank) matrices += unit.end_of(i) - unit.params[i].offset;
    EXPECT_GT(matrices, all / 2);
    EXPECT_EQ(plan.optimizer_bytes, 4 * (all + all - matrices));
    EXPECT_EQ(run.optimizer->bytes(), plan.optimizer_bytes);
}

TEST(MuonStep, OverfitsOneBatch) {
    ModelConfig config = tiny(mot_pattern);
    TrainConfig train = muon(8);
    train.lr = 5e-3;
    Trainee run(config, train);
    const Tokens tokens = random_tokens(8 * T, 1), targets = random_tokens(8 * T, 2);
    double loss = run(tokens, targets);
    EXPECT_GT(loss, 3);
    int steps = 1;
    for (; steps < 400 && loss >= 0.05; steps++) loss = run(tokens, targets);
    EXPECT_LT(loss, 0.05) << steps << " steps";
}

}  // namespace
}  // namespace llmc::test
