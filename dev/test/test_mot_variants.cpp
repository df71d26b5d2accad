// The ops of MoT's design variants against plain float64 loops, their gradients against central differences of those
// loops, random orders against what they promise.
#include <array>
#include <map>
#include <tuple>

#include "dev/test/reference.h"
#include "llmc/base/rng.h"

namespace llmc {
namespace {

using namespace test;

// ------------------------------------------------------------------------------------------------------- temperatures
struct Logits {
    int64_t B, T, E;
    bool per_expert, exponential;

    int64_t values() const { return B * T * E; }
    int64_t temperatures() const { return per_expert ? E : 1; }
    Shape shape() const { return {B, T, E}; }
    std::string text() const {
        return str("B", B, " T", T, " E", E, per_expert ? " per expert" : "", exponential ? " exponential" : "");
    }
};

std::vector<Logits> temperature_cases() {
    std::vector<Logits> all;
    for (auto [B, T, E] : few_or_all<std::array<int64_t, 3>>(
             {{2, 3, 4}, {3, 5, 7}, {1, 1, 1}, {0, 3, 5}, {9, 4, 33}, {2, 2, 300}, {1, 70, 8}},
             {{16, 40, 32}, {2, 1, 1030}, {33, 65, 6}}))
        for (bool per_expert : {false, true})
            for (bool exponential : {false, true}) all.push_back({B, T, E, per_expert, exponential});
    return all;
}

double tau_of(double p, bool exponential) { return exponential ? std::exp(p - 1) : p; }

Vector scaled_oracle(const Logits& s, Vector logits, const Vector& p) {
    for (size_t i = 0; i < logits.size(); i++)
        logits[i] /= tau_of(p[s.per_expert ? i % size_t(s.E) : 0], s.exponential);
    return logits;
}

// Near 1, as they are when learned; away from it for every second expert.
Vector some_temperatures(const Logits& s, DType act) {
    Vector p = random_vector(s.temperatures(), 5, 0.5);
    for (double& x : p) x += 1;
    return rounded(act, p);
}

void expect_temperatures(const Logits& s, DType act) {
    SCOPED_TRACE(str(s.text(), " ", name_of(act)));
    const DType stat = statistics_dtype(act);
    const Vector logits = rounded(stat, random_vector(s.values(), 1, 3)), p = some_temperatures(s, act);
    const Vector dscaled = rounded(stat, random_vector(s.values(), 2));
    const Vector before = rounded(stat, random_vector(s.temperatures(), 3));
    Device d;
    Tensor x = d.tensor(stat, s.shape(), logits, "logits"), tau = d.tensor(act, {s.temperatures()}, p, "p");
    Tensor scaled = d.tensor(stat, s.shape(), "scaled");
    temperature_forward(scaled, x, tau, s.exponential, d.ctx);
    const Vector want = scaled_oracle(s, logits, p);
    EXPECT_TRUE(close_sums(d.read(scaled), {want, magnitudes(want)}, stat, tolerance(stat)));

    // the oracle's own gradients, by differences of <dscaled, logits / tau>
    const Vector dp = numeric_gradient([&](const Vector& v) { return dot(dscaled, scaled_oracle(s, logits, v)); }, p);
    Vector dlogits(logits.size());
    for (size_t i = 0; i < dlogits.size(); i++)
        dlogits[i] = dscaled[i] / tau_of(p[s.per_expert ? i % size_t(s.E) : 0], s.exponential);
    for (bool accumulate : {false, true}) {
        Tensor dy = d.tensor(stat, s.shape(), dscaled, "dscaled"), out = d.tensor(stat, s.shape(), "dlogits");
        Tensor gradient = d.tensor(stat, {s.temperatures()}, "dp");
        if (accumulate) d.write(gradient, before);
        Vector want_dp = dp;
        for (size_t i = 0; accumulate && i < dp.size(); i++) want_dp[i] += before[i];
        temperature_backward(out, gradient, dy, scaled, tau, s.exponential, accumulate, d.ctx);
        EXPECT_TRUE(close_sums(d.read(out), {dlogits, magnitudes(dlogits)}, stat, tolerance(stat)));
        const double cancelled = 1e-8;  // what the differences are worth
        EXPECT_TRUE(close(d.read(gradient), want_dp, cancelled + tolerance(stat, s.values() + 1)));
        temperature_backward(dy, gradient, dy, scaled, tau, s.exponential, false, d.ctx);  // in place
        EXPECT_EQ(d.read(dy), d.read(out));
    }
    Tensor mean = d.tensor(DType::f64, {1}, "mean");
    temperature_mean(mean, tau, s.exponential, d.ctx);
    double sum = 0;
    for (double v : p) sum += tau_of(v, s.exponential);
    EXPECT_TRUE(close(d.read(mean), {sum / double(p.size())}, tolerance(stat)));
    temperature_forward(x, x, tau, s.exponential, d.ctx);
    EXPECT_EQ(d.read(x), d.read(scaled));
}

TEST(Temperature, MatchesPlainLoopsAndDifferences) {
    for (const Logits& s : temperature_cases())
        for (DType act : all_act) expect_temperatures(s, act);
}

TEST(Temperature, OneChangesNothing) {
    for (bool exponential : {false, true}) {
        const Logits s{3, 2, 5, true, exponential};
        Device d;
        const Vector logits = rounded(DType::f32, random_vector(s.values(), 1, 9));
        Tensor x = d.tensor(DType::f32, s.shape(), logits, "logits"), scaled = d.tensor(DType::f32, s.shape(), "y");
        temperature_forward(scaled, x, d.tensor(DType::f32, {5}, Vector(5, 1.0), "p"), exponential, d.ctx);
        EXPECT_EQ(d.read(scaled), logits);
    }
}

TEST(Temperature, NanIsPassedOnToItsExpertOnly) {
    Device d;
    const double nan = std::numeric_limits<double>::quiet_NaN();
    Tensor x = d.tensor(DType::f32, {2, 1, 3}, {1, nan, 3, 4, 5, 6}, "logits");
    Tensor p = d.tensor(DType::f32, {3}, {1, 2, nan}, "p"), scaled = d.tensor(DType::f32, x.shape, "scaled");
    temperature_forward(scaled, x, p, false, d.ctx);
    const Vector y = d.read(scaled);
    EXPECT_EQ(y[0], 1);
    EXPECT_TRUE(std::isnan(y[1]) && std::isnan(y[2]) && std::isnan(y[5]));
    EXPECT_EQ(y[4], 2.5);
    Tensor dp = d.tensor(DType::f32, {3}, "dp"), dx = d.tensor(DType::f32, x.shape, "dlogits");
    temperature_backward(dx, dp, d.tensor(DType::f32, x.shape, Vector(6, 1.0), "dscaled"), scaled, p, false, false,
                         d.ctx);
    const Vector g = d.read(dp);
    EXPECT_EQ(g[0], -5);
    EXPECT_TRUE(std::isnan(g[1]) && std::isnan(g[2]));
}

// ------------------------------------------------------------------------------------------------------ interpolation
const std::vector<int64_t> lengths = few_or_all<int64_t>({1, 7, 24, 0, 2049}, {5000, 4096 * 3 + 5, 1 << 20});

Vector interpolated(const Vector& a, const Vector& b, double w) {
    Vector out = a;
    for (size_t i = 0; i < a.size(); i++) out[i] = w * a[i] + (1 - w) * b[i];
    return out;
}
Sums interpolated_sums(const Vector& a, const Vector& b, double w) {
    return {interpolated(a, b, w), interpolated(magnitudes(a), magnitudes(b), w)};
}

void expect_interpolation(int64_t n, DType act, InterpolateAccumulate accumulate) {
    SCOPED_TRACE(str(n, " ", name_of(act), accumulate.a, accumulate.b, accumulate.w));
    const DType stat = statistics_dtype(act);
    const double w = 0.375;  // exact in every type
    const Vector a = rounded(act, random_vector(n, 1)), b = rounded(act, random_vector(n, 2));
    const Vector dout = rounded(stat, random_vector(n, 3)), before = rounded(stat, random_vector(n, 4));
    Device d;
    Tensor ta = d.tensor(act, {n}, a, "a"), tb = d.tensor(act, {n}, b, "b"), tw = d.tensor(act, {1}, {w}, "w");
    Tensor out = d.tensor(act, {n}, "out");
    interpolate(out, ta, tb, tw, d.ctx);
    EXPECT_TRUE(close_sums(d.read(out), interpolated_sums(a, b, w), act, tolerance(act, 2)));

    auto start = [&](bool given, int64_t size, const char* name) {
        Tensor t = d.tensor(stat, {size}, name);
        if (given) d.write(t, Vector(before.begin(), before.begin() + size));
        return t;
    };
    if (n == 0) accumulate.w = false;
    Tensor da = start(accumulate.a, n, "da"), db = start(accumulate.b, n, "db"), dw = start(accumulate.w, 1, "dw");
    interpolate_backward(da, db, dw, d.tensor(stat, {n}, dout, "dout"), ta, tb, tw, accumulate, d.ctx);
    Sums want_a{Vector(a.size()), Vector(a.size())}, want_b = want_a;
    double want_w = accumulate.w ? before[0] : 0;
    for (size_t i = 0; i < a.size(); i++) {
        want_a.value[i] = w * dout[i] + (accumulate.a ? before[i] : 0);
        want_b.value[i] = (1 - w) * dout[i] + (accumulate.b ? before[i] : 0);
        want_a.terms[i] = want_b.terms[i] = std::abs(dout[i]) + std::abs(before[i]);
        want_w += dout[i] * (a[i] - b[i]);
    }
    EXPECT_TRUE(close_sums(d.read(da), want_a, stat, tolerance(stat, 2)));
    EXPECT_TRUE(close_sums(d.read(db), want_b, stat, tolerance(stat, 2)));
    double size = 0;  // of a sum of n terms of mixed sign
    for (size_t i = 0; i < a.size(); i++) size += std::pow(dout[i] * (a[i] - b[i]), 2);
    EXPECT_NEAR(d.read(dw)[0], want_w, tolerance(stat, n) * std::max(1.0, std::sqrt(size)));
    if (n > 0 && n < 3000 && stat == arithmetic_types.back() && !accumulate.w) {
        const Vector slope =
            numeric_gradient([&](const Vector& v) { return dot(dout, interpolated(a, b, v[0])); }, {w});
        EXPECT_NEAR(d.read(dw)[0], slope[0], 1e-7 + tolerance(stat, n) * std::sqrt(size));
    }
}

TEST(Interpolate, MatchesPlainLoopsAndDifferences) {
    for (int64_t n : lengths)
        for (DType act : all_act)
            for (int bits = 0; bits < 8; bits++)
                expect_interpolation(n, act, {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0});
}

TEST(Interpolate, OddAddressesGiveTheSame) {
    Device d;
    const int64_t n = 100;
    const Vector a = rounded(DType::bf16, random_vector(n + 1, 1));
    Tensor all = d.tensor(DType::bf16, {n + 1}, a, "a"), out = d.tensor(DType::bf16, {n}, "out");
    Tensor w = d.tensor(DType::bf16, {1}, {0.25}, "w");
    interpolate(out, all.slice(1, n + 1), all.slice(0, n), w, d.ctx);
    const Vector shifted(a.begin() + 1, a.end()), first(a.begin(), a.end() - 1);
    EXPECT_TRUE(close_sums(d.read(out), interpolated_sums(shifted, first, 0.25), DType::bf16,
                           tolerance(DType::bf16, 2)));
}

// ------------------------------------------------------------------------------------------------------- random order
struct Order {
    Vector slots, where;
};

Order order_of(int64_t B, int64_t T, int32_t draw, uint64_t seed, bool within, int threads = 1) {
    ContextOptions options;
    options.threads = threads;
    Device d(options);
    Tensor slots = d.tensor(DType::i32, {1, B * T}, "slots"), where = d.tensor(DType::i32, {B, T, 1}, "where");
    random_order(slots, where, d.tensor(DType::i32, {1}, {double(draw)}, "draw"), seed, within, d.ctx);
    return {d.read(slots), d.read(where)};
}

// The definition: lines sorted by their random bits, read off token by token.
TEST(RandomOrder, SortsLinesByTheirKeys) {
    for (auto [B, T] : few_or_all<std::pair<int64_t, int64_t>>({{1, 1}, {6, 5}, {3, 40}, {0, 4}, {4, 0}, {64, 2}},
                                                               {{1000, 3}, {7, 700}}))
        for (bool within : {false, true})
            for (int32_t draw : {0, 1, -7}) {
                SCOPED_TRACE(str(B, "x", T, within ? " within a sequence" : "", " draw ", draw));
                const uint64_t seed = 0x123456789abcdef0;
                const int64_t lines = within ? T : B;
                std::vector<std::pair<uint64_t, int64_t>> keys;
                for (int64_t i = 0; i < lines; i++) {
                    auto bits = philox4x32({uint32_t(i), 0, uint32_t(draw), 0}, {0x9abcdef0, 0x12345678});
                    keys.emplace_back(uint64_t(bits[1]) << 32 | bits[0], i);
                }
                std::sort(keys.begin(), keys.end());
                Vector slots(static_cast<size_t>(B * T)), where(slots.size());
                for (int64_t b = 0; b < B; b++)
                    for (int64_t t = 0; t < T; t++) {
                        const int64_t from = within ? b * T + keys[size_t(t)].second : keys[size_t(b)].second * T + t;
                        slots[size_t(b * T + t)] = double(from);
                        where[size_t(from)] = double(b * T + t);
                    }
                const Order got = order_of(B, T, draw, seed, within);
                EXPECT_EQ(got.slots, slots);
                EXPECT_EQ(got.where, where);
                EXPECT_EQ(order_of(B, T, draw, seed, within, 3).slots, slots);
            }
}

// Every order of four lines turns up about equally often: chi-square with 23 degrees of freedom.
TEST(RandomOrder, AllOrdersAreEquallyLikely) {
    const int draws = small_sizes() ? 240 : 4800;
    std::map<Vector, int> seen;
    for (int draw = 0; draw < draws; draw++) seen[order_of(4, 1, draw, 42, false).slots]++;
    double chi = 0;
    for (const auto& [order, times] : seen) chi += std::pow(times - draws / 24.0, 2) / (draws / 24.0);
    EXPECT_EQ(seen.size(), 24u);
    EXPECT_LT(chi, 49.7);  // exceeded once in a thousand times
    EXPECT_NE(order_of(8, 1, 5, 1, false).slots, order_of(8, 1, 5, 2, false).slots);  // the seed counts as well
}

// ------------------------------------------------------------------------------------------------------------ freezing
TEST(FreezeUntil, ZeroesBeforeItsStepOnly) {
    for (DType stat : arithmetic_types)
        for (auto [t, skipped, frozen] : std::vector<std::tuple<int64_t, int64_t, bool>>{
                 {0, 0, true}, {4, 0, true}, {3, 1, true}, {5, 0, false}, {3, 2, false}, {9, 9, false}}) {
            Device d;
            const Vector values = rounded(stat, random_vector(300, 1));
            Tensor grad = d.tensor(stat, {300}, values, "grad");
            Tensor step =
                step_state_tensor(d.tensor(DType::i32, {int64_t(sizeof(StepState) / sizeof(int32_t))}, "step").data);
            StepState state;
            state.t = t, state.skipped = skipped;
            upload(step, &state, d.ctx);
            freeze_until(grad.slice(0, 299), step, 5, d.ctx);
            Vector want = values;
            if (frozen) std::fill(want.begin(), want.end() - 1, 0.0);
            EXPECT_EQ(d.read(grad), want);
        }
}

// -------------------------------------------------------------------------------------------------------------- checks
TEST(MotVariants, ResultsDoNotDependOnThreads) {
    std::vector<Vector> results[2];
    for (int threads : {1, 3}) {
        ContextOptions options;
        options.threads = threads, options.guard = true;
        Device d(options);
        const int64_t n = small_sizes() ? 3000 : 20000;
        Tensor x = d.tensor(DType::f32, {1, n / 10, 10}, random_vector(n, 1), "x");
        Tensor y = d.tensor(DType::f32, x.shape, random_vector(n, 2), "y"), dx = d.tensor(DType::f32, x.shape, "dx");
        Tensor p = d.tensor(DType::f32, {10}, random_vector(10, 3), "p"), dp = d.tensor(DType::f32, {10}, "dp");
        temperature_backward(dx, dp, x, y, p, true, false, d.ctx);
        Tensor w = d.tensor(DType::f32, {1}, {0.7}, "w"), dw = d.tensor(DType::f32, {1}, "dw");
        Tensor dy = d.tensor(DType::f32, x.shape, "dy");
        for (const Tensor& t : {dx, dp}) results[threads > 1].push_back(d.read(t));
        interpolate_backward(dx, dy, dw, x, y, x, w, {}, d.ctx);
        for (const Tensor& t : {dx, dy, dw}) results[threads > 1].push_back(d.read(t));
    }
    EXPECT_EQ(results[0], results[1]);
}

TEST(MotVariants, CountingTouchesNothing) {
    Context ctx(ContextOptions{.counting = true});
    auto tensor = [&](DType dtype, Shape shape, const char* name) {
        return Tensor(device_alloc(shape.numel() * size_of(dtype), ctx), dtype, shape, name);
    };
    Tensor x = tensor(DType::f32, {2, 3, 4}, "x"), y = tensor(DType::f32, {2, 3, 4}, "y");
    Tensor p = tensor(DType::bf16, {4}, "p"), dp = tensor(DType::f32, {4}, "dp"), w = tensor(DType::f32, {1}, "w");
    temperature_forward(y, x, p, false, ctx);
    EXPECT_EQ(ctx.flops, 24);
    temperature_backward(x, dp, x, y, p, false, false, ctx);
    EXPECT_EQ(ctx.flops, 4 * 24);
    interpolate(x, x, y, w, ctx);
    EXPECT_EQ(ctx.flops, 7 * 24);
    interpolate_backward(x, y, w, x, x, y, w, {}, ctx);
    EXPECT_EQ(ctx.flops, 12 * 24);
    random_order(tensor(DType::i32, {1, 6}, "slots"), tensor(DType::i32, {2, 3, 1}, "where"),
                 tensor(DType::i32, {1}, "draw"), 1, false, ctx);
    EXPECT_EQ(ctx.flops, 12 * 24);
}

TEST(MotVariants, WrongTensorsAreNamed) {
    Device d;
    auto f32 = [&](Shape shape, const char* name) { return d.tensor(DType::f32, shape, name); };
    auto i32 = [&](Shape shape, const char* name) { return d.tensor(DType::i32, shape, name); };
    Tensor x = f32({2, 3, 4}, "x"), y = f32({2, 3, 5}, "y"), p = f32({4}, "p"), three = f32({3}, "three");
    Tensor halves = d.tensor(DType::bf16, {2, 3, 4}, "halves"), w = f32({1}, "w");
    EXPECT_TRUE(refuses([&] { temperature_forward(y, x, p, false, d.ctx); }, "scaled y"));
    EXPECT_TRUE(refuses([&] { temperature_forward(x, halves, p, false, d.ctx); }, "logits halves"));
    EXPECT_TRUE(
        refuses([&] { temperature_forward(x, x, three, false, d.ctx); }, "p three has shape [3], expected [4]"));
    EXPECT_TRUE(refuses([&] { temperature_backward(x, w, x, x, p, false, false, d.ctx); }, "dp w"));
    EXPECT_TRUE(refuses([&] { temperature_backward(y, p, x, x, p, false, false, d.ctx); }, "dlogits y"));
    EXPECT_TRUE(refuses([&] { temperature_mean(w, p, false, d.ctx); }, "mean w has dtype F32, expected F64"));
    EXPECT_TRUE(refuses([&] { interpolate(x, x, y, w, d.ctx); }, "b y"));
    EXPECT_TRUE(refuses([&] { interpolate(x, x, x, p, d.ctx); }, "w p"));
    EXPECT_TRUE(refuses([&] { interpolate(y, x, x, w, d.ctx); }, "out y"));
    EXPECT_TRUE(refuses([&] { interpolate_backward(x, y, w, x, x, x, w, {}, d.ctx); }, "db y"));
    EXPECT_TRUE(refuses([&] { interpolate_backward(x, x, p, x, x, x, w, {}, d.ctx); }, "dw p"));
    EXPECT_TRUE(refuses([&] { interpolate_backward(x, x, w, halves, x, x, w, {}, d.ctx); }, "dout halves"));
    Tensor slots = i32({1, 6}, "slots"), where = i32({2, 3, 1}, "where"), draw = i32({1}, "draw");
    EXPECT_TRUE(refuses([&] { random_order(where, where, draw, 1, false, d.ctx); }, "slots where"));
    EXPECT_TRUE(refuses([&] { random_order(slots, slots, draw, 1, false, d.ctx); }, "where slots"));
    EXPECT_TRUE(refuses([&] { random_order(slots, where, w, 1, false, d.ctx); }, "draw w"));
}

}  // namespace
}  // namespace llmc
