// The Mixture-of-Tokens ops against plain float64 loops over (sequence, position, expert), and their gradients against
// central differences of those loops.
#include "dev/test/reference.h"

namespace llmc {
namespace {

using namespace test;

struct Sizes {
    int64_t B, T, E, C, g;
    bool within;

    Group group() const { return {g, within}; }
    int64_t groups() const { return B * T / g; }
    int64_t weight(int64_t b, int64_t t, int64_t e) const { return (b * T + t) * E + e; }
    int64_t token(int64_t b, int64_t t, int64_t c) const { return (b * T + t) * C + c; }
    int64_t slot(int64_t e, int64_t r, int64_t c) const { return (e * groups() + r) * C + c; }
    // The group that token (b, t) belongs to, as the formulas define it.
    int64_t row(int64_t b, int64_t t) const { return within ? b * (T / g) + t / g : (b / g) * T + t; }
    std::string text() const {
        return str("B", B, " T", T, " E", E, " C", C, " g", g, within ? " within a sequence" : " over the batch");
    }
};

// Groups and experts on both sides of a tile of 32, rows that 128-bit accesses may and may not touch, nothing at all.
const std::vector<Sizes> few_cases = {
    {3, 5, 4, 17, 1, false},   {6, 7, 7, 16, 3, false},  {4, 1, 33, 40, 4, false}, {12, 1, 4, 1, 6, false},
    {6, 2, 1, 17, 6, false},   {2, 6, 7, 40, 3, true},   {1, 6, 33, 16, 6, true},  {2, 3, 7, 1, 1, true},
    {4, 2, 1, 9, 2, true},     {0, 5, 4, 16, 4, false},  {4, 0, 4, 16, 4, false},  {34, 1, 5, 40, 34, false},
    {34, 1, 36, 8, 34, false}, {9, 1, 132, 6, 9, false},
};
const std::vector<Sizes> more_cases = {
    {8, 5, 33, 40, 4, false},   {6, 7, 1, 17, 6, false},      {4, 5, 33, 17, 4, false},   {3, 4, 4, 17, 4, true},
    {1, 12, 33, 16, 6, true},   {18, 2, 9, 70, 9, false},     {2, 1, 1024, 33, 2, false}, {72, 1, 5, 40, 72, false},
    {64, 3, 32, 64, 32, false}, {1024, 1, 3, 5, 1024, false},
};
const std::vector<Sizes> cases = few_or_all(few_cases, more_cases);
const DType widest = arithmetic_types.back();

template <class F>
void for_tokens(const Sizes& s, F&& f) {
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t t = 0; t < s.T; t++) f(b, t);
}

Vector merge_oracle(const Sizes& s, const Vector& weights, const Vector& tokens) {
    Vector slots(size_t(s.E * s.groups() * s.C));
    for_tokens(s, [&](int64_t b, int64_t t) {
        for (int64_t e = 0; e < s.E; e++)
            for (int64_t c = 0; c < s.C; c++)
                slots[size_t(s.slot(e, s.row(b, t), c))] +=
                    weights[size_t(s.weight(b, t, e))] * tokens[size_t(s.token(b, t, c))];
    });
    return slots;
}

Vector emit_oracle(const Sizes& s, const Vector& weights, const Vector& slots) {
    Vector tokens(size_t(s.B * s.T * s.C));
    for_tokens(s, [&](int64_t b, int64_t t) {
        for (int64_t e = 0; e < s.E; e++)
            for (int64_t c = 0; c < s.C; c++)
                tokens[size_t(s.token(b, t, c))] +=
                    weights[size_t(s.weight(b, t, e))] * slots[size_t(s.slot(e, s.row(b, t), c))];
    });
    return tokens;
}

// Calls f(weights of one softmax) on copies of the values that share a softmax, and writes them back.
template <class F>
void for_softmaxes(const Sizes& s, Vector& values, SoftmaxOver over, F&& f) {
    auto apply = [&](const std::vector<int64_t>& where) {
        Vector v;
        for (int64_t i : where) v.push_back(values[size_t(i)]);
        f(v);
        for (size_t k = 0; k < where.size(); k++) values[size_t(where[k])] = v[k];
    };
    if (over == SoftmaxOver::experts) {
        for_tokens(s, [&](int64_t b, int64_t t) {
            std::vector<int64_t> where;
            for (int64_t e = 0; e < s.E; e++) where.push_back(s.weight(b, t, e));
            apply(where);
        });
        return;
    }
    for (int64_t r = 0; r < s.groups(); r++)
        for (int64_t e = 0; e < s.E; e++) {
            std::vector<int64_t> where;
            for_tokens(s, [&](int64_t b, int64_t t) {
                if (s.row(b, t) == r) where.push_back(s.weight(b, t, e));
            });
            apply(where);
        }
}

Vector softmax_oracle(const Sizes& s, Vector logits, SoftmaxOver over, double temperature) {
    for_softmaxes(s, logits, over, [&](Vector& v) {
        double top = *std::max_element(v.begin(), v.end()), sum = 0;
        for (double& x : v) sum += x = std::exp((x - top) / temperature);
        for (double& x : v) x /= sum;
    });
    return logits;
}

Vector sum_of(const Vector& a, const Vector& b) {
    Vector c = a;
    for (size_t i = 0; i < c.size(); i++) c[i] += b[i];
    return c;
}

// What one case needs, rounded to the types the ops store.
struct Inputs {
    Vector weights, tokens, slots;
    Inputs(const Sizes& s, DType act)
        : weights(rounded(statistics_dtype(act), random_vector(s.B * s.T * s.E, 1))),
          tokens(rounded(act, random_vector(s.B * s.T * s.C, 2))),
          slots(rounded(act, random_vector(s.E * s.groups() * s.C, 3))) {}
    Inputs magnitudes() const {
        Inputs sizes = *this;
        for (Vector* v : {&sizes.weights, &sizes.tokens, &sizes.slots}) *v = test::magnitudes(*v);
        return sizes;
    }
};

void expect_mixes_match_plain_loops(const Sizes& s, DType act) {
    SCOPED_TRACE(s.text() + " " + name_of(act));
    Inputs in(s, act);
    Device d;
    DType f = statistics_dtype(act);
    Tensor weights = d.tensor(f, {s.B, s.T, s.E}, in.weights, "weights");
    Tensor tokens = d.tensor(act, {s.B, s.T, s.C}, in.tokens, "tokens");
    Tensor slots = d.tensor(act, {s.E, s.groups(), s.C}, in.slots, "slots");

    Tensor merged = d.tensor(act, slots.shape, "merged");
    mot_merge(merged, weights, tokens, s.group(), d.ctx);
    const Inputs sizes = in.magnitudes();
    // CUDA multiplies bf16 by a weight as the sum of two bf16: llmc/ops/cuda/mot_tile.cuh.
    const double of_weights = act == DType::bf16 ? 0x1p-18 : 0;
    const Sums want = with_errors_of_factors(
        {merge_oracle(s, in.weights, in.tokens), merge_oracle(s, sizes.weights, sizes.tokens)}, act, of_weights);
    EXPECT_TRUE(close_sums(d.read(merged), want, act, tolerance(act, s.g)));

    Sums emitted = with_errors_of_factors(
        {emit_oracle(s, in.weights, in.slots), emit_oracle(s, sizes.weights, sizes.slots)}, act, of_weights);
    Tensor out = d.tensor(act, tokens.shape, "out");
    mot_emit(out, weights, slots, s.group(), false, d.ctx);
    EXPECT_TRUE(close_sums(d.read(out), emitted, act, tolerance(act, s.E)));
    d.write(out, in.tokens);
    mot_emit(out, weights, slots, s.group(), true, d.ctx);
    emitted += in.tokens;
    EXPECT_TRUE(close_sums(d.read(out), emitted, act, tolerance(act, s.E)));

    Sums products{Vector(in.weights.size()), Vector(in.weights.size())};
    for_tokens(s, [&](int64_t b, int64_t t) {
        for (int64_t e = 0; e < s.E; e++)
            for (int64_t c = 0; c < s.C; c++) {
                const double product =
                    in.tokens[size_t(s.token(b, t, c))] * in.slots[size_t(s.slot(e, s.row(b, t), c))];
                products.value[size_t(s.weight(b, t, e))] += product;
                products.terms[size_t(s.weight(b, t, e))] += std::abs(product);
            }
    });
    Tensor dweights = d.tensor(f, weights.shape, "dweights");
    mot_weights_backward(dweights, tokens, slots, s.group(), false, d.ctx);
    EXPECT_TRUE(close_sums(d.read(dweights), products, f, tolerance(f, s.C)));
    d.write(dweights, in.weights);
    mot_weights_backward(dweights, tokens, slots, s.group(), true, d.ctx);
    products += in.weights;
    EXPECT_TRUE(close_sums(d.read(dweights), products, f, tolerance(f, s.C)));
}

TEST(MotOps, MergeEmitAndWeightsBackwardMatchPlainLoops) {
    for (DType act : all_act)
        for (const Sizes& s : cases) expect_mixes_match_plain_loops(s, act);
}

// C so wide that it is worked off in several panels or slices, the last of them not full.
TEST(MotOps, WideRowsWorkInPanels) {
    std::vector<Sizes> wide = {{34, 1, 3, 264, 34, false}, {2, 1, 3, 271, 2, false}};
    if (!small_sizes()) wide.insert(wide.end(), {{72, 1, 6, 2085, 72, false}, {32, 2, 33, 640, 32, false}});
    for (DType act : all_act)
        for (const Sizes& s : wide) expect_mixes_match_plain_loops(s, act);
}

// Weights count in f32 beside bf16 tokens: what is left of two tokens that nearly cancel is exact.
TEST(MotOps, WeightsAreNotRoundedToBf16) {
    constexpr int64_t C = 16;
    Vector values(2 * C, 1.0), want(C, 0x1p-12);
    std::fill(values.begin() + C, values.end(), -1.0);
    Device d;
    Tensor pair = d.tensor(DType::bf16, {2, 1, C}, values, "pair"), one = d.tensor(DType::bf16, {1, 1, C}, "one");
    Tensor column = d.tensor(DType::f32, {2, 1, 1}, {1 + 0x1p-12, 1}, "column");
    mot_merge(one, column, pair, {2, false}, d.ctx);
    EXPECT_EQ(d.read(one), want);
    mot_emit(one, column.view({1, 1, 2}), pair, {1, false}, false, d.ctx);
    EXPECT_EQ(d.read(one), want);
}

TEST(MotOps, NansReachTheirGroupAndNoOther) {
    const Sizes s{6, 2, 5, 9, 3, false};
    const double nan = std::numeric_limits<double>::quiet_NaN();
    auto nans = [](const Vector& v) {
        return std::count_if(v.begin(), v.end(), [](double x) { return std::isnan(x); });
    };
    for (DType act : all_act) {
        SCOPED_TRACE(name_of(act));
        Inputs in(s, act);
        in.tokens[size_t(s.token(4, 1, 7))] = nan;
        Device d;
        DType f = statistics_dtype(act);
        Tensor weights = d.tensor(f, {s.B, s.T, s.E}, in.weights, "weights"),
               dweights = d.tensor(f, weights.shape, "dw");
        Tensor tokens = d.tensor(act, {s.B, s.T, s.C}, in.tokens, "tokens"), out = d.tensor(act, tokens.shape, "out");
        Tensor slots = d.tensor(act, {s.E, s.groups(), s.C}, in.slots, "slots");
        mot_weights_backward(dweights, tokens, slots, s.group(), false, d.ctx);
        EXPECT_EQ(nans(d.read(dweights)), s.E);
        mot_merge(slots, weights, tokens, s.group(), d.ctx);
        EXPECT_EQ(nans(d.read(slots)), s.E);
        mot_emit(out, weights, slots, s.group(), false, d.ctx);
        EXPECT_EQ(nans(d.read(out)), s.g);
    }
    Vector l = random_vector(s.B * s.T * s.E, 5);
    l[size_t(s.weight(4, 1, 2))] = nan;
    Device d;
    Tensor logits = d.tensor(DType::f32, {s.B, s.T, s.E}, l, "logits"),
           weights = d.tensor(DType::f32, logits.shape, "w");
    Tensor stats = d.tensor(DType::f64, {4}, "stats");
    for (SoftmaxOver over : {SoftmaxOver::group, SoftmaxOver::experts}) {
        mot_softmax_forward(weights, logits, over, s.group(), 1.0, d.ctx);
        const int64_t length = over == SoftmaxOver::group ? s.g : s.E;
        EXPECT_EQ(nans(d.read(weights)), length);
        mot_statistics(stats, weights, logits, over, s.group(), d.ctx);
        EXPECT_EQ(nans(d.read(stats)), 4);  // deviations too
        mot_softmax_backward(logits, weights, weights, over, s.group(), 1.0, false, d.ctx);
        EXPECT_EQ(nans(d.read(logits)), length);
        d.write(logits, l);
    }
}

// Finite differences are good to 1e-8; the rest is the op's own error.
double gradient_tolerance(const Sizes& s) { return 1e-8 + tolerance(widest, s.C + s.E + s.g); }

// <merge(weights, tokens), dslots> differentiated: by tokens it is mot_emit, by weights mot_weights_backward.
TEST(MotOps, GradientsOfMergeMatchFiniteDifferences) {
    for (const Sizes& s : {Sizes{6, 2, 5, 3, 3, false}, Sizes{2, 4, 3, 5, 2, true}}) {
        SCOPED_TRACE(s.text());
        Inputs in(s, widest);
        Device d;
        Tensor weights = d.tensor(widest, {s.B, s.T, s.E}, in.weights, "weights");
        Tensor tokens = d.tensor(widest, {s.B, s.T, s.C}, in.tokens, "tokens");
        Tensor dslots = d.tensor(widest, {s.E, s.groups(), s.C}, in.slots, "dslots");
        Tensor dtokens = d.tensor(widest, tokens.shape, "dtokens"),
               dweights = d.tensor(widest, weights.shape, "dweights");
        mot_emit(dtokens, weights, dslots, s.group(), false, d.ctx);
        mot_weights_backward(dweights, tokens, dslots, s.group(), false, d.ctx);
        auto by_tokens = [&](const Vector& x) { return dot(merge_oracle(s, in.weights, x), in.slots); };
        auto by_weights = [&](const Vector& w) { return dot(merge_oracle(s, w, in.tokens), in.slots); };
        EXPECT_TRUE(close(d.read(dtokens), numeric_gradient(by_tokens, in.tokens), gradient_tolerance(s)));
        EXPECT_TRUE(close(d.read(dweights), numeric_gradient(by_weights, in.weights), gradient_tolerance(s)));
    }
}

// <emit(weights, slots), dtokens> differentiated: by slots it is mot_merge, by weights mot_weights_backward.
TEST(MotOps, GradientsOfEmitMatchFiniteDifferences) {
    for (const Sizes& s : {Sizes{6, 2, 5, 3, 3, false}, Sizes{2, 4, 3, 5, 2, true}}) {
        SCOPED_TRACE(s.text());
        Inputs in(s, widest);
        Device d;
        Tensor weights = d.tensor(widest, {s.B, s.T, s.E}, in.weights, "weights");
        Tensor dtokens = d.tensor(widest, {s.B, s.T, s.C}, in.tokens, "dtokens");
        Tensor slots = d.tensor(widest, {s.E, s.groups(), s.C}, in.slots, "slots");
        Tensor dslots = d.tensor(widest, slots.shape, "dslots"), dweights = d.tensor(widest, weights.shape, "dweights");
        mot_merge(dslots, weights, dtokens, s.group(), d.ctx);
        mot_weights_backward(dweights, dtokens, slots, s.group(), false, d.ctx);
        auto by_slots = [&](const Vector& x) { return dot(emit_oracle(s, in.weights, x), in.tokens); };
        auto by_weights = [&](const Vector& w) { return dot(emit_oracle(s, w, in.slots), in.tokens); };
        EXPECT_TRUE(close(d.read(dslots), numeric_gradient(by_slots, in.slots), gradient_tolerance(s)));
        EXPECT_TRUE(close(d.read(dweights), numeric_gradient(by_weights, in.weights), gradient_tolerance(s)));
    }
}

TEST(MotOps, SoftmaxMatchesPlainLoops) {
    for (DType f : arithmetic_types)
        for (const Sizes& s : cases)
            for (SoftmaxOver over : {SoftmaxOver::group, SoftmaxOver::experts})
                for (double temperature : {0.7, 1.25}) {
                    SCOPED_TRACE(s.text() + (over == SoftmaxOver::group ? " over group" : " over experts"));
                    Vector l = rounded(f, random_vector(s.B * s.T * s.E, 4, 8.0));
                    Device d;
                    Tensor logits = d.tensor(f, {s.B, s.T, s.E}, l, "logits"),
                           weights = d.tensor(f, logits.shape, "weights");
                    mot_softmax_forward(weights, logits, over, s.group(), temperature, d.ctx);
                    // The error of an exponential is that of its argument, up to 16 / 0.7.
                    double tol = 23 * 4 * roundoff(f) + tolerance(f, s.g + s.E);
                    const Vector want = softmax_oracle(s, l, over, temperature);
                    EXPECT_TRUE(close(d.read(weights), want, tol));
                    Vector bounds = want;  // and each weight, however small, relative to itself
                    for (double& bound : bounds) bound *= tol;
                    EXPECT_TRUE(within(d.read(weights), want, bounds));
                }
}

TEST(MotOps, SoftmaxBackwardMatchesFiniteDifferences) {
    for (const Sizes& s : {Sizes{6, 2, 5, 1, 3, false}, Sizes{2, 4, 3, 1, 2, true}, Sizes{4, 1, 33, 1, 4, false}})
        for (SoftmaxOver over : {SoftmaxOver::group, SoftmaxOver::experts})
            for (double temperature : {0.7, 1.25}) {
                SCOPED_TRACE(s.text());
                int64_t n = s.B * s.T * s.E;
                Vector l = random_vector(n, 5, 2.0), dw = random_vector(n, 6), before = random_vector(n, 7);
                Vector want = numeric_gradient(
                    [&](const Vector& x) { return dot(softmax_oracle(s, x, over, temperature), dw); }, l);
                for (DType f : arithmetic_types) {
                    Device d;
                    Tensor logits = d.tensor(f, {s.B, s.T, s.E}, l, "logits"),
                           weights = d.tensor(f, logits.shape, "weights");
                    Tensor dweights = d.tensor(f, logits.shape, dw, "dweights"),
                           dlogits = d.tensor(f, logits.shape, "dlogits");
                    mot_softmax_forward(weights, logits, over, s.group(), temperature, d.ctx);
                    mot_softmax_backward(dlogits, dweights, weights, over, s.group(), temperature, false, d.ctx);
                    double tol = f == DType::f64 ? 1e-7 : 16 * tolerance(f, s.g + s.E);
                    EXPECT_TRUE(close(d.read(dlogits), want, tol));
                    d.write(dlogits, before);
                    mot_softmax_backward(dlogits, dweights, weights, over, s.group(), temperature, true, d.ctx);
                    EXPECT_TRUE(close(d.read(dlogits), sum_of(want, before), tol));
                }
            }
}

TEST(MotOps, SoftmaxOverGroupsOfOneIsOne) {
    Device d;
    Tensor logits = d.tensor(DType::f32, {2, 3, 5}, random_vector(30, 8, 50.0), "logits");
    Tensor weights = d.tensor(DType::f32, logits.shape, "weights"),
           dlogits = d.tensor(DType::f32, logits.shape, "dlogits");
    mot_softmax_forward(weights, logits, SoftmaxOver::group, {1, false}, 1.0, d.ctx);
    EXPECT_EQ(d.read(weights), Vector(30, 1.0));
    mot_softmax_backward(dlogits, logits, weights, SoftmaxOver::group, {1, false}, 1.0, false, d.ctx);
    EXPECT_EQ(d.read(dlogits), Vector(30, 0.0));
}

TEST(MotOps, LargeLogitsStayFinite) {
    Device d;
    Tensor logits = d.tensor(DType::f32, {2, 1, 2}, {3e38, -3e38, 1e30, -3e38}, "logits");
    Tensor weights = d.tensor(DType::f32, logits.shape, "weights");
    mot_softmax_forward(weights, logits, SoftmaxOver::group, {2, false}, 1.0, d.ctx);
    EXPECT_EQ(d.read(weights), (Vector{1, 0.5, 0, 0.5}));
}

TEST(MotOps, DiscretizeKeepsTheFirstMaximum) {
    for (const Sizes& s : cases)
        for (SoftmaxOver over : {SoftmaxOver::group, SoftmaxOver::experts}) {
            SCOPED_TRACE(s.text());
            Vector v = random_integers(s.B * s.T * s.E, 0, 3, 9);  // few values: many ties
            for (size_t i = 0; i < v.size(); i += 5) v[i] = std::numeric_limits<double>::quiet_NaN();
            Vector want = v;
            for_softmaxes(s, want, over, [](Vector& x) {
                size_t best = 0;
                for (size_t i = 0; i < x.size(); i++)
                    if (x[i] > x[best]) best = i;
                for (size_t i = 0; i < x.size(); i++) x[i] = i == best ? 1 : 0;
            });
            Device d;
            Tensor weights = d.tensor(DType::f32, {s.B, s.T, s.E}, v, "weights");
            mot_discretize(weights, over, s.group(), d.ctx);
            EXPECT_EQ(d.read(weights), want);
        }
}

TEST(MotOps, StatisticsMatchPlainLoops) {
    auto mean_and_deviation = [](const Vector& x) {
        double mean = 0, square = 0;
        for (double v : x) mean += v / double(x.size());
        for (double v : x) square += (v - mean) * (v - mean);
        return std::pair(mean, x.size() > 1 ? std::sqrt(square / double(x.size() - 1)) : 0.0);
    };
    // f32 weights have an f32 logarithm on the GPU: a few roundoffs of entropies up to 1.
    const double entropy_tolerance = widest == DType::f64 ? 1e-7 : 8 * roundoff(DType::f32);
    std::vector<Sizes> all = cases;
    all.push_back({2, 911, 9, 1, 2, false});  // more softmaxes than the GPU works on at a time
    for (const Sizes& s : all)
        for (SoftmaxOver over : {SoftmaxOver::group, SoftmaxOver::experts}) {
            if (s.B * s.T == 0) continue;
            SCOPED_TRACE(s.text() + (over == SoftmaxOver::group ? " over group" : " over experts"));
            Vector l = rounded(widest, random_vector(s.B * s.T * s.E, 10, 3.0)),
                   w = rounded(widest, softmax_oracle(s, l, over, 1.0)), entropies;
            Vector values = w;
            for_softmaxes(s, values, over, [&](Vector& x) {
                double h = 0;
                for (double p : x) h -= p * std::log(p + 1e-8);
                entropies.push_back(x.size() == 1 ? 1.0 : h / std::log(double(x.size())));
            });
            auto [entropy_mean, entropy_deviation] = mean_and_deviation(entropies);
            auto [logit_mean, logit_deviation] = mean_and_deviation(l);
            Device d;
            Tensor weights = d.tensor(widest, {s.B, s.T, s.E}, w, "weights");
            Tensor logits = d.tensor(widest, weights.shape, l, "logits"), stats = d.tensor(DType::f64, {4}, "stats");
            mot_statistics(stats, weights, logits, over, s.group(), d.ctx);
            Vector want = {entropy_mean, entropy_deviation, logit_mean, logit_deviation}, got = d.read(stats);
            for (size_t i = 0; i < 4; i++)
                EXPECT_NEAR(got[i], want[i], i < 2 ? entropy_tolerance : 1e-7) << "statistic " << i;
        }
}

TEST(MotOps, StatisticsOfNothingAreZero) {
    Device d;
    Tensor none = d.tensor(DType::f32, {0, 3, 5}, "none"), stats = d.tensor(DType::f64, {4}, "stats");
    mot_statistics(stats, none, none, SoftmaxOver::group, {2, false}, d.ctx);
    EXPECT_EQ(d.read(stats), Vector(4, 0.0));
}

TEST(MotOps, ResultsDoNotDependOnThreads) {
    Sizes s{12, 9, 33, 130, 4, false};
    Inputs in(s, DType::f32);
    std::vector<Vector> results[2];
    for (int threads : {1, 2}) {
        ContextOptions options;
        options.threads = threads;
        options.guard = true;  // and nothing is touched outside an op
        Device d(options);
        Tensor logits = d.tensor(DType::f32, {s.B, s.T, s.E}, in.weights, "logits");
        Tensor tokens = d.tensor(DType::f32, {s.B, s.T, s.C}, in.tokens, "tokens");
        Tensor slots = d.tensor(DType::f32, {s.E, s.groups(), s.C}, "slots"),
               stats = d.tensor(DType::f64, {4}, "stats");
        Tensor weights = d.tensor(DType::f32, logits.shape, "weights"),
               dweights = d.tensor(DType::f32, logits.shape, "dweights");
        mot_softmax_forward(weights, logits, SoftmaxOver::group, s.group(), 0.7, d.ctx);
        mot_merge(slots, weights, tokens, s.group(), d.ctx);
        mot_weights_backward(dweights, tokens, slots, s.group(), false, d.ctx);
        mot_statistics(stats, weights, logits, SoftmaxOver::group, s.group(), d.ctx);
        mot_emit(tokens, weights, slots, s.group(), true, d.ctx);
        for (const Tensor& t : {weights, slots, dweights, stats, tokens}) results[threads - 1].push_back(d.read(t));
    }
    EXPECT_EQ(results[0], results[1]);
}

TEST(MotOps, CountingAddsFlopsAndTouchesNothing) {
    Context ctx(ContextOptions{.counting = true});
    Tensor tokens(device_alloc(4 << 10, ctx), DType::f32, {8, 5, 16}, "tokens");
    Tensor weights(device_alloc(4 << 10, ctx), DType::f32, {8, 5, 6}, "weights");
    Tensor slots(device_alloc(4 << 10, ctx), DType::f32, {6, 10, 16}, "slots");
    mot_merge(slots, weights, tokens, {4, false}, ctx);
    EXPECT_EQ(ctx.flops, 2 * 8 * 5 * 6 * 16);
    const bool panels = backend_supports(DType::f64);  // the CPU needs scratch, a GPU has shared memory
    EXPECT_EQ(ctx.workspace_needed > 0, panels);
}

TEST(MotOps, WrongTensorsAreNamed) {
    Device d;
    Tensor tokens = d.tensor(DType::f32, {8, 5, 16}, "tokens"), slots = d.tensor(DType::f32, {6, 10, 16}, "slots");
    Tensor weights = d.tensor(DType::f32, {8, 5, 6}, "weights"),
           short_slots = d.tensor(DType::f32, {6, 9, 16}, "short_slots");
    Tensor narrow = d.tensor(DType::f32, {8, 5, 7}, "narrow"), doubles = d.tensor(DType::f64, {8, 5, 6}, "doubles");
    Tensor flat = d.tensor(DType::f32, {40, 6}, "flat"), stats = d.tensor(DType::f32, {4}, "stats");
    Group four{4, false};
    EXPECT_TRUE(refuses([&] { mot_merge(short_slots, weights, tokens, four, d.ctx); }, "short_slots"));
    EXPECT_TRUE(refuses([&] { mot_emit(tokens, narrow, slots, four, false, d.ctx); }, "slots"));
    EXPECT_TRUE(refuses([&] { mot_merge(slots, doubles, tokens, four, d.ctx); }, "doubles"));
    EXPECT_TRUE(refuses([&] { mot_merge(slots, flat, tokens, four, d.ctx); }, "flat"));
    EXPECT_TRUE(refuses([&] { mot_merge(slots, weights, {}, four, d.ctx); }, "tokens"));
    EXPECT_TRUE(refuses([&] { mot_merge(slots, weights, tokens, {3, false}, d.ctx); }, "8 sequences"));
    EXPECT_TRUE(refuses([&] { mot_merge(slots, weights, tokens, {2, true}, d.ctx); }, "5 positions"));
    EXPECT_TRUE(refuses([&] { mot_merge(slots, weights, tokens, {0, true}, d.ctx); }, "groups of 0"));
    EXPECT_TRUE(refuses([&] { mot_weights_backward(narrow, tokens, slots, four, false, d.ctx); }, "slots"));
    EXPECT_TRUE(refuses([&] { mot_softmax_forward(narrow, weights, SoftmaxOver::group, four, 1.0, d.ctx); }, "narrow"));
    EXPECT_TRUE(
        refuses([&] { mot_softmax_forward(weights, weights, SoftmaxOver::group, four, 0.0, d.ctx); }, "temperature"));
    EXPECT_TRUE(
        refuses([&] { mot_softmax_backward(weights, narrow, weights, SoftmaxOver::experts, four, 1.0, false, d.ctx); },
                "narrow"));
    Tensor halves = d.tensor(DType::bf16, {8, 5, 6}, "halves");
    EXPECT_TRUE(refuses([&] { mot_softmax_forward(halves, halves, SoftmaxOver::group, four, 1.0, d.ctx); },
                        "logits halves has dtype BF16, expected F32 or F64"));
    if (!backend_supports(DType::f64)) {
        EXPECT_TRUE(refuses([&] { mot_discretize(doubles, SoftmaxOver::group, four, d.ctx); },
                            "weights doubles has dtype F64, expected F32"));
    }
    EXPECT_TRUE(refuses([&] { mot_statistics(stats, weights, weights, SoftmaxOver::group, four, d.ctx); }, "stats"));
}

}  // namespace
}  // namespace llmc
