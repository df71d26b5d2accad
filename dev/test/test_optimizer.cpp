// The sums, the decision and AdamW of a step against a plain float64 AdamW.
#include "dev/test/optimizer_test.h"

namespace llmc {
namespace {

using namespace test;

// Master parameters without rounding to bf16.
const std::vector<DType> master_types = [] {
    std::vector<DType> types = {DType::f32};
    if (backend_supports(DType::f64)) types.push_back(DType::f64);
    return types;
}();

// AdamW as in the paper, one element after another, in float64.
struct PlainAdamW {
    Vector p, m, v;
    int64_t t = 0;

    void update(const Vector& grad, double lr, double clip, const AdamW& o, int64_t decayed) {
        long double squares = 0;  // the op sums in chunks: a long plain double sum would be the less exact one
        for (double g : grad) squares += g * g;
        double norm = std::sqrt(double(squares));
        double scale = clip > 0 && clip / (norm + 1e-6) < 1 ? clip / (norm + 1e-6) : 1;
        t++;
        for (size_t i = 0; i < p.size(); i++) {
            double g = grad[i] * scale;
            if (int64_t(i) < decayed) p[i] = p[i] * (1 - lr * o.weight_decay);
            m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
            v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
            double m_hat = m[i] / (1 - std::pow(o.beta1, double(t))), v_hat = v[i] / (1 - std::pow(o.beta2, double(t)));
            p[i] -= lr * m_hat / (std::sqrt(v_hat) + o.eps);
        }
    }
};

// Five steps, the third of them with a NaN gradient and so skipped.
TEST(Optimizer, FiveStepsMatchPlainAdamW) {
    const int64_t n = small_sizes() ? 9003 : 40003, decayed = n / 8 * 5 + 1;  // several chunks, decay ends inside one
    const double clip = 0.5;
    AdamW options;
    options.beta2 = 0.98;
    for (DType dtype : master_types) {
        Device d;
        Vector start = rounded(dtype, random_vector(n, 1));
        PlainAdamW want{start, Vector(size_t(n)), Vector(size_t(n)), 0};
        Tensor p = d.tensor(dtype, {n}, start, "p"), m = d.tensor(dtype, {n}, want.m, "m"),
               v = d.tensor(dtype, {n}, want.v, "v");
        Tensor grad = d.tensor(dtype, {n}, "grad"), half = d.tensor(DType::bf16, {n}, "half"), step = make_step(d);
        for (int s = 0; s < 5; s++) {
            double lr = 0.01 * (s + 1), size = s == 1 ? 1e-4 : 1e-2;  // step 1 is too small to be clipped
            Vector g = rounded(dtype, random_vector(n, uint64_t(10 + s), size));
            if (s == 2) g[size_t(n - 1)] = std::nan("");
            d.write(grad, g);
            Vector before = d.read(p), half_before = d.read(half);
            step_begin(step, lr, d.ctx);
            grad_norm_accumulate(step, grad, d.ctx);
            step_decide(step, clip, options.beta1, options.beta2, d.ctx);
            adamw_update(p, half, m, v, grad, step, decayed, options, d.ctx);
            StepState state = read_step(d, step);
            EXPECT_EQ(state.ok, s == 2 ? 0 : 1);
            EXPECT_EQ(state.skipped, s >= 2 ? 1 : 0);
            EXPECT_EQ(state.skipped_in_a_row, s == 2 ? 1 : 0);
            EXPECT_EQ(state.t, s < 2 ? s + 1 : s);
            if (s == 2) {
                EXPECT_EQ(d.read(p), before);
                EXPECT_TRUE(close(d.read(half), half_before, 0));
                continue;
            }
            want.update(g, lr, clip, options, decayed);
            EXPECT_NEAR(state.grad_norm, std::sqrt(dot(g, g)), 1e-12);
            EXPECT_EQ(state.grad_scale < 1, s != 1);
            // Updates are about lr; each step rounds p once and its update to a few roundoffs.
            // The norm, and with it m, has the error of a sum of 16384 squares: about sqrt(16384) / 2 roundoffs of f64.
            double tol = double(4 * (s + 1)) * roundoff(dtype) + 64 * roundoff(DType::f64);
            EXPECT_TRUE(close(d.read(p), want.p, tol));
            EXPECT_TRUE(close(d.read(m), want.m, tol));
            EXPECT_TRUE(close(d.read(v), want.v, 2 * tol));
            EXPECT_EQ(d.read(half), rounded(DType::bf16, d.read(p)));
        }
    }
}

// Parameters of one element see exactly the formula: a misplaced eps, a decay inside the gradient or a forgotten bias
// correction would be seen here in the first digits.
TEST(Optimizer, OneElementByHand) {
    for (DType type : master_types) {
        Device d;
        Tensor p = d.tensor(type, {2}, {2.0, 2.0}, "p"), m = d.tensor(type, {2}, {0.0, 0.0}, "m");
        Tensor v = d.tensor(type, {2}, {0.0, 0.0}, "v"), grad = d.tensor(type, {2}, {0.3, 0.4}, "grad"),
               step = make_step(d);
        AdamW options{.beta1 = 0.9, .beta2 = 0.999, .eps = 0.1, .weight_decay = 0.5};
        step_begin(step, 0.25, d.ctx);
        grad_norm_accumulate(step, grad, d.ctx);
        step_decide(step, 0, options.beta1, options.beta2, d.ctx);  // no clipping
        adamw_update(p, {}, m, v, grad, step, 1, options, d.ctx);
        // First step: m_hat = g, v_hat = g^2; p0 = 2 (1 - 0.25 * 0.5) - 0.25 * 0.3 / (0.3 + 0.1); p1 is not decayed.
        const double tol = 8 * roundoff(type);
        EXPECT_NEAR(d.read(p)[0], 1.75 - 0.1875, tol);
        EXPECT_NEAR(d.read(p)[1], 2.0 - 0.2, tol);
        EXPECT_NEAR(read_step(d, step).grad_norm, 0.5, tol);
        EXPECT_EQ(read_step(d, step).grad_scale, 1.0);
    }
}

// More elements than the threads of a GPU launch update in one turn, not a multiple of anything, and addresses where no
// 16 bytes begin. One step from zero moments: p = 1 - lr sign(g), nearly.
TEST(Optimizer, EveryElementIsUpdatedOnce) {
    const int64_t n = small_sizes() ? 5003 : 4200003;
    for (int64_t skip : {0, 1}) {
        Device d;
        auto slice_of = [&](double value, const char* name) {
            return d.tensor(DType::f32, {n + 1}, Vector(size_t(n + 1), value), name).slice(skip, n + skip);
        };
        Tensor p = slice_of(1, "p"), m = slice_of(0, "m"), v = slice_of(0, "v"), grad = slice_of(-3, "grad");
        Tensor half = d.tensor(DType::bf16, {n}, "half"), step = make_step(d);
        step_begin(step, 0.25, d.ctx);
        grad_norm_accumulate(step, grad, d.ctx);
        step_decide(step, 0, 0.9, 0.999, d.ctx);
        adamw_update(p, half, m, v, grad, step, 0, {}, d.ctx);
        EXPECT_TRUE(close(d.read(p), Vector(size_t(n), 1.25), 4 * roundoff(DType::f32)));
        EXPECT_EQ(d.read(half), Vector(size_t(n), 1.25));
        EXPECT_NEAR(read_step(d, step).grad_square_sum, 9.0 * double(n), 1e-6);
    }
}

// Without a master copy, bf16 parameters are rounded to the nearest bf16 of the f32 result.
TEST(Optimizer, Bf16ParametersRoundToNearest) {
    const int64_t n = 1000;
    Vector start = rounded(DType::bf16, random_vector(n, 2)), g = rounded(DType::f32, random_vector(n, 3));
    AdamW options;
    Vector results[2];
    for (DType dtype : {DType::f32, DType::bf16}) {
        Device d;
        Tensor p = d.tensor(dtype, {n}, start, "p"), grad = d.tensor(DType::f32, {n}, g, "grad"), step = make_step(d);
        Tensor m = d.tensor(DType::f32, {n}, Vector(size_t(n)), "m"),
               v = d.tensor(DType::f32, {n}, Vector(size_t(n)), "v");
        step_begin(step, 0.01, d.ctx);
        grad_norm_accumulate(step, grad, d.ctx);
        step_decide(step, 1.0, options.beta1, options.beta2, d.ctx);
        adamw_update(p, {}, m, v, grad, step, n, options, d.ctx);
        results[dtype == DType::bf16] = d.read(p);
    }
    EXPECT_EQ(results[1], rounded(DType::bf16, results[0]));
    EXPECT_NE(results[1], start);
}

// bf16 parameters after one step without gradient: p (1 - lr weight_decay), rounded as `options` say. `size` elements
// from `first` on of the unit `start`, in the t-th step.
Vector decayed_bf16(const Vector& start, int64_t first, int64_t size, AdamW options, double lr, int64_t t) {
    Device d;
    Vector part(start.begin() + first, start.begin() + first + size), zero(static_cast<size_t>(size));
    Tensor p = d.tensor(DType::bf16, {size}, part, "p"), grad = d.tensor(DType::f32, {size}, zero, "grad");
    Tensor m = d.tensor(DType::f32, {size}, zero, "m"), v = d.tensor(DType::f32, {size}, zero, "v");
    Tensor step = make_step(d);
    StepState state;
    state.lr = lr, state.t = t;
    upload(step, &state, d.ctx);
    options.first_index = first;
    adamw_update(p, {}, m, v, grad, step, size, options, d.ctx);
    return d.read(p);
}

// Bit for bit what ops.h says, on every backend: 16 bits of Philox per element, added below the last place of bf16.
TEST(Optimizer, StochasticRoundingFollowsItsFormula) {
    const int64_t n = 1003, t = 70000000007;
    Vector start = rounded(DType::bf16, random_vector(n, 7, 2.0));
    start[5] = std::nan(""), start[6] = std::numeric_limits<double>::infinity(), start[7] = 0;
    AdamW options{.weight_decay = 0.125, .stochastic_rounding = true, .seed = 0x123456789abcdef0};
    const double lr = 0.01;
    Vector want(start.size());
    for (size_t i = 0; i < want.size(); i++) {
        const float exact = float(start[i]) * float(1 - lr * options.weight_decay);
        want[i] = rounded_at_random(exact, i, options.seed, uint64_t(t));
    }
    EXPECT_TRUE(std::isnan(want[5]));
    Vector whole = decayed_bf16(start, 0, n, options, lr, t);
    EXPECT_TRUE(close(whole, want, 0, Nans::expected));
    // Slices of the unit are rounded like the whole, wherever they begin.
    for (int64_t cut : {400, 403}) {
        Vector parts = decayed_bf16(start, 0, cut, options, lr, t);
        const Vector rest = decayed_bf16(start, cut, n - cut, options, lr, t);
        parts.insert(parts.end(), rest.begin(), rest.end());
        EXPECT_TRUE(close(parts, want, 0, Nans::expected));
    }
    EXPECT_FALSE(close(decayed_bf16(start, 0, n, options, lr, t + 1), want, 0, Nans::expected));
    options.seed++;
    EXPECT_FALSE(close(decayed_bf16(start, 0, n, options, lr, t), want, 0, Nans::expected));
}

// Adding to the bits of a NaN could carry it into a number.
TEST(Optimizer, StochasticRoundingKeepsNaN) {
    Device d;
    std::vector<uint32_t> bits(64, 0x7fffffff);
    Tensor p = d.tensor(DType::bf16, {64}, Vector(64, 1.0), "p"), grad = d.tensor(DType::f32, {64}, "grad");
    Tensor m = d.tensor(DType::f32, {64}, Vector(64), "m"), v = d.tensor(DType::f32, {64}, Vector(64), "v");
    upload(grad, bits.data(), d.ctx);
    adamw_update(p, {}, m, v, grad, make_step(d), 0, {.stochastic_rounding = true}, d.ctx);
    for (double x : d.read(p)) EXPECT_TRUE(std::isnan(x)) << x;
}

// An update of 0.3 units in the last place: to nearest it is lost, at random it is right on average.
TEST(Optimizer, StochasticRoundingIsRightOnAverage) {
    const int64_t n = small_sizes() ? 4000 : 40000;
    const double unit = 0x1p-8, part = 0.3;  // distance of the bf16 numbers below 1
    AdamW options{.weight_decay = 1, .stochastic_rounding = true, .seed = 3};
    double sum = 0;
    for (double p : decayed_bf16(Vector(size_t(n), 1.0), 0, n, options, part * unit, 1)) {
        EXPECT_TRUE(p == 1 || p == 1 - unit) << p;
        sum += (1 - p) / unit;
    }
    EXPECT_NEAR(sum / double(n), part, 5 * std::sqrt(part * (1 - part) / double(n)));
    options.stochastic_rounding = false;
    EXPECT_EQ(decayed_bf16(Vector(8, 1.0), 0, 8, options, part * unit, 1), Vector(8, 1.0));
}

// Without stochastic rounding asked for, or with f32 parameters, the seed changes nothing.
TEST(Optimizer, StochasticRoundingIsForBf16) {
    Device d;
    Tensor p = d.tensor(DType::f32, {3}, {1.0, 2.0, 3.0}, "p"), zero = d.tensor(DType::f32, {3}, Vector(3), "zero");
    Tensor m = d.tensor(DType::f32, {3}, Vector(3), "m"), v = d.tensor(DType::f32, {3}, Vector(3), "v");
    Tensor step = make_step(d);
    StepState state;
    state.lr = 0.01;
    upload(step, &state, d.ctx);
    adamw_update(p, {}, m, v, zero, step, 3, {.weight_decay = 1, .stochastic_rounding = true, .seed = 1}, d.ctx);
    EXPECT_TRUE(close(d.read(p), {0.99, 1.98, 2.97}, 2 * roundoff(DType::f32)));
}

TEST(Optimizer, LossesAreSummedOverTargets) {
    const int64_t T = small_sizes() ? 100 : 1000;
    for (DType dtype : master_types) {
        Device d;
        Tensor step = make_step(d);
        Vector losses = rounded(dtype, random_vector(33 * T, 4, 5.0)), targets = random_integers(33 * T, -1, 3, 5);
        double sum = 0;
        int64_t count = 0;
        for (size_t i = 0; i < losses.size(); i++) {
            if (targets[i] < 0)
                losses[i] = 0;
            else
                sum += losses[i], count++;
        }
        Tensor l = d.tensor(dtype, {33, T}, losses, "losses"), t = d.tensor(DType::i32, {33, T}, targets, "targets");
        step_begin(step, 0.1, d.ctx);
        loss_accumulate(step, l, t, d.ctx);
        loss_accumulate(step, l, t, d.ctx);
        EXPECT_NEAR(read_step(d, step).loss_sum, 2 * sum, 1e-9);
        EXPECT_EQ(read_step(d, step).loss_count, 2 * count);
        EXPECT_EQ(read_step(d, step).lr, 0.1);
        step_begin(step, 0.2, d.ctx);
        EXPECT_EQ(read_step(d, step).loss_sum, 0);
        EXPECT_EQ(read_step(d, step).loss_count, 0);
    }
}

TEST(Optimizer, NotFiniteSkipsAndCounts) {
    Device d;
    Tensor step = make_step(d), targets = d.tensor(DType::i32, {1}, {0}, "targets");
    Tensor nan_loss = d.tensor(DType::f32, {1}, {std::nan("")}, "nan_loss"),
           loss = d.tensor(DType::f32, {1}, {1.0}, "loss");
    const bool f64 = backend_supports(DType::f64);  // the square of 1e200 overflows; no square of an f32 does
    Tensor huge = d.tensor(f64 ? DType::f64 : DType::f32, {1}, {f64 ? 1e200 : 1e200 * 1e200}, "huge"),
           fine = d.tensor(DType::f32, {1}, {1.0}, "fine");
    auto run = [&](Tensor l, Tensor g) {
        step_begin(step, 0.1, d.ctx);
        loss_accumulate(step, l, targets, d.ctx);
        grad_norm_accumulate(step, g, d.ctx);
        step_decide(step, 0.5, 0.9, 0.999, d.ctx);
        return read_step(d, step);
    };
    EXPECT_EQ(run(nan_loss, fine).ok, 0);
    StepState s = run(loss, huge);
    EXPECT_EQ(s.ok, 0);
    EXPECT_EQ(s.skipped, 2);
    EXPECT_EQ(s.skipped_in_a_row, 2);
    EXPECT_EQ(s.t, 0);
    s = run(loss, fine);
    EXPECT_EQ(s.ok, 1);
    EXPECT_EQ(s.skipped, 2);
    EXPECT_EQ(s.skipped_in_a_row, 0);
    EXPECT_EQ(s.t, 1);
    EXPECT_NEAR(s.grad_scale, 0.5 / (1 + 1e-6), 1e-15);
    EXPECT_NEAR(s.bias_correction1, 0.1, 1e-15);
    EXPECT_NEAR(s.bias_correction2, 0.001, 1e-15);
}

// A gradient whose squares are above the largest float, unless clipping makes it smaller.
TEST(Optimizer, AGradientTooLargeForAdamSkipsToo) {
    Device d;
    Tensor step = make_step(d);
    auto ok = [&](double norm, double clip) {
        StepState state;
        state.grad_square_sum = norm * norm;
        upload(step, &state, d.ctx);
        step_decide(step, clip, 0.9, 0.999, d.ctx);
        return read_step(d, step).ok;
    };
    EXPECT_EQ(ok(1e19, 0), 1);
    EXPECT_EQ(ok(1e20, 0), 0);
    EXPECT_EQ(ok(1e20, 1), 1);
    EXPECT_EQ(ok(1e100, 1e50), 0);
}

// The element that an update breaks is reported, wherever it stands: the first, one in the middle, the last.
TEST(Optimizer, AnUpdateThatIsNotFiniteIsReported) {
    const int64_t n = small_sizes() ? 5003 : 40003;
    const double inf = std::numeric_limits<double>::infinity();
    struct Case {
        double p, m, v, grad, eps;
        bool broken;
    };
    const std::vector<Case> cases = {{1, 0, 0, 0.5, 1e-8, false},  {1, 0, 0, 0, 0, true},
                                     {inf, 0, 0, 0.5, 1e-8, true}, {1, 0, inf, 0.5, 1e-8, true},
                                     {1, inf, 1, 0.5, 1e-8, true}, {3e38, 0, 0, 0, 1, false}};
    std::vector<DType> types = master_types;
    types.push_back(DType::bf16);
    for (DType dtype : types)
        for (const Case& c : cases)
            for (int64_t place : {int64_t(0), n / 2, n - 1})
                for (bool stochastic : {false, true}) {
                    if (stochastic && dtype != DType::bf16) continue;
                    Device d;
                    const DType wide = dtype == DType::f64 ? DType::f64 : DType::f32;
                    auto with = [&](DType type, double usual, double here, const char* name) {
                        Vector values(size_t(n), usual);
                        values[size_t(place)] = here;
                        return d.tensor(type, {n}, values, name);
                    };
                    Tensor p = with(dtype, 1, c.p, "p"), m = with(wide, 0, c.m, "m"), v = with(wide, 1, c.v, "v"),
                           grad = with(wide, 0.5, c.grad, "grad"), step = make_step(d);
                    const AdamW options{.eps = c.eps, .weight_decay = 0, .stochastic_rounding = stochastic};
                    adamw_update(p, {}, m, v, grad, step, n, options, d.ctx);
                    EXPECT_EQ(read_step(d, step).broken, c.broken)
                        << c.p << ' ' << c.m << ' ' << c.v << " at " << place;
                }
}

TEST(Optimizer, SumsDoNotDependOnThreads) {
    Vector g = random_vector(100003, 6);
    double sums[2];
    for (int threads : {1, 2}) {
        ContextOptions options;
        options.threads = threads;
        options.guard = true;  // and nothing is touched outside an op
        Device d(options);
        Tensor step = make_step(d);
        grad_norm_accumulate(step, d.tensor(DType::f32, {100003}, g, "grad"), d.ctx);
        sums[threads - 1] = read_step(d, step).grad_square_sum;
    }
    EXPECT_EQ(sums[0], sums[1]);
    EXPECT_NEAR(sums[0], dot(rounded(DType::f32, g), rounded(DType::f32, g)), 1e-8);
}

TEST(Optimizer, EmptyUnitsAreLegal) {
    Device d;
    Tensor step = make_step(d), none = d.tensor(DType::f32, {0}, "none");
    grad_norm_accumulate(step, none, d.ctx);
    adamw_update(none, {}, none, none, none, step, 0, {}, d.ctx);
    EXPECT_EQ(read_step(d, step).grad_square_sum, 0);
}

TEST(Optimizer, WrongTensorsAreNamed) {
    Device d;
    Tensor step = make_step(d), p = d.tensor(DType::f32, {8}, "p"), q = d.tensor(DType::f32, {7}, "q");
    Tensor doubles = d.tensor(DType::f64, {8}, "doubles"), half = d.tensor(DType::bf16, {8}, "half");
    EXPECT_TRUE(refuses([&] { adamw_update(p, {}, q, p, p, step, 8, {}, d.ctx); }, "q"));
    EXPECT_TRUE(refuses([&] { adamw_update(p, {}, p, doubles, p, step, 8, {}, d.ctx); }, "doubles"));
    EXPECT_TRUE(refuses([&] { adamw_update(p, p, p, p, p, step, 8, {}, d.ctx); }, "compute_copy"));
    EXPECT_TRUE(refuses([&] { adamw_update(half, {}, half, p, p, step, 8, {}, d.ctx); }, "half"));
    EXPECT_TRUE(refuses([&] { adamw_update(p, {}, p, p, p, step, 9, {}, d.ctx); }, "9 elements to decay"));
    EXPECT_TRUE(refuses([&] { adamw_update(p, {}, p, p, p, p, 8, {}, d.ctx); }, "step"));
    EXPECT_TRUE(refuses([&] { grad_norm_accumulate(step, half, d.ctx); }, "half"));
    EXPECT_TRUE(refuses([&] { loss_accumulate(step, p, q, d.ctx); }, "q"));
    Tensor whole = d.tensor(DType::i32, {8}, "whole");
    EXPECT_TRUE(refuses([&] { grad_norm_accumulate(step, whole, d.ctx); }, "grad whole has dtype I32"));
    EXPECT_TRUE(refuses([&] { loss_accumulate(step, whole, whole, d.ctx); }, "losses whole has dtype I32"));
    if (backend_supports(DType::f64)) return;
    EXPECT_TRUE(refuses([&] { grad_norm_accumulate(step, doubles, d.ctx); }, "doubles"));
    EXPECT_TRUE(refuses([&] { adamw_update(doubles, {}, doubles, doubles, doubles, step, 8, {}, d.ctx); }, "F64"));
}

}  // namespace
}  // namespace llmc
