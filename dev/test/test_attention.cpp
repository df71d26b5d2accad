// attention_forward, attention_backward, attention_extend and rope against plain float64 loops and finite differences.
#include "dev/test/attention_oracle.h"

namespace llmc::test {
namespace {

// ------------------------------------------------------------------------------------------------------------ the ops
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

// T: 1, a few, around the vector length, around one and two tiles of 64. D: odd, below, at and above the vector length
// and the sizes that CUDA kernels pad to (32, 64, 128); rows that are and are not multiples of 16 bytes. Heads of more
// than 128 go a way of their own in bf16.
const std::vector<Size> large = {{2, 1, 2, 8},    {3, 7, 3, 8},     {2, 13, 4, 5},   {4, 17, 2, 18},  {1, 64, 1, 32},
                                 {2, 65, 2, 33},  {1, 63, 2, 1},    {1, 128, 1, 64}, {1, 130, 2, 16}, {1, 200, 1, 128},
                                 {2, 80, 1, 40},  {1, 193, 2, 64},  {1, 70, 1, 136}, {1, 66, 1, 260}};
const std::vector<Size> small = {{2, 1, 1, 8}, {1, 13, 2, 5}, {1, 65, 1, 33}, {1, 66, 2, 16}, {1, 130, 1, 40},
                                 {1, 66, 1, 72}, {1, 3, 1, 136}, {1, 2, 1, 259}};
const std::vector<Size>& sizes() { return small_sizes() ? small : large; }

std::string text(const Size& s) { return str("B ", s.B, " T ", s.T, " H ", s.H, " D ", s.D); }

// What storing out, lse and the inputs' products in `act` costs; scores have size 1, sums run over D, then T.
double limit(DType act, const Size& s) { return tolerance(act, s.T + s.D); }

TEST(Attention, ForwardIsTheDefinition) {
    for (DType act : all_act)
        for (const Size& s : sizes()) {
            const Vector qkv = rounded(act, random_vector(s.B * s.T * s.wide(), 1, 2));
            Sums out, lse;
            out.value = forward_oracle(qkv, s, &lse.value), out.terms = forward_terms(qkv, s, act, &lse.terms);
            const Forward got = run_forward(act, qkv, s);
            const DType f = statistics_dtype(act);
            EXPECT_TRUE(close_sums(got.out, out, act, limit(act, s))) << name_of(act) << " " << text(s);
            EXPECT_TRUE(close_sums(got.lse, lse, f, limit(f, s))) << name_of(act) << " " << text(s);
        }
}

TEST(Attention, BackwardIsTheChainRule) {
    for (DType act : all_act)
        for (const Size& s : sizes()) {
            const Vector qkv = rounded(act, random_vector(s.B * s.T * s.wide(), 2, 2));
            const Vector dout = rounded(act, random_vector(s.B * s.T * s.C(), 3));
            // delta = <dout, out> sees the stored out: its rounding, sqrt(D) times, comes on top for bf16.
            const double tol = 4 * limit(act, s) + (act == DType::bf16 ? std::sqrt(double(s.D)) * roundoff(act) : 0);
            const Sums want{backward_oracle(dout, qkv, s), backward_terms(dout, qkv, s, act)};
            EXPECT_TRUE(close_sums(run_backward(act, dout, qkv, s), want, act, tol)) << name_of(act) << " " << text(s);
        }
}

TEST(Attention, BackwardIsTheFiniteDifference) {  // of the forward oracle: no chain rule involved
    for (DType act : all_act)
        for (const Size& s : {Size{1, 5, 2, 3}, Size{1, 9, 1, 4}}) {
            const Vector qkv = rounded(act, random_vector(s.T * s.wide(), 4, 2));
            const Vector dout = rounded(act, random_vector(s.T * s.C(), 5));
            const Vector want =
                numeric_gradient([&](const Vector& x) { return dot(forward_oracle(x, s), dout); }, qkv);
            const double tol = std::max(1e-6, 4 * limit(act, s));
            EXPECT_TRUE(close(run_backward(act, dout, qkv, s), want, tol)) << name_of(act) << " " << text(s);
        }
}

TEST(Attention, LongSequence) {
    const Size s{1, small_sizes() ? 193 : 1025, 1, 24};
    const Vector qkv = rounded(DType::f32, random_vector(s.T * s.wide(), 6, 2)), dout = random_vector(s.T * s.C(), 7);
    EXPECT_TRUE(close(run_forward(DType::f32, qkv, s).out, forward_oracle(qkv, s), limit(DType::f32, s)));
    EXPECT_TRUE(close(run_backward(DType::f32, dout, qkv, s), backward_oracle(dout, qkv, s), 4 * limit(DType::f32, s)));
}

TEST(Attention, HugeScoresDoNotOverflow) {
    const Size s{1, small_sizes() ? 70 : 150, 1, 16};
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
    if (!backend_supports(DType::f64)) return;
    EXPECT_TRUE(close(run_forward(DType::f64, qkv, s).out, out, 1e4 * tolerance(DType::f64, s.D)));
}

TEST(Attention, LaterTokensLeaveEarlierOutputsBitEqual) {
    for (DType act : all_act) {
        const Size s{1, small_sizes() ? 80 : 150, small_sizes() ? 1 : 2, 24};
        const Vector qkv = random_vector(s.T * s.wide(), 10, 2), other = random_vector(s.T * s.wide(), 11, 5);
        const Vector full = run_forward(act, qkv, s).out;
        for (int64_t keep : small_sizes() ? std::vector<int64_t>{20, 64} : std::vector<int64_t>{1, 20, 64, 100, 149}) {
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
    for (DType act : all_act) {
        const Vector dqkv = run_backward(act, dout, random_vector(s.T * s.wide(), 12), s);
        for (int64_t t = 0; t < s.T; t++)
            for (int64_t c = 0; c < s.wide(); c++) {
                const double g = dqkv[size_t(t * s.wide() + c)];
                EXPECT_EQ(g != 0, c < s.C() ? t == 70 : t <= 70) << name_of(act) << " " << t << " " << c;
            }
    }
}

// Pieces may add up in another order, so two results stored in bf16 may differ by a rounding each: both are held
// against the definition. Heads of 264: so large that few new positions are no case of their own on CUDA (33 packs).
TEST(Attention, ExtendEqualsForward) {
    const std::vector<Size> all = {{3, 12, 2, 5}, {1, 9, 1, 264}, {2, small_sizes() ? 75 : 150, 2, 24}};
    for (DType act : all_act)
        for (const Size& s : all) {
            const Vector qkv = rounded(act, random_vector(s.B * s.T * s.wide(), 13, 2)),
                         full = run_forward(act, qkv, s).out;
            const Sums want{forward_oracle(qkv, s), forward_terms(qkv, s, act)};
            std::vector<int64_t> steps(size_t(s.T), 1);  // one by one, or a long piece and then one by one
            if (small_sizes() && s.T > 70) steps = {s.T - 3, 1, 1, 1};
            EXPECT_TRUE(close_sums(run_extend(act, qkv, s, steps, s.T), want, act, limit(act, s)))
                << name_of(act) << " " << text(s);
            EXPECT_TRUE(close_sums(run_extend(act, qkv, s, {3, 1, s.T - 4}, s.T + 5), want, act, limit(act, s)))
                << name_of(act) << text(s);
            EXPECT_EQ(run_extend(act, qkv, s, {s.T}, s.T), full) << "one prompt takes the same path: bit-equal";
            if (s.T < 75) continue;
            EXPECT_EQ(run_extend(act, qkv, s, {s.T / 2, 11, s.T - s.T / 2 - 11}, 200), full) << "and so do long pieces";
        }
}

// What is stored for other sequences and past the last position is left alone: caches are full of NaN before.
TEST(Attention, ExtendWritesTheNewRowsOnly) {
    for (DType act : all_act)
        for (int64_t D : {4, 5}) {
            const Size s{2, 2, 3, D};
            const int64_t context = 5, first = 1;
            const Vector qkv = rounded(act, random_vector(s.B * s.T * s.wide(), 20));
            Device device;
            Tensor x = device.tensor(act, {s.B, s.T, s.wide()}, qkv, "qkv");
            Tensor keys = device.tensor(act, {s.B, context, s.C()}, "keys"),
                   values = device.tensor(act, {s.B, context, s.C()}, "values"),
                   out = device.tensor(act, {s.B, s.T, s.C()}, "out");
            attention_extend(out, keys, values, x, first, s.H, device.ctx);
            const Vector k = device.read(keys), v = device.read(values);
            for (int64_t b = 0; b < s.B; b++)
                for (int64_t t = 0; t < context; t++)
                    for (int64_t c = 0; c < s.C(); c++) {
                        const size_t i = size_t((b * context + t) * s.C() + c);
                        const bool fresh = t >= first && t < first + s.T;
                        EXPECT_EQ(std::isnan(k[i]), !fresh) << b << " " << t << " " << c;
                        EXPECT_EQ(std::isnan(v[i]), !fresh) << b << " " << t << " " << c;
                        if (!fresh) continue;
                        EXPECT_EQ(k[i], at(qkv, s, 1, b, t - first, 0, c));
                        EXPECT_EQ(v[i], at(qkv, s, 2, b, t - first, 0, c));
                    }
        }
}

// Half a head is and is not a multiple of 16 bytes; more sequences, and more pairs, than one CUDA block takes; V stays.
TEST(Attention, RopeTurnsPairs) {
    for (DType act : all_act)
        for (const Size& s : {Size{2, 9, 3, 10}, Size{9, 2, 2, 32}, Size{1, 1, 1, 2064}, Size{1, 2, 1, 2058}})
            for (int64_t first : {0, 1000, 100000}) {
                const Vector qkv = rounded(act, random_vector(s.B * s.T * s.wide(), 14));
                const double tol = tolerance(act, 2) + double(first + s.T) * 0x1p-52;  // rounding of the angle
                const std::string what = str(name_of(act), " ", text(s), " first ", first);
                Device device;
                Tensor x = device.tensor(act, {s.B, s.T, s.wide()}, qkv, "qkv");
                rope(x, s.H, first, false, device.ctx);
                EXPECT_TRUE(close(device.read(x), rope_oracle(qkv, s, first, 1), tol)) << what;
                device.write(x, qkv);
                rope(x, s.H, first, true, device.ctx);
                EXPECT_TRUE(close(device.read(x), rope_oracle(qkv, s, first, -1), tol)) << what;
            }
}

TEST(Attention, RopeBackwardIsTheInverse) {  // a rotation's transpose: <rope x, y> = <x, inverse y>
    const Size s{1, 6, 2, 4};
    for (DType act : all_act) {
        const Vector x = rounded(act, random_vector(s.T * s.wide(), 15)),
                     y = rounded(act, random_vector(s.T * s.wide(), 16));
        Device device;
        Tensor a = device.tensor(act, {s.B, s.T, s.wide()}, x, "x"),
               b = device.tensor(act, {s.B, s.T, s.wide()}, y, "y");
        rope(a, s.H, 5, false, device.ctx);
        rope(b, s.H, 5, true, device.ctx);
        // 2 x 144 elements of size 1, each stored with an error of one roundoff or less
        const double tol = act == DType::f64 ? 1e-12 : 2 * std::sqrt(double(s.T * s.wide())) * tolerance(act);
        EXPECT_NEAR(dot(device.read(a), y), dot(x, device.read(b)), tol) << name_of(act);
    }
}

TEST(Attention, NaNReachesEveryLaterOutput) {
    const Size s{1, 100, 1, 16};
    for (DType act : {DType::f32, DType::bf16})
        for (int part = 0; part < 3; part++) {
            Vector qkv = random_vector(s.T * s.wide(), 17);
            qkv[size_t(30 * s.wide() + part * s.C() + 3)] = NAN;
            const Vector out = run_forward(act, qkv, s).out;
            for (int64_t t = 30; t < (part == 0 ? 31 : s.T); t++)
                EXPECT_TRUE(std::isnan(out[size_t(t * s.C() + 3)])) << name_of(act) << " " << part << " " << t;
            for (int64_t t = 0; t < 16; t++)
                EXPECT_FALSE(std::isnan(out[size_t(t * s.C() + 3)])) << name_of(act) << " " << part << " " << t;
            const Vector dqkv = run_backward(act, Vector(size_t(s.T * s.C()), 1.0), qkv, s);
            EXPECT_TRUE(std::any_of(dqkv.begin(), dqkv.end(), [](double g) { return std::isnan(g); }));
            // one position at a time, 30 to 33
            if (part == 0) continue;
            const Size few{1, 34, 1, 16};
            std::vector<int64_t> pieces = {30, 1, 1, 1, 1};
            const Vector tail = run_extend(act, Vector(qkv.begin(), qkv.begin() + few.T * s.wide()), few, pieces, 34);
            for (int64_t t = 30; t < few.T; t++)
                EXPECT_TRUE(std::isnan(tail[size_t(t * s.C() + 3)])) << name_of(act) << " " << part << " " << t;
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
    const Tensor out = fake({2, 3, 8}, "out"), lse = fake({2, 2, 3}, "lse"), qkv = fake({2, 3, 24}, "qkv");
    attention_forward(out, lse, qkv, 2, ctx);
    EXPECT_EQ(ctx.flops, 4 * (2 * 2 * 6) * 4);  // 4 D for each of B H T (T+1) / 2 pairs
    attention_backward(fake({2, 3, 24}, "dqkv"), fake({2, 3, 8}, "dout"), qkv, out, lse, 2, ctx);
    EXPECT_EQ(ctx.flops, 14 * (2 * 2 * 6) * 4);
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
