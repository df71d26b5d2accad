// attention_forward, attention_backward, attention_extend and rope against plain float64 loops and finite differences.
#include "dev/test/reference.h"

namespace llmc::test {
namespace {

struct Size {
    int64_t B, T, H, D;
    int64_t C() const { return H * D; }
    int64_t wide() const { return 3 * H * D; }
};

// ---------------------------------------------------------------------------------------------------------------
// oracles Probabilities p[b,h,i,j] by the definition, with the log-sum-exp of every row of scores.
struct Softmax { Vector p, lse; };

double at(const Vector& qkv, const Size& s, int part, int64_t b, int64_t t, int64_t h, int64_t d) {
    return qkv[size_t((b * s.T + t) * s.wide() + part * s.C() + h * s.D + d)];
}

Softmax softmax_oracle(const Vector& qkv, const Size& s) {
    Softmax r{Vector(size_t(s.B * s.H * s.T * s.T)), Vector(size_t(s.B * s.H * s.T))};
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t h = 0; h < s.H; h++)
            for (int64_t i = 0; i < s.T; i++) {
                double* p = &r.p[size_t(((b * s.H + h) * s.T + i) * s.T)];
                double max = -INFINITY, sum = 0;
                for (int64_t j = 0; j <= i; j++) {
                    for (int64_t d = 0; d < s.D; d++) p[j] += at(qkv, s, 0, b, i, h, d) * at(qkv, s, 1, b, j, h, d);
                    p[j] /= std::sqrt(double(s.D));
                    max = std::max(max, p[j]);
                }
                for (int64_t j = 0; j <= i; j++) sum += p[j] = std::exp(p[j] - max);
                for (int64_t j = 0; j <= i; j++) p[j] /= sum;
                r.lse[size_t((b * s.H + h) * s.T + i)] = max + std::log(sum);
            }
    return r;
}

Vector forward_oracle(const Vector& qkv, const Size& s, Vector* lse = nullptr) {
    const Softmax soft = softmax_oracle(qkv, s);
    if (lse) *lse = soft.lse;
    Vector out(size_t(s.B * s.T * s.C()));
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t h = 0; h < s.H; h++)
            for (int64_t i = 0; i < s.T; i++)
                for (int64_t j = 0; j <= i; j++)
                    for (int64_t d = 0; d < s.D; d++)
                        out[size_t((b * s.T + i) * s.C() + h * s.D + d)] +=
                            soft.p[size_t(((b * s.H + h) * s.T + i) * s.T + j)] * at(qkv, s, 2, b, j, h, d);
    return out;
}

// The chain rule written out with full T x T matrices.
Vector backward_oracle(const Vector& dout, const Vector& qkv, const Size& s) {
    const Softmax soft = softmax_oracle(qkv, s);
    Vector dqkv(qkv.size());
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t h = 0; h < s.H; h++)
            for (int64_t i = 0; i < s.T; i++) {
                const double* p = &soft.p[size_t(((b * s.H + h) * s.T + i) * s.T)];
                const double* g = &dout[size_t((b * s.T + i) * s.C() + h * s.D)];
                auto slot = [&](int part, int64_t t) {
                    return &dqkv[size_t((b * s.T + t) * s.wide() + part * s.C() + h * s.D)];
                };
                Vector dp(size_t(i + 1));
                double mean = 0;
                for (int64_t j = 0; j <= i; j++) {
                    for (int64_t d = 0; d < s.D; d++) {
                        dp[size_t(j)] += g[d] * at(qkv, s, 2, b, j, h, d);
                        slot(2, j)[d] += p[j] * g[d];
                    }
                    mean += p[j] * dp[size_t(j)];
                }
                for (int64_t j = 0; j <= i; j++) {
                    const double ds = p[j] * (dp[size_t(j)] - mean) / std::sqrt(double(s.D));
                    for (int64_t d = 0; d < s.D; d++) {
                        slot(0, i)[d] += ds * at(qkv, s, 1, b, j, h, d);
                        slot(1, j)[d] += ds * at(qkv, s, 0, b, i, h, d);
                    }
                }
            }
    return dqkv;
}

Vector rope_oracle(Vector qkv, const Size& s, int64_t first, double sign) {
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t t = 0; t < s.T; t++)
            for (int64_t head = 0; head < 2 * s.H; head++)
                for (int64_t i = 0; i < s.D / 2; i++) {
                    double *a = &qkv[size_t((b * s.T + t) * s.wide() + head * s.D + i)], *c = a + s.D / 2, x = *a,
                           y = *c;
                    const double angle = sign * double(first + t) / std::pow(10000.0, 2.0 * double(i) / double(s.D));
                    *a = x * std::cos(angle) - y * std::sin(angle);
                    *c = y * std::cos(angle) + x * std::sin(angle);
                }
    return qkv;
}

// -------------------------------------------------------------------------------------------------------------- the
// ops
struct Forward { Vector out, lse; };

Forward run_forward(DType act, const Vector& qkv, const Size& s, const ContextOptions& options = {}) {
    Device device(options);
    Tensor x = device.tensor(act, {s.B, s.T, s.wide()}, qkv, "qkv"), out = device.tensor(act, {s.B, s.T, s.C()}, "out");
    Tensor lse = device.tensor(statistics_dtype(act), {s.B, s.H, s.T}, "lse");
    attention_forward(out, lse, x, s.H, device.ctx);
    return {device.read(out), device.read(lse)};
}

Vector run_backward(DType act, const Vector& dout, const Vector& qkv, const Size& s,
                    const ContextOptions& options = {}) {
    Device device(options);
    Tensor x = device.tensor(act, {s.B, s.T, s.wide()}, qkv, "qkv"), out = device.tensor(act, {s.B, s.T, s.C()}, "out");
    Tensor lse = device.tensor(statistics_dtype(act), {s.B, s.H, s.T}, "lse");
    Tensor g = device.tensor(act, {s.B, s.T, s.C()}, dout, "dout"),
           dx = device.tensor(act, {s.B, s.T, s.wide()}, "dqkv");
    attention_forward(out, lse, x, s.H, device.ctx);
    attention_backward(dx, g, x, out, lse, s.H, device.ctx);
    return device.read(dx);
}

// Feeds qkv to attention_extend in pieces of these lengths.
Vector run_extend(DType act, const Vector& qkv, const Size& s, const std::vector<int64_t>& pieces, int64_t context) {
    Device device;
    Tensor keys = device.tensor(act, {s.B, context, s.C()}, "keys"),
           values = device.tensor(act, {s.B, context, s.C()}, "values");
    Vector result(size_t(s.B * s.T * s.C()));
    Tensor x, out;
    int64_t first = 0;
    for (int64_t n : pieces) {
        Vector piece;
        for (int64_t b = 0; b < s.B; b++)
            piece.insert(piece.end(), qkv.begin() + (b * s.T + first) * s.wide(),
                         qkv.begin() + (b * s.T + first + n) * s.wide());
        if (first == 0 || x.shape[1] != n) {
            x = device.tensor(act, {s.B, n, s.wide()}, "qkv");
            out = device.tensor(act, {s.B, n, s.C()}, "out");
        }
        device.write(x, piece);
        attention_extend(out, keys, values, x, first, s.H, device.ctx);
        const Vector got = device.read(out);
        for (int64_t b = 0; b < s.B; b++)
            std::copy_n(got.begin() + b * n * s.C(), n * s.C(), result.begin() + (b * s.T + first) * s.C());
        first += n;
    }
    return result;
}

// T: 1, a few, around the vector length, around one and two tiles. D: odd, below, at and above the vector length.
const std::vector<Size> sizes = {{2, 1, 2, 8},    {3, 7, 3, 8},     {2, 13, 4, 5}, {4, 17, 2, 18},
                                 {1, 64, 1, 32},  {2, 65, 2, 33},   {1, 63, 2, 1}, {1, 128, 1, 64},
                                 {1, 130, 2, 16}, {1, 200, 1, 128}, {2, 80, 1, 40}};

std::string text(const Size& s) { return str("B ", s.B, " T ", s.T, " H ", s.H, " D ", s.D); }

// What storing out, lse and the inputs' products in `act` costs; scores have size 1, sums run over D, then T.
double limit(DType act, const Size& s) { return tolerance(act, s.T + s.D); }

TEST(Attention, ForwardIsTheDefinition) {
    for (DType act : all_act)
        for (const Size& s : sizes) {
            const Vector qkv = rounded(act, random_vector(s.B * s.T * s.wide(), 1, 2));
            Vector lse;
            const Vector out = forward_oracle(qkv, s, &lse);
            const Forward got = run_forward(act, qkv, s);
            EXPECT_TRUE(close(got.out, out, limit(act, s))) << name_of(act) << " " << text(s);
            EXPECT_TRUE(close(got.lse, lse, limit(statistics_dtype(act), s))) << name_of(act) << " " << text(s);
        }
}

TEST(Attention, BackwardIsTheChainRule) {
    for (DType act : all_act)
        for (const Size& s : sizes) {
            const Vector qkv = rounded(act, random_vector(s.B * s.T * s.wide(), 2, 2));
            const Vector dout = rounded(act, random_vector(s.B * s.T * s.C(), 3));
            // delta = <dout, out> sees the stored out: its rounding, sqrt(D) times, comes on top for bf16.
            const double tol = 4 * limit(act, s) + (act == DType::bf16 ? std::sqrt(double(s.D)) * roundoff(act) : 0);
            EXPECT_TRUE(close(run_backward(act, dout, qkv, s), backward_oracle(dout, qkv, s), tol))
                << name_of(act) << " " << text(s);
        }
}

TEST(Attention, BackwardIsTheFiniteDifference) {
    for (const Size& s : {Size{1, 5, 2, 3}, Size{1, 9, 1, 4}}) {
        const Vector qkv = random_vector(s.T * s.wide(), 4, 2), dout = random_vector(s.T * s.C(), 5);
        Device device;
        Tensor x = device.tensor(DType::f64, {1, s.T, s.wide()}, "qkv"),
               out = device.tensor(DType::f64, {1, s.T, s.C()}, "out");
        Tensor lse = device.tensor(DType::f64, {1, s.H, s.T}, "lse");
        auto loss = [&](const Vector& values) {
            device.write(x, values);
            attention_forward(out, lse, x, s.H, device.ctx);
            return dot(device.read(out), dout);
        };
        const Vector want = numeric_gradient(loss, qkv);
        EXPECT_TRUE(close(run_backward(DType::f64, dout, qkv, s), want, 1e-6)) << text(s);
    }
}

TEST(Attention, LongSequence) {
    const Size s{1, 1025, 1, 24};
    const Vector qkv = rounded(DType::f32, random_vector(s.T * s.wide(), 6, 2)), dout = random_vector(s.T * s.C(), 7);
    EXPECT_TRUE(close(run_forward(DType::f32, qkv, s).out, forward_oracle(qkv, s), limit(DType::f32, s)));
    EXPECT_TRUE(close(run_backward(DType::f32, dout, qkv, s), backward_oracle(dout, qkv, s), 4 * limit(DType::f32, s)));
}

TEST(Attention, HugeScoresDoNotOverflow) {
    const Size s{1, 150, 1, 16};
    Vector qkv = random_vector(s.T * s.wide(), 8);
    for (int64_t t = 0; t < s.T; t++)
        for (int64_t c = 0; c < 2 * s.C(); c++) qkv[size_t(t * s.wide() + c)] *= 85;  // scores up to about 1e4
    qkv = rounded(DType::f32, qkv);
    const Vector dout = random_vector(s.T * s.C(), 9);
    Vector lse;
    const Vector out = forward_oracle(qkv, s, &lse);
    EXPECT_GT(*std::max_element(lse.begin(), lse.end()), 5e3);
    // A score of 1e4 in float is known to 1e4 eps sqrt(D): that is the relative error of its probability.
    const double tol = 1e4 * tolerance(DType::f32, s.D);
    const Forward got = run_forward(DType::f32, qkv, s);
    EXPECT_TRUE(close(got.out, out, tol));
    EXPECT_TRUE(close(got.lse, lse, limit(DType::f32, s)));
    EXPECT_TRUE(close(run_backward(DType::f32, dout, qkv, s), backward_oracle(dout, qkv, s), 4 * tol));
    EXPECT_TRUE(close(run_forward(DType::f64, qkv, s).out, out, 1e4 * tolerance(DType::f64, s.D)));
}

TEST(Attention, LaterTokensLeaveEarlierOutputsBitEqual) {
    for (DType act : all_act) {
        const Size s{1, 150, 2, 24};
        const Vector qkv = random_vector(s.T * s.wide(), 10, 2), other = random_vector(s.T * s.wide(), 11, 5);
        const Vector full = run_forward(act, qkv, s).out;
        for (int64_t keep : {1, 20, 64, 100, 149}) {
            Vector changed = other;
            std::copy_n(qkv.begin(), keep * s.wide(), changed.begin());
            Vector out = run_forward(act, changed, s).out;
            EXPECT_TRUE(std::equal(out.begin(), out.begin() + keep * s.C(), full.begin()))
                << name_of(act) << " " << keep;
            EXPECT_FALSE(std::equal(out.begin(), out.begin() + (keep + 1) * s.C(), full.begin()))
                << name_of(act) << " " << keep;
            // A sequence that ends there gives the same bits too.
            out = run_forward(act, Vector(qkv.begin(), qkv.begin() + keep * s.wide()), {1, keep, s.H, s.D}).out;
            EXPECT_TRUE(std::equal(out.begin(), out.end(), full.begin())) << name_of(act) << " " << keep;
        }
    }
}

TEST(Attention, GradientsOfLaterOutputsOnlyReachEarlierTokens) {
    const Size s{1, 100, 1, 16};
    Vector dout(size_t(s.T * s.C()));
    for (int64_t d = 0; d < s.C(); d++) dout[size_t(70 * s.C() + d)] = double(d + 1);
    const Vector dqkv = run_backward(DType::f32, dout, random_vector(s.T * s.wide(), 12), s);
    for (int64_t t = 0; t < s.T; t++)
        for (int64_t c = 0; c < s.wide(); c++) {
            const double g = dqkv[size_t(t * s.wide() + c)];
            EXPECT_EQ(g != 0, c < s.C() ? t == 70 : t <= 70) << t << " " << c;
        }
}

TEST(Attention, ExtendEqualsForward) {
    for (DType act : all_act)
        for (const Size& s : {Size{3, 12, 2, 5}, Size{2, 150, 2, 24}}) {
            const Vector qkv = rounded(act, random_vector(s.B * s.T * s.wide(), 13, 2)),
                         want = run_forward(act, qkv, s).out;
            const std::vector<int64_t> ones(size_t(s.T), 1);
            EXPECT_TRUE(close(run_extend(act, qkv, s, ones, s.T), want, limit(act, s)))
                << name_of(act) << " " << text(s);
            EXPECT_TRUE(close(run_extend(act, qkv, s, {3, 1, s.T - 4}, s.T + 5), want, limit(act, s)))
                << name_of(act) << text(s);
            EXPECT_EQ(run_extend(act, qkv, s, {s.T}, s.T), want) << "one prompt takes the same path: bit-equal";
            if (s.T < 150) continue;
            EXPECT_EQ(run_extend(act, qkv, s, {70, 11, 69}, 200), want) << "and so do long pieces";
        }
}

TEST(Attention, RopeTurnsPairs) {
    const Size s{2, 9, 3, 10};
    for (DType act : all_act)
        for (int64_t first : {0, 1000}) {
            const Vector qkv = rounded(act, random_vector(s.B * s.T * s.wide(), 14));
            const double tol = tolerance(act, 2) + double(first + s.T) * 0x1p-52;  // rounding of the angle
            Device device;
            Tensor x = device.tensor(act, {s.B, s.T, s.wide()}, qkv, "qkv");
            rope(x, s.H, first, false, device.ctx);
            EXPECT_TRUE(close(device.read(x), rope_oracle(qkv, s, first, 1), tol)) << name_of(act);
            device.write(x, qkv);
            rope(x, s.H, first, true, device.ctx);
            EXPECT_TRUE(close(device.read(x), rope_oracle(qkv, s, first, -1), tol)) << name_of(act);
        }
}

TEST(Attention, RopeBackwardIsTheInverse) {  // a rotation's transpose: <rope x, y> = <x, inverse y>
    const Size s{1, 6, 2, 4};
    const Vector x = random_vector(s.T * s.wide(), 15), y = random_vector(s.T * s.wide(), 16);
    Device device;
    Tensor a = device.tensor(DType::f64, {s.B, s.T, s.wide()}, x, "x"),
           b = device.tensor(DType::f64, {s.B, s.T, s.wide()}, y, "y");
    rope(a, s.H, 5, false, device.ctx);
    rope(b, s.H, 5, true, device.ctx);
    EXPECT_NEAR(dot(device.read(a), y), dot(x, device.read(b)), 1e-12);
}

TEST(Attention, NaNReachesEveryLaterOutput) {
    const Size s{1, 100, 1, 16};
    for (int part = 0; part < 3; part++) {
        Vector qkv = random_vector(s.T * s.wide(), 17);
        qkv[size_t(30 * s.wide() + part * s.C() + 3)] = NAN;
        const Vector out = run_forward(DType::f32, qkv, s).out;
        for (int64_t t = 30; t < (part == 0 ? 31 : s.T); t++)
            EXPECT_TRUE(std::isnan(out[size_t(t * s.C() + 3)])) << part << " " << t;
        for (int64_t t = 0; t < 16; t++) EXPECT_FALSE(std::isnan(out[size_t(t * s.C() + 3)])) << part << " " << t;
        const Vector dqkv = run_backward(DType::f32, Vector(size_t(s.T * s.C()), 1.0), qkv, s);
        EXPECT_TRUE(std::any_of(dqkv.begin(), dqkv.end(), [](double g) { return std::isnan(g); }));
    }
}

TEST(Attention, ThreadsDoNotChangeBits) {
    const Size s{3, 70, 3, 20};
    ContextOptions one, two;
    one.threads = 1, two.threads = 2;
    two.guard = true;  // and memory is readable where the ops read it
    for (DType act : all_act) {
        const Vector qkv = random_vector(s.B * s.T * s.wide(), 18), dout = random_vector(s.B * s.T * s.C(), 19);
        EXPECT_EQ(run_forward(act, qkv, s, one).out, run_forward(act, qkv, s, two).out);
        EXPECT_EQ(run_forward(act, qkv, s, two).lse, run_forward(act, qkv, s, two).lse);
        EXPECT_EQ(run_backward(act, dout, qkv, s, one), run_backward(act, dout, qkv, s, two));
    }
}

TEST(Attention, CountingAddsUpAndNothingIsAZeroSize) {
    ContextOptions options;
    options.counting = true;
    options.threads = 2;
    Context ctx(options);
    auto fake = [&](Shape shape, const char* name) {
        return Tensor(device_alloc(shape.numel() * 4, ctx), DType::f32, shape, name);
    };
    attention_forward(fake({2, 3, 8}, "out"), fake({2, 2, 3}, "lse"), fake({2, 3, 24}, "qkv"), 2, ctx);
    EXPECT_EQ(ctx.flops, 4 * (2 * 2 * 6) * 4);  // 4 D for each of B H T (T+1) / 2 pairs
    EXPECT_GT(ctx.workspace_needed, 0);
    for (int64_t T : {int64_t(0), int64_t(2)}) {
        const Size s{T ? 0 : 2, T, 2, 4};
        EXPECT_TRUE(run_forward(DType::f32, {}, s).out.empty());
        EXPECT_TRUE(run_backward(DType::f32, {}, {}, s).empty());
    }
}

TEST(Attention, WrongShapesAreNamed) {
    Device device;
    auto make = [&](Shape shape, const char* name) { return device.tensor(DType::f32, shape, name); };
    Tensor qkv = make({1, 4, 24}, "the_qkv"), out = make({1, 4, 8}, "out"), lse = make({1, 2, 4}, "lse"),
           odd = make({1, 4, 25}, "odd");
    Tensor wrong = make({1, 4, 9}, "wrong"), cache = make({1, 6, 8}, "cache");
    Context& ctx = device.ctx;
    EXPECT_TRUE(refuses([&] { attention_forward(out, lse, odd, 2, ctx); }, "odd"));
    EXPECT_TRUE(refuses([&] { attention_forward(out, lse, qkv, 3, ctx); }, "3 heads"));
    EXPECT_TRUE(refuses([&] { attention_forward(wrong, lse, qkv, 2, ctx); }, "wrong"));
    EXPECT_TRUE(refuses([&] { attention_forward(out, wrong, qkv, 2, ctx); }, "wrong"));
    EXPECT_TRUE(refuses([&] { attention_backward(wrong, out, qkv, out, lse, 2, ctx); }, "wrong"));
    EXPECT_TRUE(refuses([&] { attention_extend(out, cache, cache, qkv, 3, 2, ctx); }, "cache"));
    EXPECT_TRUE(refuses([&] { rope(qkv, 8, 0, false, ctx); }, "odd size 1"));
}

}  // namespace
}  // namespace llmc::test
