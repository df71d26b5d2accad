// Gates that sum to one, load balancing and z-loss: values and gradients against plain loops and finite differences.
#include "dev/test/moe_oracle.h"

namespace llmc {
namespace {

using namespace test;

// ----------------------------------------------------------------------------------------------- gates that sum to one

// What is chosen and what is dropped, of some routing with many drops.
Vector some_where(const Sizes& s) {
    return choose_experts_oracle(s, make_probs(Probs::ties, s.N(), s.E, 7), {.k = s.k}).where;
}

Vector renormalize_oracle(const Sizes& s, const Vector& probs, const Vector& where) {
    Vector gates(probs.size());
    for (int64_t n = 0; n < s.N(); n++) {
        double sum = 0;
        for (int64_t i = n * s.E; i < (n + 1) * s.E; i++) sum += where[size_t(i)] != -1 ? probs[size_t(i)] : 0;
        for (int64_t i = n * s.E; i < (n + 1) * s.E; i++)
            if (where[size_t(i)] != -1) gates[size_t(i)] = probs[size_t(i)] / sum;
    }
    return gates;
}

// Positive, like what a softmax gives.
Vector positive(int64_t n, uint64_t seed) {
    Vector p = random_vector(n, seed, 0.5);
    for (double& x : p) x += 0.6;
    return p;
}

TEST(MoeGates, RenormalizedMatchPlainLoops) {
    for (const Sizes& s : cases)
        for (DType dtype : arithmetic_types) {
            SCOPED_TRACE(s.text());
            const Vector p = rounded(dtype, positive(s.N() * s.E, 1)), where = some_where(s);
            Device d;
            const Shape shape{s.B, s.T, s.E};
            Tensor probs = d.tensor(dtype, shape, p, "probs"), gates = d.tensor(dtype, shape, "gates");
            moe_renormalize(gates, probs, d.tensor(DType::i32, shape, where, "where"), d.ctx);
            const Vector got = d.read(gates), want = renormalize_oracle(s, p, where);
            EXPECT_TRUE(close_sums(got, {want, magnitudes(want)}, dtype, tolerance(dtype, s.k)));
            for (size_t i = 0; i < got.size(); i++) EXPECT_TRUE(where[i] != -1 || got[i] == 0) << i;
            for (int64_t n = 0; n < s.N(); n++)
                EXPECT_NEAR(dot(Vector(got.begin() + n * s.E, got.begin() + (n + 1) * s.E), Vector(size_t(s.E), 1)), 1,
                            tolerance(dtype, s.k) * double(s.k));
        }
}

TEST(MoeGates, RenormalizedGradientMatchesPlainLoopsAlsoInPlace) {
    for (const Sizes& s : cases)
        for (DType dtype : arithmetic_types)
            for (bool in_place : {false, true}) {
                SCOPED_TRACE(s.text());
                const Vector p = rounded(dtype, positive(s.N() * s.E, 1)), where = some_where(s);
                const Vector gates = rounded(dtype, renormalize_oracle(s, p, where)),
                             dgates = rounded(dtype, random_vector(s.N() * s.E, 2));
                Sums want{Vector(p.size()), Vector(p.size())};
                for (size_t i = 0; i < p.size(); i++) {
                    if (where[i] == -1) continue;
                    double sum = 0, mean = 0, terms = 0;
                    for (size_t j = i - i % size_t(s.E); j < i - i % size_t(s.E) + size_t(s.E); j++)
                        if (where[j] != -1)
                            sum += p[j], mean += gates[j] * dgates[j], terms += std::abs(gates[j] * dgates[j]);
                    want.value[i] = (dgates[i] - mean) / sum;
                    want.terms[i] = (std::abs(dgates[i]) + terms) / sum;
                }
                Device d;
                const Shape shape{s.B, s.T, s.E};
                Tensor given = d.tensor(dtype, shape, dgates, "dgates"), fresh = d.tensor(dtype, shape, "dprobs");
                Tensor dprobs = in_place ? given : fresh;
                moe_renormalize_backward(dprobs, given, d.tensor(dtype, shape, gates, "gates"),
                                         d.tensor(dtype, shape, p, "probs"),
                                         d.tensor(DType::i32, shape, where, "where"), d.ctx);
                EXPECT_TRUE(close_sums(d.read(dprobs), want, dtype, tolerance(dtype, s.k)));
            }
}

TEST(MoeGates, RenormalizedGradientMatchesFiniteDifferences) {
    const DType exact = arithmetic_types.back();
    for (const Sizes& s : {Sizes{2, 3, 5, 2, 3}, Sizes{1, 4, 4, 9, 4}, Sizes{1, 5, 8, 1, 1}}) {
        const Vector p = rounded(exact, positive(s.N() * s.E, 3)), where = some_where(s),
                     dgates = rounded(exact, random_vector(s.N() * s.E, 4));
        Device d;
        const Shape shape{s.B, s.T, s.E};
        Tensor probs = d.tensor(exact, shape, p, "probs"), tensor = d.tensor(exact, shape, dgates, "dgates");
        Tensor gates = d.tensor(exact, shape, "gates"), dprobs = d.tensor(exact, shape, "dprobs");
        Tensor chosen = d.tensor(DType::i32, shape, where, "where");
        moe_renormalize(gates, probs, chosen, d.ctx);
        moe_renormalize_backward(dprobs, tensor, gates, probs, chosen, d.ctx);
        const Vector want =
            numeric_gradient([&](const Vector& x) { return dot(dgates, renormalize_oracle(s, x, where)); }, p);
        EXPECT_TRUE(close(d.read(dprobs), want, 1e-6 + tolerance(exact, s.k))) << s.text();
    }
}

// Dropped pairs count, what was not chosen does not, even if it is NaN; a NaN among the chosen spreads to all of them.
TEST(MoeGates, RenormalizedByHand) {
    Device d;
    const Shape shape{1, 2, 3};
    Tensor probs = d.tensor(DType::f32, shape, {0.25, 0.5, nan, nan, 0.25, 0.25}, "probs");
    Tensor where = d.tensor(DType::i32, shape, {7, -2, -1, -2, 0, -1}, "where");
    Tensor gates = d.tensor(DType::f32, shape, "gates"), dprobs = d.tensor(DType::f32, shape, "dprobs");
    moe_renormalize(gates, probs, where, d.ctx);
    const Vector got = d.read(gates);
    EXPECT_EQ(Vector(got.begin(), got.begin() + 3), (Vector{0.25f / 0.75f, 0.5f / 0.75f, 0}));
    EXPECT_TRUE(std::isnan(got[3]) && std::isnan(got[4]) && got[5] == 0);
    d.write(gates, {0.25, 0.75, nan, nan, nan, 0});
    Tensor dgates = d.tensor(DType::f32, shape, {1, 2, nan, 1, 1, 1}, "dgates");
    moe_renormalize_backward(dprobs, dgates, gates, probs, where, d.ctx);
    const Vector gradient = d.read(dprobs);  // mean 1.75
    EXPECT_EQ(Vector(gradient.begin(), gradient.begin() + 3), (Vector{-1, float(0.25f / 0.75f), 0}));
    EXPECT_TRUE(std::isnan(gradient[3]) && std::isnan(gradient[4]) && gradient[5] == 0);
}

// -------------------------------------------------------------------------------------------------------------- z-loss

Vector lse_oracle(const Sizes& s, const Vector& logits) {
    Vector lse;
    for (int64_t n = 0; n < s.N(); n++) {
        double top = logits[size_t(n * s.E)], sum = 0;
        for (int64_t e = 0; e < s.E; e++) top = std::max(top, logits[size_t(n * s.E + e)]);
        for (int64_t e = 0; e < s.E; e++) sum += std::exp(logits[size_t(n * s.E + e)] - top);
        lse.push_back(top + std::log(sum));
    }
    return lse;
}

double z_loss_oracle(const Sizes& s, const Vector& logits) {
    const Vector lse = lse_oracle(s, logits);
    return dot(lse, lse) / double(s.N());
}

Vector softmax_oracle(const Sizes& s, const Vector& logits) {
    const Vector lse = lse_oracle(s, logits);
    Vector probs = logits;
    for (size_t i = 0; i < probs.size(); i++) probs[i] = std::exp(logits[i] - lse[i / size_t(s.E)]);
    return probs;
}

TEST(MoeGates, ZLossAndItsGradientMatchPlainLoops) {
    for (const Sizes& s : cases)
        for (DType dtype : arithmetic_types)
            for (double scale : {1.0, 100.0}) {  // of the logits
                if (s.N() == 0) continue;
                SCOPED_TRACE(s.text());
                const Vector l = rounded(dtype, random_vector(s.N() * s.E, 1, scale)), lse = lse_oracle(s, l),
                             p = rounded(dtype, softmax_oracle(s, l)), before = random_vector(s.N() * s.E, 2);
                Device d;
                const Shape shape{s.B, s.T, s.E};
                Tensor logits = d.tensor(dtype, shape, l, "logits"), probs = d.tensor(dtype, shape, p, "probs");
                Tensor out = d.tensor(dtype, {s.B, s.T}, "lse"), loss = d.tensor(DType::f64, {1}, "loss");
                // A logit less the largest of its row is as exact as the two, and so is the logarithm of the sum.
                Sums want_lse{lse, Vector(lse.size(), 1.0)};
                for (size_t i = 0; i < l.size(); i++) {
                    double& terms = want_lse.terms[i / size_t(s.E)];
                    terms = std::max(terms, 1 + 2 * std::abs(l[i]));
                }
                moe_z_loss({}, out, logits, d.ctx);
                EXPECT_TRUE(close_sums(d.read(out), want_lse, dtype, tolerance(dtype, s.E)));
                d.write(out, Vector(lse.size(), nan));
                moe_z_loss(loss, out, logits, d.ctx);
                EXPECT_TRUE(close_sums(d.read(out), want_lse, dtype, tolerance(dtype, s.E)));
                EXPECT_TRUE(close(d.read(loss), {z_loss_oracle(s, l)}, 2 * tolerance(dtype, s.E)));

                Sums gradient{rounded(dtype, before), magnitudes(before)};
                for (size_t i = 0; i < p.size(); i++) {
                    const double times = 0.3 * 2 / double(s.N()) * p[i];
                    gradient.value[i] += times * lse[i / size_t(s.E)];
                    gradient.terms[i] += times * want_lse.terms[i / size_t(s.E)];
                }
                Tensor dlogits = d.tensor(dtype, shape, before, "dlogits");
                moe_z_loss_backward(dlogits, out, probs, 0.3, d.ctx);
                EXPECT_TRUE(close_sums(d.read(dlogits), gradient, dtype, tolerance(dtype, s.E)));
            }
}

TEST(MoeGates, ZLossGradientMatchesFiniteDifferences) {
    const DType exact = arithmetic_types.back();
    for (const Sizes& s : {Sizes{2, 3, 5, 0, 1}, Sizes{1, 3, 8, 0, 1}, Sizes{1, 2, 1, 0, 1}}) {
        const Vector l = rounded(exact, random_vector(s.N() * s.E, 3, 2.0));
        Device d;
        const Shape shape{s.B, s.T, s.E};
        Tensor logits = d.tensor(exact, shape, l, "logits"), lse = d.tensor(exact, {s.B, s.T}, "lse");
        Tensor probs = d.tensor(exact, shape, softmax_oracle(s, l), "probs");
        Tensor dlogits = d.tensor(exact, shape, Vector(l.size(), 0.0), "dlogits");
        moe_z_loss({}, lse, logits, d.ctx);
        moe_z_loss_backward(dlogits, lse, probs, 2.5, d.ctx);
        const Vector want = numeric_gradient([&](const Vector& x) { return 2.5 * z_loss_oracle(s, x); }, l);
        EXPECT_TRUE(close(d.read(dlogits), want, 1e-6 + tolerance(exact, s.E))) << s.text();
    }
}

TEST(MoeGates, ZLossOfNothingAndOfNaN) {
    Device d;
    Tensor loss = d.tensor(DType::f64, {1}, "loss");
    Tensor none = d.tensor(DType::f32, {0, 3, 2}, "none"), no_lse = d.tensor(DType::f32, {0, 3}, "no_lse");
    moe_z_loss(loss, no_lse, none, d.ctx);
    EXPECT_EQ(d.read(loss), Vector{0});
    moe_z_loss_backward(none, no_lse, none, 1.0, d.ctx);
    // log(2 exp(1000)), the NaN of one token stays with it, but not out of the loss
    const double inf = std::numeric_limits<double>::infinity();
    Tensor logits = d.tensor(DType::f32, {1, 3, 2}, {1000, 1000, 5, nan, 3, -inf}, "logits");
    Tensor lse = d.tensor(DType::f32, {1, 3}, "lse");
    moe_z_loss(loss, lse, logits, d.ctx);
    const Vector got = d.read(lse);
    EXPECT_EQ(got[0], double(float(1000 + std::log(2.0))));
    EXPECT_TRUE(std::isnan(got[1]));
    EXPECT_EQ(got[2], 3);
    EXPECT_TRUE(std::isnan(d.read(loss)[0]));
}

// ------------------------------------------------------------------------------------------------------ load balancing

double balance_oracle(const Sizes& s, const Vector& probs, const Vector& counts) {
    double loss = 0;
    for (int64_t e = 0; e < s.E; e++) {
        double mean = 0;
        for (int64_t n = 0; n < s.N(); n++) mean += probs[size_t(n * s.E + e)] / double(s.N());
        loss += double(s.E) * counts[size_t(e)] / double(s.N()) * mean;
    }
    return loss;
}

TEST(MoeGates, BalanceAndItsGradientMatchPlainLoops) {
    for (const Sizes& s : cases)
        for (DType dtype : arithmetic_types) {
            if (s.N() == 0) continue;
            SCOPED_TRACE(s.text());
            Vector p = rounded(dtype, make_probs(Probs::smooth, s.N(), s.E, 8)), before = random_vector(s.N() * s.E, 9);
            Routing r = choose_experts_oracle(s, p, {.k = s.k});
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

TEST(MoeGates, BalanceGradientMatchesFiniteDifferences) {
    Sizes s{2, 3, 4, 2, 2};
    Vector p = make_probs(Probs::smooth, s.N(), s.E, 10);
    Routing r = choose_experts_oracle(s, p, {.k = s.k});
    Device d;
    Tensor counts = d.tensor(DType::i32, {s.E}, r.counts, "counts");
    Tensor dprobs = d.tensor(arithmetic_types.back(), {s.B, s.T, s.E}, Vector(p.size(), 0.0), "dprobs");
    moe_balance_backward(dprobs, counts, 3.0, d.ctx);
    Vector want = numeric_gradient([&](const Vector& x) { return 3.0 * balance_oracle(s, x, r.counts); }, p);
    EXPECT_TRUE(close(d.read(dprobs), want, 1e-8 + tolerance(arithmetic_types.back())));
}

TEST(MoeGates, BalanceByHandAndOfNothing) {
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

// --------------------------------------------------------------------------------------------------------- all of them

TEST(MoeGates, ResultsDoNotDependOnThreads) {
    const Sizes s = small_sizes() ? Sizes{6, 9, 7, 11, 2} : Sizes{12, 70, 36, 40, 2};
    const Vector p = positive(s.N() * s.E, 1), where = some_where(s);
    std::vector<Vector> results[2];
    for (int threads : {1, 3}) {
        ContextOptions options;
        options.threads = threads;
        options.guard = true;  // and nothing is touched outside an op
        Device d(options);
        const Shape shape{s.B, s.T, s.E};
        Tensor probs = d.tensor(DType::f32, shape, p, "probs"), chosen = d.tensor(DType::i32, shape, where, "where");
        Tensor gates = d.tensor(DType::f32, shape, "gates"), gradient = d.tensor(DType::f32, shape, "gradient");
        Tensor lse = d.tensor(DType::f32, {s.B, s.T}, "lse"), loss = d.tensor(DType::f64, {1}, "loss");
        moe_renormalize(gates, probs, chosen, d.ctx);
        moe_renormalize_backward(gradient, probs, gates, probs, chosen, d.ctx);
        moe_z_loss(loss, lse, probs, d.ctx);
        moe_z_loss_backward(gradient, lse, probs, 0.1, d.ctx);
        for (const Tensor& t : {gates, lse, loss, gradient}) results[threads > 1].push_back(d.read(t));
    }
    EXPECT_EQ(results[0], results[1]);
}

TEST(MoeGates, CountingAddsFlopsAndTouchesNothing) {
    Context ctx(ContextOptions{.counting = true});
    auto tensor = [&](DType dtype, Shape shape, const char* name) {
        return Tensor(device_alloc(shape.numel() * size_of(dtype), ctx), dtype, shape, name);
    };
    Tensor x = tensor(DType::f32, {2, 8, 4}, "x"), where = tensor(DType::i32, {2, 8, 4}, "where");
    Tensor lse = tensor(DType::f32, {2, 8}, "lse");
    moe_renormalize(x, x, where, ctx);
    EXPECT_EQ(ctx.flops, 2 * 64);
    moe_renormalize_backward(x, x, x, x, where, ctx);
    EXPECT_EQ(ctx.flops, 7 * 64);
    moe_z_loss({}, lse, x, ctx);
    EXPECT_EQ(ctx.flops, 11 * 64);
    moe_z_loss_backward(x, lse, x, 1.0, ctx);
    EXPECT_EQ(ctx.flops, 13 * 64);
}

TEST(MoeGates, WrongTensorsAreNamed) {
    Device d;
    Tensor x = d.tensor(DType::f32, {2, 3, 4}, "x"), where = d.tensor(DType::i32, {2, 3, 4}, "where");
    Tensor narrow = d.tensor(DType::f32, {2, 3, 3}, "narrow"), halves = d.tensor(DType::bf16, {2, 3, 4}, "halves");
    Tensor few = d.tensor(DType::i32, {2, 3, 3}, "few"), flat = d.tensor(DType::f32, {6, 4}, "flat");
    Tensor lse = d.tensor(DType::f32, {2, 3}, "lse"), loss = d.tensor(DType::f64, {1}, "loss");
    EXPECT_TRUE(refuses([&] { moe_renormalize(narrow, x, where, d.ctx); }, "gates narrow"));
    EXPECT_TRUE(refuses([&] { moe_renormalize(x, flat, where, d.ctx); }, "probs flat"));
    EXPECT_TRUE(refuses([&] { moe_renormalize(x, x, few, d.ctx); }, "where few"));
    EXPECT_TRUE(refuses([&] { moe_renormalize(halves, halves, where, d.ctx); }, "probs halves"));
    EXPECT_TRUE(refuses([&] { moe_renormalize_backward(narrow, x, x, x, where, d.ctx); }, "dprobs narrow"));
    EXPECT_TRUE(refuses([&] { moe_renormalize_backward(x, {}, x, x, where, d.ctx); }, "dgates"));
    EXPECT_TRUE(refuses([&] { moe_renormalize_backward(x, x, narrow, x, where, d.ctx); }, "gates narrow"));
    EXPECT_TRUE(refuses([&] { moe_z_loss(lse, lse, x, d.ctx); }, "loss lse"));
    EXPECT_TRUE(refuses([&] { moe_z_loss(loss, x, x, d.ctx); }, "lse x"));
    EXPECT_TRUE(refuses([&] { moe_z_loss(loss, lse, flat, d.ctx); }, "logits flat"));
    EXPECT_TRUE(refuses([&] { moe_z_loss_backward(narrow, lse, x, 1.0, d.ctx); }, "dlogits narrow"));
    EXPECT_TRUE(refuses([&] { moe_z_loss_backward(x, loss, x, 1.0, d.ctx); }, "lse loss"));
    if (!backend_supports(DType::f64)) {
        Tensor doubles = d.tensor(DType::f64, {2, 3, 4}, "doubles");
        EXPECT_TRUE(refuses([&] { moe_renormalize(doubles, doubles, where, d.ctx); }, "probs doubles has dtype F64"));
    }
}

}  // namespace
}  // namespace llmc
