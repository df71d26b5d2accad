// Who is routed to whom, against plain loops, exactly.
#include "dev/test/moe_oracle.h"

namespace llmc {
namespace {

using namespace test;

// Runs the op and compares all it says. Dropless where the oracle was.
void expect_choice(const Sizes& s, DType dtype, const Vector& p, const ExpertChoices& choices, const Routing& want) {
    Device d;
    Tensor probs = d.tensor(dtype, {s.B, s.T, s.E}, p, "probs");
    Tensor slots = d.tensor(DType::i32, want.slots_shape(s), "slots");
    Tensor where = d.tensor(DType::i32, probs.shape, "where"), counts = d.tensor(DType::i32, {s.E}, "counts"), offsets;
    if (!want.offsets.empty()) offsets = d.tensor(DType::i32, {s.E + 1}, "offsets");
    moe_choose_experts(slots, where, counts, offsets, probs, choices, d.ctx);
    EXPECT_EQ(d.read(slots), want.slots);
    EXPECT_EQ(d.read(where), want.where);
    EXPECT_EQ(d.read(counts), want.counts);
    EXPECT_EQ(offsets ? d.read(offsets) : Vector(), want.offsets);
}

TEST(MoeOps, TokensChooseExpertsAsPlainLoopsDo) {
    for (const Sizes& s : cases)
        for (Probs kind : kinds)
            for (DropOrder order : {DropOrder::position, DropOrder::gate})
                for (bool balanced : {false, true})
                    for (DType dtype : arithmetic_types) {
                        if (balanced && kind != Probs::nans) continue;
                        SCOPED_TRACE(s.text() + str(" probs ", int(kind), " order ", int(order), " even ", balanced));
                        const Vector p = make_probs(kind, s.N(), s.E, 1);
                        const ExpertChoices choices{s.k, order, balanced};
                        expect_choice(s, dtype, p, choices, choose_experts_oracle(s, p, choices));
                    }
}

TEST(MoeOps, DroplessChoiceMatchesPlainLoops) {
    for (const Sizes& s : cases)
        for (Probs kind : kinds)
            for (bool balanced : {false, true})
                for (DType dtype : arithmetic_types) {
                    if (balanced && kind != Probs::nans) continue;
                    SCOPED_TRACE(s.text() + str(" probs ", int(kind), " even ", balanced));
                    const Vector p = make_probs(kind, s.N(), s.E, 1);
                    const DropOrder order = kind == Probs::ties ? DropOrder::gate : DropOrder::position;
                    const Routing want = dropless_oracle(s, p, balanced);
                    expect_choice(s, dtype, p, {s.k, order, balanced}, want);
                    const auto [least, most] = std::minmax_element(want.counts.begin(), want.counts.end());
                    EXPECT_TRUE(!balanced || *most - *least <= 1);
                }
}

struct Choice {
    Sizes s;  // S follows
    int64_t group;
};

std::vector<Choice> token_choices() {
    std::vector<Choice> all = {
        {{6, 3, 4, 0, 2}, 3},    {{6, 3, 4, 0, 1}, 6},   {{4, 5, 7, 0, 4}, 4}, {{3, 2, 1, 0, 1}, 1},
        {{6, 3, 4, 0, 5}, 0},    {{2, 4, 3, 0, 8}, 0},   {{0, 5, 4, 0, 0}, 0}, {{0, 5, 4, 0, 1}, 2},
        {{40, 2, 3, 0, 34}, 40}, {{5, 14, 33, 0, 9}, 0}, {{3, 2, 2, 0, 0}, 0},
    };
    if (!small_sizes())
        for (const Choice& c :
             {Choice{{64, 9, 32, 0, 2}, 32}, Choice{{300, 2, 9, 0, 21}, 150}, Choice{{8, 200, 17, 0, 50}, 0},
              Choice{{2, 1500, 2, 0, 1300}, 0}, Choice{{1100, 1, 2, 0, 70}, 1100}})
            all.push_back(c);
    for (Choice& c : all) c.s.S = c.group > 0 ? c.s.T * (c.s.B / c.group) * c.s.k : c.s.k;
    return all;
}

TEST(MoeOps, ExpertsChooseTokensAsPlainLoopsDo) {
    for (const auto& [s, group] : token_choices())
        for (Probs kind : kinds)
            for (DType dtype : arithmetic_types) {
                SCOPED_TRACE(s.text() + str(" group ", group, " probs ", int(kind)));
                Vector p = make_probs(kind, s.N(), s.E, 2);
                Routing want = choose_tokens_oracle(s, p, group);
                Device d;
                Tensor probs = d.tensor(dtype, {s.B, s.T, s.E}, p, "probs");
                Tensor slots = d.tensor(DType::i32, {s.E, s.S}, "slots");
                Tensor where = d.tensor(DType::i32, probs.shape, "where");
                moe_choose_tokens(slots, where, probs, s.k, group, d.ctx);
                EXPECT_EQ(d.read(slots), want.slots);
                EXPECT_EQ(d.read(where), want.where);
            }
}

// By hand: three tokens, two experts, two slots.
TEST(MoeOps, TiesAndDropsByHand) {
    Device d;
    Tensor probs = d.tensor(DType::f32, {1, 3, 2}, {0.5, 0.5, 0.625, 0.375, 0.75, 0.25}, "probs");
    Tensor slots = d.tensor(DType::i32, {2, 2}, "slots"), where = d.tensor(DType::i32, {1, 3, 2}, "where"),
           counts = d.tensor(DType::i32, {2}, "counts");
    moe_choose_experts(slots, where, counts, {}, probs, {.k = 1}, d.ctx);
    EXPECT_EQ(d.read(slots), (Vector{0, 2, -1, -1}));  // pairs (0,0) and (1,0)
    EXPECT_EQ(d.read(where), (Vector{0, -1, 1, -1, -2, -1}));
    EXPECT_EQ(d.read(counts), (Vector{3, 0}));
    moe_choose_experts(slots, where, counts, {}, probs, {.k = 1, .order = DropOrder::gate}, d.ctx);
    EXPECT_EQ(d.read(slots), (Vector{2, 4, -1, -1}));
    EXPECT_EQ(d.read(where), (Vector{-2, -1, 0, -1, 1, -1}));
    // Everybody to both: the second expert's rows begin behind those of the first.
    moe_choose_experts(slots, where, counts, {}, probs, {.k = 2}, d.ctx);
    EXPECT_EQ(d.read(slots), (Vector{0, 2, 1, 3}));
    EXPECT_EQ(d.read(where), (Vector{0, 2, 1, 3, -2, -2}));
    // NaN comes last, and chooses the first experts.
    d.write(probs, {nan, 0.5, nan, nan, 0.25, nan});
    moe_choose_experts(slots, where, counts, {}, probs, {.k = 1}, d.ctx);
    EXPECT_EQ(d.read(slots), (Vector{2, 4, 1, -1}));
}

// All tokens on one of five experts: the others have no rows at all.
TEST(MoeOps, DroplessByHand) {
    const int64_t N = 3, E = 5, tile = ragged_tile(), R = ragged_rows(N, E), end = (N + tile - 1) / tile * tile;
    EXPECT_EQ(R, N + E * (tile - 1));
    Device d;
    Vector p(size_t(N * E), 0.125);
    for (size_t n = 0; n < size_t(N); n++) p[n * size_t(E) + 2] = 0.5;
    Tensor probs = d.tensor(DType::f32, {1, N, E}, p, "probs"), where = d.tensor(DType::i32, probs.shape, "where");
    Tensor slots = d.tensor(DType::i32, {R}, "slots"), counts = d.tensor(DType::i32, {E}, "counts"),
           offsets = d.tensor(DType::i32, {E + 1}, "offsets");
    moe_choose_experts(slots, where, counts, offsets, probs, {.k = 1}, d.ctx);
    Vector pairs(size_t(R), -1);
    pairs[0] = 2, pairs[1] = 7, pairs[2] = 12;
    EXPECT_EQ(d.read(slots), pairs);
    EXPECT_EQ(d.read(where), (Vector{-1, -1, 0, -1, -1, -1, -1, 1, -1, -1, -1, -1, 2, -1, -1}));
    EXPECT_EQ(d.read(counts), (Vector{0, 0, 3, 0, 0}));
    EXPECT_EQ(d.read(offsets), (Vector{0, 0, 0, double(end), double(end), double(end)}));
}

// Longer lists than a block of a GPU looks at in one go, and sets of tokens that are not counted in shared memory.
TEST(MoeOps, LongListsMatchPlainLoops) {
    auto compare = [](const Sizes& s, const Vector& p, const Routing& want, auto route) {
        Device d;
        Tensor probs = d.tensor(DType::f32, {s.B, s.T, s.E}, p, "probs");
        Tensor slots = d.tensor(DType::i32, {s.E, s.S}, "slots"), where = d.tensor(DType::i32, probs.shape, "where");
        route(slots, where, probs, d);
        EXPECT_EQ(d.read(slots), want.slots) << s.text();
        EXPECT_EQ(d.read(where), want.where) << s.text();
    };
    for (Probs kind : {Probs::smooth, Probs::ties}) {
        if (small_sizes() && kind == Probs::smooth) continue;
        const Sizes tokens{2, 2350, 2, 2200, 1}, experts{2, 2350, 2, 2200, 2200}, sets{516, 1, 3, 60, 30};
        const Vector p = make_probs(kind, tokens.N(), tokens.E, 8), q = make_probs(kind, sets.N(), sets.E, 9);
        for (DropOrder order : {DropOrder::position, DropOrder::gate})
            expect_choice(tokens, DType::f32, p, {1, order}, choose_experts_oracle(tokens, p, {1, order}));
        expect_choice(tokens, DType::f32, p, {1}, dropless_oracle(tokens, p));
        compare(experts, p, choose_tokens_oracle(experts, p, 0), [&](auto slots, auto where, auto probs, auto& d) {
            moe_choose_tokens(slots, where, probs, experts.k, 0, d.ctx);
        });
        compare(sets, q, choose_tokens_oracle(sets, q, 258), [&](auto slots, auto where, auto probs, auto& d) {
            moe_choose_tokens(slots, where, probs, sets.k, 258, d.ctx);
        });
    }
}

// The order of numbers that no softmax gives: infinities, negative ones, the two zeros, which are equal, and NaN.
TEST(MoeOps, AnyNumbersAreOrdered) {
    const double inf = std::numeric_limits<double>::infinity();
    const Vector ascending = {nan, -inf, -2, -1, -0.0, 1, inf};
    const int64_t n = int64_t(ascending.size());
    for (int64_t group : {n, int64_t(0)})
        for (int64_t k = 1; k <= n; k++) {
            Device d;
            Tensor probs = d.tensor(DType::f32, {n, 1, 1}, ascending, "probs");
            Tensor slots = d.tensor(DType::i32, {1, k}, "slots"), where = d.tensor(DType::i32, {n, 1, 1}, "where");
            moe_choose_tokens(slots, where, probs, k, group, d.ctx);
            Vector want;
            for (int64_t i = n - k; i < n; i++) want.push_back(double(i));
            EXPECT_EQ(d.read(slots), want) << "group " << group;
        }
    Device d;
    Tensor probs = d.tensor(DType::f32, {1, 2, 2}, {-0.0, 0.0, 0.0, -0.0}, "probs");
    Tensor slots = d.tensor(DType::i32, {2, 1}, "slots"), where = d.tensor(DType::i32, {1, 2, 2}, "where"),
           counts = d.tensor(DType::i32, {2}, "counts");
    moe_choose_experts(slots, where, counts, {}, probs, {.k = 1, .order = DropOrder::gate}, d.ctx);
    EXPECT_EQ(d.read(slots), (Vector{0, -1}));
    EXPECT_EQ(d.read(counts), (Vector{2, 0}));
}

}  // namespace
}  // namespace llmc
