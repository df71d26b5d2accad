// The ops of Muon against plain float64 loops.
#include "dev/test/optimizer_test.h"

namespace llmc {
namespace {

using namespace test;

// Three steps, the second of them skipped; several chunks, and addresses where no 16 bytes begin.
TEST(Muon, MomentumMatchesPlainLoops) {
    const int64_t n = small_sizes() ? 1003 : 40003;
    const double b = 0.9, scale = 0.25;
    for (DType dtype : arithmetic_types)
        for (int64_t skip : {0, 1}) {
            Device d;
            auto slice_of = [&](const char* name) {
                return d.tensor(dtype, {n + 1}, Vector(size_t(n + 1)), name).slice(skip, n + skip);
            };
            Tensor direction = slice_of("direction"), m = slice_of("m"), grad = slice_of("grad");
            Vector want(static_cast<size_t>(n)), along(want);
            for (uint64_t s = 0; s < 3; s++) {
                const Vector g = rounded(dtype, random_vector(n, s));
                d.write(grad, g);
                d.write(direction, Vector(size_t(n), std::nan("")));
                StepState state;
                state.grad_scale = scale, state.ok = s != 1;
                muon_momentum(direction, m, grad, make_step(d, state), b, d.ctx);
                for (size_t i = 0; i < want.size(); i++) {
                    if (state.ok) want[i] = b * want[i] + (1 - b) * scale * g[i];
                    along[i] = state.ok ? b * want[i] + (1 - b) * scale * g[i] : 0;
                }
                EXPECT_TRUE(close(d.read(m), want, 8 * roundoff(dtype))) << "step " << s;
                EXPECT_TRUE(close(d.read(direction), along, state.ok ? 8 * roundoff(dtype) : 0)) << "step " << s;
            }
        }
}

struct Matrices {
    int64_t n, rows, columns;
    int64_t numel() const { return n * rows * columns; }
};

TEST(Muon, NormsAreDividedOut) {
    for (const Matrices& size : few_or_all<Matrices>({{3, 5, 7}, {1, 1, 1}, {0, 3, 3}, {2, 0, 3}, {2, 131, 67}},
                                                     {{1, 301, 257}, {5, 64, 513}}))
        for (DType dtype : arithmetic_types) {
            Device d;
            Vector start = rounded(dtype, random_vector(size.numel(), 1)), want(start);
            const int64_t of_one = size.rows * size.columns;
            for (int64_t i = 0; i < of_one && size.n > 1; i++) start[size_t(i)] = 0;  // stays zero
            for (int64_t i = 0; i < size.n; i++) {
                double squares = 0;
                for (int64_t j = i * of_one; j < (i + 1) * of_one; j++) squares += start[size_t(j)] * start[size_t(j)];
                for (int64_t j = i * of_one; j < (i + 1) * of_one; j++)
                    want[size_t(j)] = start[size_t(j)] / (std::sqrt(squares) + 1e-7);
            }
            Tensor x = d.tensor(dtype, {size.n, size.rows, size.columns}, start, "x");
            normalize_matrices(x, d.ctx);
            // The squares are added in double, in another order.
            const double sums = 8 * std::sqrt(double(std::max<int64_t>(1, of_one))) * roundoff(DType::f64);
            EXPECT_TRUE(close(d.read(x), want, 4 * roundoff(dtype) + sums)) << size.rows << " x " << size.columns;
        }
}

// The 1e-7 is seen where the norm is not much larger.
TEST(Muon, TinyMatricesStayTiny) {
    Device d;
    Tensor x = d.tensor(DType::f32, {1, 1, 2}, {3e-7, 4e-7}, "x");
    normalize_matrices(x, d.ctx);
    EXPECT_TRUE(close(d.read(x), {0.5, 4.0 / 6}, 8 * roundoff(DType::f32)));
}

TEST(Muon, PolynomialMatchesPlainLoops) {
    const Polynomial p{3.5, -4.75, 2.125};
    for (const Matrices& size : few_or_all<Matrices>({{3, 5, 5}, {0, 2, 2}, {1, 1, 1}, {2, 33, 33}}, {{2, 259, 259}}))
        for (DType dtype : arithmetic_types) {
            Device d;
            const Vector s = rounded(dtype, random_vector(size.numel(), 1)),
                         square = rounded(dtype, random_vector(size.numel(), 2));
            Sums want{Vector(s.size()), Vector(s.size())};
            const int64_t k = size.columns;
            for (size_t i = 0; i < s.size(); i++) {
                const bool diagonal = int64_t(i) / k % k == int64_t(i) % k;
                for (double term : {diagonal ? p.a : 0, p.b * s[i], p.c * square[i]})
                    want.value[i] += term, want.terms[i] += std::abs(term);
            }
            Tensor out = d.tensor(dtype, {size.n, k, k}, square, "out");
            matrix_polynomial(out, d.tensor(dtype, {size.n, k, k}, s, "s"), p, d.ctx);
            EXPECT_TRUE(within(d.read(out), want.value, sum_bounds(dtype, want))) << k;
        }
}

// One update, of n elements of a unit that begin at `first`.
struct Updated {
    Vector param, copy;
};
Updated update(DType dtype, const Vector& start, const Vector& along, int64_t first, int64_t n, MuonUpdate options,
               const StepState& state) {
    Device d;
    auto part = [&](const Vector& v) { return Vector(v.begin() + first, v.begin() + first + n); };
    Tensor p = d.tensor(dtype, {n}, part(start), "p"), copy = d.tensor(DType::bf16, {n}, "copy");
    Tensor direction = d.tensor(statistics_dtype(dtype), {n}, part(along), "direction");
    options.first_index = first;
    muon_update(p, copy, direction, make_step(d, state), options, d.ctx);
    return {d.read(p), d.read(copy)};
}

TEST(Muon, UpdateMatchesItsFormula) {
    const int64_t n = small_sizes() ? 1003 : 40003;
    StepState state;
    state.lr = 0.125;
    const MuonUpdate options{.scale = 0.75, .weight_decay = 0.5};
    for (DType dtype : all_act) {
        const Vector start = rounded(dtype, random_vector(n, 1)),
                     along = rounded(statistics_dtype(dtype), random_vector(n, 2));
        Vector want(start);
        for (size_t i = 0; i < want.size(); i++)
            want[i] = start[i] * (1 - state.lr * options.weight_decay) - state.lr * options.scale * along[i];
        state.ok = 1;
        const Updated got = update(dtype, start, along, 0, n, options, state);
        EXPECT_TRUE(close(got.param, want, 2 * roundoff(dtype) + 2 * roundoff_of_sums(dtype)));
        // Of f64 the copy is made by way of f32.
        EXPECT_TRUE(close(got.copy, rounded(DType::bf16, rounded(statistics_dtype(dtype), got.param)),
                          dtype == DType::f64 ? 2 * roundoff(DType::bf16) : 0));
        state.ok = 0;
        EXPECT_EQ(update(dtype, start, along, 0, n, options, state).param, start);
    }
}

// As AdamW's: bit for bit what ops.h says, and slices of a unit are rounded like the whole, wherever they begin.
TEST(Muon, StochasticRoundingFollowsItsFormula) {
    const int64_t n = 1003;
    StepState state;
    state.lr = 0.125, state.t = 70000000007;
    const MuonUpdate options{.scale = 0.5, .weight_decay = 1, .stochastic_rounding = true, .seed = 0x123456789abcdef0};
    Vector start = rounded(DType::bf16, random_vector(n, 7, 2.0)), along(start.size()), want(start);
    for (size_t i = 0; i < want.size(); i++) {
        along[i] = double(i % 64) / 64;  // exact products: a fused multiply-add has the same bits
        want[i] = rounded_at_random(float(start[i] * 0.875 - 0.0625 * along[i]), i, options.seed, uint64_t(state.t));
    }
    EXPECT_EQ(update(DType::bf16, start, along, 0, n, options, state).param, want);
    for (int64_t cut : {400, 403}) {
        Updated parts = update(DType::bf16, start, along, 0, cut, options, state);
        const Updated rest = update(DType::bf16, start, along, cut, n - cut, options, state);
        parts.param.insert(parts.param.end(), rest.param.begin(), rest.param.end());
        EXPECT_EQ(parts.param, want);
    }
}

TEST(Muon, WrongTensorsAreNamed) {
    Device d;
    Tensor step = make_step(d), five = d.tensor(DType::f32, {5}, "five"), six = d.tensor(DType::f32, {6}, "six");
    Tensor half = d.tensor(DType::bf16, {5}, "half"), flat = d.tensor(DType::f32, {2, 3}, "flat");
    Tensor wide = d.tensor(DType::f32, {1, 2, 3}, "wide"), square = d.tensor(DType::f32, {1, 2, 2}, "square");
    EXPECT_TRUE(refuses([&] { muon_momentum(five, six, five, step, 0.9, d.ctx); }, "six"));
    EXPECT_TRUE(refuses([&] { muon_momentum(half, five, five, step, 0.9, d.ctx); }, "half"));
    EXPECT_TRUE(refuses([&] { muon_momentum(five, five, half, step, 0.9, d.ctx); }, "half"));
    EXPECT_TRUE(refuses([&] { normalize_matrices(flat, d.ctx); }, "flat"));
    EXPECT_TRUE(refuses([&] { matrix_polynomial(wide, wide, {}, d.ctx); }, "wide"));
    EXPECT_TRUE(refuses([&] { matrix_polynomial(wide, square, {}, d.ctx); }, "wide"));
    EXPECT_TRUE(refuses([&] { muon_update(five, {}, six, step, {}, d.ctx); }, "six"));
    EXPECT_TRUE(refuses([&] { muon_update(five, five, five, step, {}, d.ctx); }, "five"));
    EXPECT_TRUE(refuses([&] { muon_update(five, {}, five, five, {}, d.ctx); }, "five"));
}

TEST(Muon, AnUpdateThatIsNotFiniteIsReported) {
    const int64_t n = small_sizes() ? 5003 : 40003;
    const double inf = std::numeric_limits<double>::infinity();
    std::vector<DType> types = arithmetic_types;
    types.push_back(DType::bf16);
    for (DType dtype : types)
        for (const auto& [p, along, broken] : {std::tuple{1.0, 1.0, 0}, {inf, 1.0, 1}, {1.0, std::nan(""), 1}})
            for (int64_t place : {int64_t(0), n - 1})
                for (bool stochastic : {false, true}) {
                    if (stochastic && dtype != DType::bf16) continue;
                    Device d;
                    Vector params(size_t(n), 1), directions(size_t(n), 1);
                    params[size_t(place)] = p, directions[size_t(place)] = along;
                    Tensor param = d.tensor(dtype, {n}, params, "p"), step = make_step(d);
                    Tensor direction = d.tensor(dtype == DType::f64 ? dtype : DType::f32, {n}, directions, "direction");
                    muon_update(param, {}, direction, step, {.stochastic_rounding = stochastic}, d.ctx);
                    EXPECT_EQ(read_step(d, step).broken, broken) << p << ' ' << along << " at " << place;
                }
}

}  // namespace
}  // namespace llmc
