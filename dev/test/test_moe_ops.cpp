// The ops of sparse mixtures of experts against plain loops: routing exactly, moved rows and gradients within rounding.
#include "dev/test/reference.h"

namespace llmc {
namespace {

using namespace test;

const double nan = std::numeric_limits<double>::quiet_NaN();

struct Sizes {
    int64_t B, T, E, S, k;
    int64_t C = 1;

    int64_t N() const { return B * T; }
    std::string text() const { return str("B", B, " T", T, " E", E, " S", S, " k", k, " C", C); }
};

// Overflowing, exact and oversized slots; k = E; one expert; no slots; no tokens; rows that packs may and may not
// touch; experts on both sides of a warp.
const std::vector<Sizes> few_cases = {
    {3, 5, 4, 5, 1, 17},  {3, 5, 4, 3, 2, 16},   {2, 3, 5, 9, 5, 8},    {4, 4, 1, 7, 1, 40},
    {1, 7, 3, 0, 2, 5},   {0, 5, 4, 3, 2, 16},   {5, 13, 33, 4, 3, 33}, {2, 40, 6, 17, 2, 1},
    {3, 30, 40, 3, 1, 4}, {1, 70, 2, 40, 1, 64}, {2, 3, 4, 2, 2, 0},
};
const std::vector<Sizes> more_cases = {
    {4, 100, 8, 60, 1, 96},  {16, 64, 32, 40, 1, 520},  {6, 151, 7, 180, 2, 33},
    {2, 333, 256, 5, 2, 64}, {8, 257, 130, 31, 9, 130}, {40, 60, 3, 900, 1, 7},
};
const std::vector<Sizes> cases = [] {
    std::vector<Sizes> all = few_cases;
    if (!small_sizes()) all.insert(all.end(), more_cases.begin(), more_cases.end());
    return all;
}();

const std::vector<DType> prob_types = [] {
    std::vector<DType> types = {DType::f32};
    if (backend_supports(DType::f64)) types.push_back(DType::f64);
    return types;
}();
const DType widest = prob_types.back();

enum class Probs { smooth, ties, nans, skewed, all_nan };
const std::vector<Probs> kinds = {Probs::smooth, Probs::ties, Probs::nans, Probs::skewed, Probs::all_nan};

// [N,E]. ties: few values; skewed: nearly all tokens prefer the last expert.
Vector make_probs(Probs kind, int64_t N, int64_t E, uint64_t seed) {
    if (kind == Probs::all_nan) return Vector(size_t(N * E), nan);
    Vector p = random_vector(N * E, seed, 0.5);
    for (double& x : p) x = float(x + 0.5);
    if (kind == Probs::ties || kind == Probs::nans)
        for (double& x : p) x = std::floor(x * 4) / 4;
    if (kind == Probs::nans)
        for (size_t i = 0; i < p.size(); i += 3) p[i] = nan;
    if (kind == Probs::skewed)
        for (size_t i = size_t(E - 1); i < p.size(); i += size_t(E)) p[i] = i % 5 == 0 ? 0.25 : 0.75 + p[i] / 4;
    return p;
}

// The k best of `values`: one after another, the first of the largest; a NaN is below everything. Ascending.
std::vector<int64_t> best(Vector values, int64_t k) {
    const double infinity = std::numeric_limits<double>::infinity();
    for (double& v : values)
        if (std::isnan(v)) v = -1;  // probs are not negative
    std::vector<int64_t> chosen;
    for (int64_t i = 0; i < k; i++) {
        auto top = std::max_element(values.begin(), values.end());  // the first of equals
        chosen.push_back(top - values.begin());
        *top = -infinity;
    }
    std::sort(chosen.begin(), chosen.end());
    return chosen;
}

struct Routing {
    Vector slots, where, counts;

    Routing(const Sizes& s) : slots(size_t(s.E * s.S), -1), where(size_t(s.N() * s.E), -1), counts(size_t(s.E), 0) {}
    void put(const Sizes& s, int64_t e, int64_t slot, int64_t n) {
        slots[size_t(e * s.S + slot)] = double(n);
        where[size_t(n * s.E + e)] = double(slot);
    }
};

Routing choose_experts_oracle(const Sizes& s, const Vector& probs, DropOrder order) {
    Routing r(s);
    std::vector<std::vector<int64_t>> comers(size_t(s.E));
    for (int64_t n = 0; n < s.N(); n++)
        for (int64_t e : best(Vector(probs.begin() + n * s.E, probs.begin() + (n + 1) * s.E), s.k))
            comers[size_t(e)].push_back(n);
    for (int64_t e = 0; e < s.E; e++) {
        const std::vector<int64_t>& all = comers[size_t(e)];
        r.counts[size_t(e)] = double(all.size());
        Vector gates;
        for (int64_t n : all) gates.push_back(order == DropOrder::gate ? probs[size_t(n * s.E + e)] : 0.0);
        int64_t slot = 0;
        for (int64_t i : best(gates, std::min(s.S, int64_t(all.size())))) r.put(s, e, slot++, all[size_t(i)]);
    }
    return r;
}

// s.S is ignored and must be what the op wants.
Routing choose_tokens_oracle(const Sizes& s, const Vector& probs, int64_t group) {
    Routing r(s);
    const int64_t sets = group > 0 ? s.B / group : 1;
    for (int64_t t = 0; t < (group > 0 ? s.T : 1); t++)
        for (int64_t j = 0; j < sets; j++)
            for (int64_t e = 0; e < s.E; e++) {
                std::vector<int64_t> members;
                if (group > 0)
                    for (int64_t b = j; b < s.B; b += sets) members.push_back(b * s.T + t);
                else
                    for (int64_t n = 0; n < s.N(); n++) members.push_back(n);
                Vector values;
                for (int64_t n : members) values.push_back(probs[size_t(n * s.E + e)]);
                int64_t rank = 0;
                for (int64_t i : best(values, s.k)) r.put(s, e, (t * sets + j) * s.k + rank++, members[size_t(i)]);
            }
    return r;
}

// Device tensors of a routing that an oracle made.
struct Tables {
    Tensor slots, where;
    Tables(Device& d, const Sizes& s, const Routing& r)
        : slots(d.tensor(DType::i32, {s.E, s.S}, r.slots, "slots")),
          where(d.tensor(DType::i32, {s.B, s.T, s.E}, r.where, "where")) {}
};

TEST(MoeOps, TokensChooseExpertsAsPlainLoopsDo) {
    for (const Sizes& s : cases)
        for (Probs kind : kinds)
            for (DropOrder order : {DropOrder::position, DropOrder::gate})
                for (DType dtype : prob_types) {
                    SCOPED_TRACE(s.text() +
                                 str(" probs ", int(kind), order == DropOrder::gate ? " gate" : " position"));
                    Vector p = make_probs(kind, s.N(), s.E, 1);
                    Routing want = choose_experts_oracle(s, p, order);
                    Device d;
                    Tensor probs = d.tensor(dtype, {s.B, s.T, s.E}, p, "probs");
                    Tensor slots = d.tensor(DType::i32, {s.E, s.S}, "slots");
                    Tensor where = d.tensor(DType::i32, probs.shape, "where");
                    Tensor counts = d.tensor(DType::i32, {s.E}, "counts");
                    moe_choose_experts(slots, where, counts, probs, s.k, order, d.ctx);
                    EXPECT_EQ(d.read(slots), want.slots);
                    EXPECT_EQ(d.read(where), want.where);
                    EXPECT_EQ(d.read(counts), want.counts);
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
            for (DType dtype : prob_types) {
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
    moe_choose_experts(slots, where, counts, probs, 1, DropOrder::position, d.ctx);
    EXPECT_EQ(d.read(slots), (Vector{0, 1, -1, -1}));
    EXPECT_EQ(d.read(where), (Vector{0, -1, 1, -1, -1, -1}));
    EXPECT_EQ(d.read(counts), (Vector{3, 0}));
    moe_choose_experts(slots, where, counts, probs, 1, DropOrder::gate, d.ctx);
    EXPECT_EQ(d.read(slots), (Vector{1, 2, -1, -1}));
    EXPECT_EQ(d.read(where), (Vector{-1, -1, 0, -1, 1, -1}));
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
            compare(tokens, p, choose_experts_oracle(tokens, p, order),
                    [&](auto slots, auto where, auto probs, auto& d) {
                        Tensor counts = d.tensor(DType::i32, {tokens.E}, "counts");
                        moe_choose_experts(slots, where, counts, probs, tokens.k, order, d.ctx);
                        EXPECT_EQ(dot(d.read(counts), {1, 1}), double(tokens.N()));
                    });
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
    moe_choose_experts(slots, where, counts, probs, 1, DropOrder::gate, d.ctx);
    EXPECT_EQ(d.read(slots), (Vector{0, -1}));
    EXPECT_EQ(d.read(counts), (Vector{2, 0}));
}

Vector gather_oracle(const Sizes& s, const Vector& x, const Routing& r, const Vector* weights) {
    Vector gathered(size_t(s.E * s.S * s.C));
    for (int64_t e = 0; e < s.E; e++)
        for (int64_t slot = 0; slot < s.S; slot++)
            if (int64_t n = int64_t(r.slots[size_t(e * s.S + slot)]); n >= 0)
                for (int64_t c = 0; c < s.C; c++)
                    gathered[size_t((e * s.S + slot) * s.C + c)] =
                        (weights ? (*weights)[size_t(n * s.E + e)] : 1.0) * x[size_t(n * s.C + c)];
    return gathered;
}

// Through `slots`, where the op goes through `where`.
Vector scatter_oracle(const Sizes& s, Vector out, const Vector& y, const Routing& r, const Vector* weights) {
    for (int64_t e = 0; e < s.E; e++)
        for (int64_t slot = 0; slot < s.S; slot++)
            if (int64_t n = int64_t(r.slots[size_t(e * s.S + slot)]); n >= 0)
                for (int64_t c = 0; c < s.C; c++)
                    out[size_t(n * s.C + c)] +=
                        (weights ? (*weights)[size_t(n * s.E + e)] : 1.0) * y[size_t((e * s.S + slot) * s.C + c)];
    return out;
}

struct Inputs {
    Vector x, y, weights, before;
    Inputs(const Sizes& s, DType act)
        : x(rounded(act, random_vector(s.N() * s.C, 3))), y(rounded(act, random_vector(s.E * s.S * s.C, 4))),
          weights(rounded(statistics_dtype(act), random_vector(s.N() * s.E, 5))),
          before(rounded(act, random_vector(s.N() * s.C, 6))) {}
};

Routing some_routing(const Sizes& s) {
    return choose_experts_oracle(s, make_probs(Probs::ties, s.N(), s.E, 7), DropOrder::position);
}

TEST(MoeOps, GatherMatchesPlainLoops) {
    for (DType act : all_act)
        for (const Sizes& s : cases)
            for (bool weighted : {false, true}) {
                SCOPED_TRACE(s.text() + " " + name_of(act));
                Inputs in(s, act);
                Routing r = some_routing(s);
                Device d;
                Tables tables(d, s, r);
                Tensor x = d.tensor(act, {s.B, s.T, s.C}, in.x, "x");
                Tensor weights = d.tensor(statistics_dtype(act), {s.B, s.T, s.E}, in.weights, "weights");
                Tensor gathered = d.tensor(act, {s.E, s.S, s.C}, "gathered");
                moe_gather(gathered, x, tables.slots, weighted ? weights : Tensor(), d.ctx);
                Vector want = gather_oracle(s, in.x, r, weighted ? &in.weights : nullptr);
                if (weighted)
                    EXPECT_TRUE(close(d.read(gathered), want, tolerance(act)));
                else
                    EXPECT_EQ(d.read(gathered), want);
            }
}

TEST(MoeOps, ScatterMatchesPlainLoops) {
    for (DType act : all_act)
        for (const Sizes& s : cases)
            for (bool weighted : {false, true})
                for (bool accumulate : {false, true}) {
                    SCOPED_TRACE(s.text() + " " + name_of(act));
                    Inputs in(s, act);
                    Routing r = some_routing(s);
                    Device d;
                    Tables tables(d, s, r);
                    Tensor y = d.tensor(act, {s.E, s.S, s.C}, in.y, "y");
                    Tensor weights = d.tensor(statistics_dtype(act), {s.B, s.T, s.E}, in.weights, "weights");
                    Tensor out = d.tensor(act, {s.B, s.T, s.C}, "out");
                    if (accumulate) d.write(out, in.before);
                    moe_scatter(out, y, tables.where, weighted ? weights : Tensor(), accumulate, d.ctx);
                    Vector zero(in.before.size(), 0.0);
                    Vector want =
                        scatter_oracle(s, accumulate ? in.before : zero, in.y, r, weighted ? &in.weights : nullptr);
                    EXPECT_TRUE(close(d.read(out), want, tolerance(act, s.k + 1)));
                }
}

TEST(MoeOps, WeightsBackwardMatchesPlainLoops) {
    for (DType act : all_act)
        for (const Sizes& s : cases)
            for (bool accumulate : {false, true}) {
                SCOPED_TRACE(s.text() + " " + name_of(act));
                const DType f = statistics_dtype(act);
                Inputs in(s, act);
                Routing r = some_routing(s);
                Vector want = accumulate ? in.weights : Vector(in.weights.size(), 0.0);
                for (int64_t i = 0; i < s.E * s.S; i++)
                    if (int64_t n = int64_t(r.slots[size_t(i)]); n >= 0)
                        for (int64_t c = 0; c < s.C; c++)
                            want[size_t(n * s.E + i / s.S)] += in.x[size_t(n * s.C + c)] * in.y[size_t(i * s.C + c)];
                Device d;
                Tables tables(d, s, r);
                Tensor dout = d.tensor(act, {s.B, s.T, s.C}, in.x, "dout"),
                       y = d.tensor(act, {s.E, s.S, s.C}, in.y, "y");
                Tensor dweights = d.tensor(f, {s.B, s.T, s.E}, "dweights");
                if (accumulate) d.write(dweights, in.weights);
                moe_weights_backward(dweights, dout, y, tables.where, accumulate, d.ctx);
                EXPECT_TRUE(close(d.read(dweights), want, tolerance(f, s.C + 1)));
            }
}

// <gather(x), y> = <x, scatter(y)>: each op is the other's gradient. And <scatter(y), x> = <weights, dweights>.
TEST(MoeOps, GatherAndScatterAreAdjoint) {
    for (const Sizes& s : cases)
        for (bool weighted : {false, true}) {
            SCOPED_TRACE(s.text());
            Inputs in(s, widest);
            Device d;
            Tables tables(d, s, some_routing(s));
            Tensor x = d.tensor(widest, {s.B, s.T, s.C}, in.x, "x"), y = d.tensor(widest, {s.E, s.S, s.C}, in.y, "y");
            Tensor all = d.tensor(widest, {s.B, s.T, s.E}, in.weights, "weights"), weights = weighted ? all : Tensor();
            Tensor gathered = d.tensor(widest, y.shape, "gathered"), out = d.tensor(widest, x.shape, "out");
            Tensor dweights = d.tensor(widest, all.shape, "dweights");
            moe_gather(gathered, x, tables.slots, weights, d.ctx);
            moe_scatter(out, y, tables.where, weights, false, d.ctx);
            moe_weights_backward(dweights, x, y, tables.where, false, d.ctx);
            const double left = dot(d.read(gathered), in.y), right = dot(in.x, d.read(out));
            const double tol = tolerance(widest, s.N() * s.k * s.C) * (1 + std::sqrt(double(s.N() * s.k * s.C)));
            EXPECT_NEAR(left, right, tol);
            if (weighted) {
                EXPECT_NEAR(right, dot(in.weights, d.read(dweights)), tol);
            }
        }
}

// What no slot holds is neither read nor passed on: NaN weights and rows of dropped tokens do no harm.
TEST(MoeOps, WhatIsDroppedIsNotTouched) {
    Device d;
    Sizes s{1, 3, 2, 2, 1, 4};
    Routing r(s);
    r.put(s, 0, 0, 2);  // expert 0: token 2 and an empty slot; expert 1: nothing
    Tables tables(d, s, r);
    Tensor x = d.tensor(DType::f32, {1, 3, 4}, {nan, nan, nan, nan, nan, nan, nan, nan, 1, 2, 3, 4}, "x");
    Tensor weights = d.tensor(DType::f32, {1, 3, 2}, {nan, nan, nan, nan, 0.5, nan}, "weights");
    Tensor y = d.tensor(DType::f32, {2, 2, 4}, "y"), out = d.tensor(DType::f32, {1, 3, 4}, "out");
    Tensor dweights = d.tensor(DType::f32, {1, 3, 2}, "dweights");
    moe_gather(y, x, tables.slots, weights, d.ctx);
    Vector rows(16, 0.0);
    for (size_t c = 0; c < 4; c++) rows[c] = 0.5 * double(c + 1);
    EXPECT_EQ(d.read(y), rows);
    for (size_t i = 4; i < 16; i++) rows[i] = nan;
    d.write(y, rows);
    moe_scatter(out, y, tables.where, weights, false, d.ctx);
    EXPECT_EQ(d.read(out), (Vector{0, 0, 0, 0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1}));
    moe_weights_backward(dweights, x, y, tables.where, false, d.ctx);
    EXPECT_EQ(d.read(dweights), (Vector{0, 0, 0, 0, 15, 0}));
}

double balance_oracle(const Sizes& s, const Vector& probs, const Vector& counts) {
    double loss = 0;
    for (int64_t e = 0; e < s.E; e++) {
        double mean = 0;
        for (int64_t n = 0; n < s.N(); n++) mean += probs[size_t(n * s.E + e)] / double(s.N());
        loss += double(s.E) * counts[size_t(e)] / double(s.N()) * mean;
    }
    return loss;
}

TEST(MoeOps, BalanceAndItsGradientMatchPlainLoops) {
    for (const Sizes& s : cases)
        for (DType dtype : prob_types) {
            if (s.N() == 0) continue;
            SCOPED_TRACE(s.text());
            Vector p = rounded(dtype, make_probs(Probs::smooth, s.N(), s.E, 8)), before = random_vector(s.N() * s.E, 9);
            Routing r = choose_experts_oracle(s, p, DropOrder::position);
            double kept = 0, lowest = 1e300, highest = 0;
            for (double n : r.slots) kept += n >= 0;
            for (double c : r.counts) lowest = std::min(lowest, c), highest = std::max(highest, c);
            const double pairs = double(s.N() * s.k), even = pairs / double(s.E);
            Device d;
            Tables tables(d, s, r);
            Tensor probs = d.tensor(dtype, {s.B, s.T, s.E}, p, "probs"),
                   counts = d.tensor(DType::i32, {s.E}, r.counts, "counts"), stats = d.tensor(DType::f64, {4}, "stats");
            moe_balance(stats, probs, counts, tables.slots, d.ctx);
            Vector got = d.read(stats),
                   want = {balance_oracle(s, p, r.counts), 1 - kept / pairs, lowest / even, highest / even};
            for (size_t i = 0; i < 4; i++) EXPECT_NEAR(got[i], want[i], 1e-12 * (1 + want[i])) << "statistic " << i;

            Vector gradient = before;
            for (int64_t n = 0; n < s.N(); n++)
                for (int64_t e = 0; e < s.E; e++)
                    gradient[size_t(n * s.E + e)] +=
                        0.7 * double(s.E) * r.counts[size_t(e)] / double(s.N()) / double(s.N());
            Tensor dprobs = d.tensor(dtype, probs.shape, before, "dprobs");
            moe_balance_backward(dprobs, counts, 0.7, d.ctx);
            EXPECT_TRUE(close(d.read(dprobs), gradient, tolerance(dtype)));
        }
}

TEST(MoeOps, BalanceGradientMatchesFiniteDifferences) {
    Sizes s{2, 3, 4, 2, 2};
    Vector p = make_probs(Probs::smooth, s.N(), s.E, 10);
    Routing r = choose_experts_oracle(s, p, DropOrder::position);
    Device d;
    Tensor counts = d.tensor(DType::i32, {s.E}, r.counts, "counts");
    Tensor dprobs = d.tensor(widest, {s.B, s.T, s.E}, Vector(p.size(), 0.0), "dprobs");
    moe_balance_backward(dprobs, counts, 3.0, d.ctx);
    Vector want = numeric_gradient([&](const Vector& x) { return 3.0 * balance_oracle(s, x, r.counts); }, p);
    EXPECT_TRUE(close(d.read(dprobs), want, 1e-8 + tolerance(widest)));
}

TEST(MoeOps, BalanceByHandAndOfNothing) {
    Device d;
    Tensor stats = d.tensor(DType::f64, {4}, "stats");
    Tensor probs = d.tensor(DType::f32, {1, 2, 2}, {0.75, 0.25, 1, 0}, "probs");
    Tensor counts = d.tensor(DType::i32, {2}, {2, 0}, "counts"), slots = d.tensor(DType::i32, {2, 1}, {0, -1}, "slots");
    moe_balance(stats, probs, counts, slots, d.ctx);  // 2 * (2/2) * 1.75/2
    EXPECT_EQ(d.read(stats), (Vector{1.75, 0.5, 0, 2}));
    Tensor none = d.tensor(DType::f32, {0, 3, 2}, "none");
    d.write(counts, {0, 0});
    d.write(slots, {-1, -1});
    moe_balance(stats, none, counts, slots, d.ctx);
    EXPECT_EQ(d.read(stats), Vector(4, 0.0));
    moe_balance_backward(none, counts, 1.0, d.ctx);
    d.write(probs, {nan, 0.25, 1, 0});
    moe_balance(stats, probs, counts, slots, d.ctx);
    EXPECT_TRUE(std::isnan(d.read(stats)[0]));
}

TEST(MoeOps, ResultsDoNotDependOnThreads) {
    const Sizes s = small_sizes() ? Sizes{6, 9, 7, 11, 2, 36} : Sizes{12, 70, 33, 40, 2, 130};
    Inputs in(s, DType::f32);
    std::vector<Vector> results[2];
    for (int threads : {1, 3}) {
        ContextOptions options;
        options.threads = threads;
        options.guard = true;  // and nothing is touched outside an op
        Device d(options);
        Vector p = make_probs(Probs::nans, s.N(), s.E, 11);
        for (double& v : p) v = std::isnan(v) ? nan : v + 0.1;
        Tensor probs = d.tensor(DType::f32, {s.B, s.T, s.E}, p, "probs");
        Tensor slots = d.tensor(DType::i32, {s.E, s.S}, "slots"), where = d.tensor(DType::i32, probs.shape, "where"),
               counts = d.tensor(DType::i32, {s.E}, "counts"), stats = d.tensor(DType::f64, {4}, "stats");
        Tensor all = d.tensor(DType::i32, {s.E, s.T * s.k * 2}, "all");
        Tensor weights = d.tensor(DType::f32, probs.shape, in.weights, "weights"),
               dweights = d.tensor(DType::f32, probs.shape, "dweights");
        Tensor x = d.tensor(DType::f32, {s.B, s.T, s.C}, in.x, "x"), out = d.tensor(DType::f32, x.shape, "out");
        Tensor y = d.tensor(DType::f32, {s.E, s.S, s.C}, "y");
        moe_choose_tokens(all, where, probs, s.k, s.B / 2, d.ctx);
        for (const Tensor& t : {all, where}) results[threads > 1].push_back(d.read(t));
        moe_choose_experts(slots, where, counts, probs, s.k, DropOrder::gate, d.ctx);
        moe_gather(y, x, slots, weights, d.ctx);
        moe_scatter(out, y, where, weights, false, d.ctx);
        moe_weights_backward(dweights, x, y, where, false, d.ctx);
        moe_balance(stats, weights, counts, slots, d.ctx);
        moe_balance_backward(dweights, counts, 0.3, d.ctx);
        for (const Tensor& t : {slots, where, counts, y, out, dweights, stats})
            results[threads > 1].push_back(d.read(t));
    }
    EXPECT_EQ(results[0], results[1]);
}

TEST(MoeOps, CountingAddsFlopsAndTouchesNothing) {
    Context ctx(ContextOptions{.counting = true});
    auto tensor = [&](DType dtype, Shape shape, const char* name) {
        return Tensor(device_alloc(shape.numel() * size_of(dtype), ctx), dtype, shape, name);
    };
    Tensor x = tensor(DType::bf16, {2, 8, 16}, "x"), y = tensor(DType::bf16, {4, 5, 16}, "y");
    Tensor probs = tensor(DType::f32, {2, 8, 4}, "probs"), where = tensor(DType::i32, {2, 8, 4}, "where");
    Tensor slots = tensor(DType::i32, {4, 5}, "slots"), counts = tensor(DType::i32, {4}, "counts");
    moe_choose_experts(slots, where, counts, probs, 1, DropOrder::gate, ctx);
    moe_gather(y, x, slots, {}, ctx);
    EXPECT_EQ(ctx.flops, 0);
    moe_gather(y, x, slots, probs, ctx);
    EXPECT_EQ(ctx.flops, 320);
    moe_scatter(x, y, where, {}, false, ctx);
    EXPECT_EQ(ctx.flops, 2 * 320);
    moe_scatter(x, y, where, probs, false, ctx);
    EXPECT_EQ(ctx.flops, 4 * 320);
    moe_weights_backward(probs, x, y, where, true, ctx);
    EXPECT_EQ(ctx.flops, 6 * 320);
}

TEST(MoeOps, WrongTensorsAreNamed) {
    Device d;
    auto i32 = [&](Shape shape, const char* name) { return d.tensor(DType::i32, shape, name); };
    auto f32 = [&](Shape shape, const char* name) { return d.tensor(DType::f32, shape, name); };
    Tensor slots = i32({4, 5}, "slots"), where = i32({6, 3, 4}, "where"), counts = i32({4}, "counts");
    Tensor probs = f32({6, 3, 4}, "probs"), x = f32({6, 3, 8}, "x"), y = f32({4, 5, 8}, "y"),
           flat = f32({18, 4}, "flat");
    Tensor few = i32({3}, "few"), narrow = i32({3, 5}, "narrow"), short_where = i32({6, 2, 4}, "short_where");
    Tensor long_rows = f32({4, 5, 9}, "long_rows"), halves = d.tensor(DType::bf16, {6, 3, 4}, "halves");
    Tensor stats = d.tensor(DType::f64, {4}, "stats");
    const DropOrder order = DropOrder::position;
    EXPECT_TRUE(refuses([&] { moe_choose_experts(slots, where, counts, probs, 5, order, d.ctx); }, "5 of 4 experts"));
    EXPECT_TRUE(refuses([&] { moe_choose_experts(slots, where, counts, probs, 0, order, d.ctx); }, "0 of 4 experts"));
    EXPECT_TRUE(refuses([&] { moe_choose_experts(slots, where, few, probs, 1, order, d.ctx); }, "counts few"));
    EXPECT_TRUE(refuses([&] { moe_choose_experts(narrow, where, counts, probs, 1, order, d.ctx); }, "slots narrow"));
    EXPECT_TRUE(
        refuses([&] { moe_choose_experts(slots, short_where, counts, probs, 1, order, d.ctx); }, "where short_where"));
    EXPECT_TRUE(refuses([&] { moe_choose_experts(slots, where, counts, flat, 1, order, d.ctx); }, "probs flat"));
    EXPECT_TRUE(refuses([&] { moe_choose_experts(slots, where, counts, halves, 1, order, d.ctx); },
                        "probs halves has dtype BF16, expected F32 or F64"));
    EXPECT_TRUE(refuses([&] { moe_choose_tokens(slots, where, probs, 1, 4, d.ctx); }, "groups of 4"));
    EXPECT_TRUE(refuses([&] { moe_choose_tokens(slots, where, probs, 4, 3, d.ctx); }, "4 of 3 tokens"));
    EXPECT_TRUE(refuses([&] { moe_choose_tokens(slots, where, probs, 1, -1, d.ctx); }, "groups of -1"));
    EXPECT_TRUE(refuses([&] { moe_choose_tokens(slots, where, probs, 2, 6, d.ctx); }, "expected [4, 6]"));
    EXPECT_TRUE(refuses([&] { moe_gather(long_rows, x, slots, {}, d.ctx); }, "gathered long_rows"));
    EXPECT_TRUE(refuses([&] { moe_gather(y, flat, slots, {}, d.ctx); }, "x flat"));
    EXPECT_TRUE(refuses([&] { moe_gather(y, x, slots, x, d.ctx); }, "weights x"));
    EXPECT_TRUE(refuses([&] { moe_gather(y, x, counts, {}, d.ctx); }, "slots counts"));
    EXPECT_TRUE(refuses([&] { moe_scatter(x, long_rows, where, {}, false, d.ctx); }, "y long_rows"));
    EXPECT_TRUE(refuses([&] { moe_scatter(x, y, short_where, {}, false, d.ctx); }, "out x"));
    EXPECT_TRUE(refuses([&] { moe_weights_backward(halves, x, y, where, false, d.ctx); }, "dweights halves"));
    EXPECT_TRUE(refuses([&] { moe_weights_backward(probs, {}, y, where, false, d.ctx); }, "dout"));
    EXPECT_TRUE(refuses([&] { moe_balance(probs, probs, counts, slots, d.ctx); }, "stats probs"));
    EXPECT_TRUE(refuses([&] { moe_balance(stats, probs, few, slots, d.ctx); }, "counts few"));
    EXPECT_TRUE(refuses([&] { moe_balance_backward(probs, few, 1.0, d.ctx); }, "counts few"));
    if (!backend_supports(DType::f64)) {
        Tensor doubles = d.tensor(DType::f64, {6, 3, 4}, "doubles");
        EXPECT_TRUE(refuses([&] { moe_choose_experts(slots, where, counts, doubles, 1, order, d.ctx); },
                            "probs doubles has dtype F64, expected F32"));
    }
}

}  // namespace
}  // namespace llmc
