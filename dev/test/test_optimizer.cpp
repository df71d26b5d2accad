// The sums, the decision and AdamW of a step against a plain float64 AdamW.
#include "dev/test/reference.h"

namespace llmc {
namespace {

using namespace test;

Tensor make_step(Device& d) {
    Tensor step = step_state_tensor(nullptr);
    step = d.tensor(DType::i32, step.shape, "step");
    StepState initial;
    upload(step, &initial, d.ctx);
    return step;
}
StepState read_step(Device& d, Tensor step) {
    StepState s;
    download(&s, step, d.ctx);
    return s;
}

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
    const int64_t n = 40003, decayed = 25001;  // several chunks, the decayed part ends inside one
    const double clip = 0.5;
    AdamW options;
    options.beta2 = 0.98;
    for (DType dtype : {DType::f32, DType::f64}) {
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
    Device d;
    Tensor p = d.tensor(DType::f64, {2}, {2.0, 2.0}, "p"), m = d.tensor(DType::f64, {2}, {0.0, 0.0}, "m");
    Tensor v = d.tensor(DType::f64, {2}, {0.0, 0.0}, "v"), grad = d.tensor(DType::f64, {2}, {0.3, 0.4}, "grad"),
           step = make_step(d);
    AdamW options{.beta1 = 0.9, .beta2 = 0.999, .eps = 0.1, .weight_decay = 0.5};
    step_begin(step, 0.25, d.ctx);
    grad_norm_accumulate(step, grad, d.ctx);
    step_decide(step, 0, options.beta1, options.beta2, d.ctx);  // no clipping
    adamw_update(p, {}, m, v, grad, step, 1, options, d.ctx);
    // First step: m_hat = g, v_hat = g^2; p0 = 2 (1 - 0.25 * 0.5) - 0.25 * 0.3 / (0.3 + 0.1); p1 is not decayed.
    EXPECT_NEAR(d.read(p)[0], 1.75 - 0.1875, 1e-15);
    EXPECT_NEAR(d.read(p)[1], 2.0 - 0.2, 1e-15);
    EXPECT_NEAR(read_step(d, step).grad_norm, 0.5, 1e-15);
    EXPECT_EQ(read_step(d, step).grad_scale, 1.0);
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

TEST(Optimizer, LossesAreSummedOverTargets) {
    for (DType dtype : {DType::f32, DType::f64}) {
        Device d;
        Tensor step = make_step(d);
        Vector losses = rounded(dtype, random_vector(33 * 1000, 4, 5.0)),
               targets = random_integers(33 * 1000, -1, 3, 5);
        double sum = 0;
        int64_t count = 0;
        for (size_t i = 0; i < losses.size(); i++) {
            if (targets[i] < 0)
                losses[i] = 0;
            else
                sum += losses[i], count++;
        }
        Tensor l = d.tensor(dtype, {33, 1000}, losses, "losses"),
               t = d.tensor(DType::i32, {33, 1000}, targets, "targets");
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
    Tensor huge = d.tensor(DType::f64, {1}, {1e200}, "huge"), fine = d.tensor(DType::f64, {1}, {1.0}, "fine");
    auto run = [&](Tensor l, Tensor g) {
        step_begin(step, 0.1, d.ctx);
        loss_accumulate(step, l, targets, d.ctx);
        grad_norm_accumulate(step, g, d.ctx);
        step_decide(step, 0.5, 0.9, 0.999, d.ctx);
        return read_step(d, step);
    };
    EXPECT_EQ(run(nan_loss, fine).ok, 0);
    StepState s = run(loss, huge);  // the square overflows
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
    EXPECT_TRUE(refuses([&] { adamw_update(p, {}, p, p, p, step, 9, {}, d.ctx); }, "9 decayed"));
    EXPECT_TRUE(refuses([&] { adamw_update(p, {}, p, p, p, p, 8, {}, d.ctx); }, "step"));
    EXPECT_TRUE(refuses([&] { grad_norm_accumulate(step, half, d.ctx); }, "half"));
    EXPECT_TRUE(refuses([&] { loss_accumulate(step, p, q, d.ctx); }, "q"));
}

}  // namespace
}  // namespace llmc
