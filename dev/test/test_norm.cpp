// LayerNorm, RMSNorm and the residual addition against plain float64 loops and central differences.
#include "dev/test/reference.h"

namespace llmc {
namespace {

using namespace test;

struct NormOracle {
    int64_t rows, columns;
    Norm kind;
    double eps;
    Vector mean, rstd;

    Vector operator()(const Vector& x, const Vector& weight, const Vector& bias) {
        Vector out(x.size());
        mean.assign(size_t(rows), 0), rstd.assign(size_t(rows), 0);
        for (int64_t n = 0; n < rows; n++) {
            auto at = [&](int64_t c) { return size_t(n * columns + c); };
            // The mean of numbers that are not around zero: in more than double, which an op may sum in better order.
            long double sum = 0;
            if (kind == Norm::layernorm)
                for (int64_t c = 0; c < columns; c++) sum += x[at(c)];
            const double m = double(sum / static_cast<long double>(columns));
            double var = 0;
            for (int64_t c = 0; c < columns; c++) var += (x[at(c)] - m) * (x[at(c)] - m) / double(columns);
            mean[size_t(n)] = m, rstd[size_t(n)] = 1 / std::sqrt(var + eps);
            for (int64_t c = 0; c < columns; c++)
                out[at(c)] =
                    (x[at(c)] - m) / std::sqrt(var + eps) * weight[size_t(c)] + (bias.empty() ? 0 : bias[size_t(c)]);
        }
        return out;
    }
    // x - mean, in roundoffs: of x, and of the terms of the mean; times rstd.
    double terms(const Vector& x, int64_t n, int64_t c) const {
        double of_mean = 0;
        if (kind == Norm::layernorm)
            for (int64_t i = 0; i < columns; i++) of_mean += std::abs(x[size_t(n * columns + i)]) / double(columns);
        return (std::abs(x[size_t(n * columns + c)]) + of_mean) * rstd[size_t(n)];
    }
    // As operator(), with the sums of the terms' magnitudes.
    Sums sums(const Vector& x, const Vector& weight, const Vector& bias) {
        Sums out{(*this)(x, weight, bias), Vector(x.size())};
        for (int64_t n = 0; n < rows; n++)
            for (int64_t c = 0; c < columns; c++)
                out.terms[size_t(n * columns + c)] = terms(x, n, c) * std::abs(weight[size_t(c)]) +
                                                     (bias.empty() ? 0 : std::abs(bias[size_t(c)]));
        return out;
    }
};

struct Case {
    int64_t B, T, C;
};
// On the GPU: rows of 16 bytes at a time (C of 16, 40) or one element (C of 1, 17, 130), several rows at a time in a
// block or one (1032, 2056).
const std::vector<Case> cases = [] {
    std::vector<Case> all = {{2, 5, 1}, {3, 7, 16}, {1, 1, 17}, {0, 3, 16}};
    if (small_sizes()) all.insert(all.end(), {{2, 9, 40}, {1, 7, 130}, {1, 3, 1032}});
    else all.insert(all.end(), {{5, 29, 40}, {4, 33, 130}, {1, 3, 2056}});
    return all;
}();
constexpr double eps = 1e-5;

Vector sum_of(const Vector& a, const Vector& b) {
    Vector c = a;
    for (size_t i = 0; i < c.size(); i++) c[i] += b[i];
    return c;
}

// One row of numbers with a mean well away from zero.
Vector shifted(Vector v, double by) {
    for (double& x : v) x += by;
    return v;
}

TEST(Norm, ForwardMatchesPlainLoops) {
    for (DType act : all_act)
        for (const Case& k : cases)
            for (Norm kind : {Norm::layernorm, Norm::rmsnorm})
                for (bool with_bias : {true, false}) {
                    SCOPED_TRACE(str(name_of(act), " C", k.C, kind == Norm::layernorm ? " layernorm" : " rmsnorm"));
                    Vector x = rounded(act, shifted(random_vector(k.B * k.T * k.C, 1, 2.0), 0.5));
                    Vector w = rounded(act, random_vector(k.C, 2)),
                           b = rounded(act, random_vector(with_bias ? k.C : 0, 3));
                    NormOracle oracle{k.B * k.T, k.C, kind, eps, {}, {}};
                    const Sums want = oracle.sums(x, w, b);

                    Device d;
                    DType f = statistics_dtype(act);
                    Tensor tx = d.tensor(act, {k.B, k.T, k.C}, x, "x"), out = d.tensor(act, tx.shape, "out");
                    Tensor mean = kind == Norm::layernorm ? d.tensor(f, {k.B, k.T}, "mean") : Tensor();
                    Tensor rstd = d.tensor(f, {k.B, k.T}, "rstd"), weight = d.tensor(act, {k.C}, w, "weight");
                    Tensor bias = with_bias ? d.tensor(act, {k.C}, b, "bias") : Tensor();
                    norm_forward(out, mean, rstd, tx, weight, bias, kind, eps, d.ctx);
                    // At C = 1 layernorm divides rounding by sqrt(eps).
                    double tol = tolerance(act, k.C) + 4 * roundoff(f) / std::sqrt(eps) * (k.C == 1 ? 1 : 0);
                    const double of_rstd = error_of_positive_sum(f, k.C);
                    const Sums rstds = with_errors_of_factors({oracle.rstd, oracle.rstd}, f, of_rstd);
                    EXPECT_TRUE(close_sums(d.read(out), with_errors_of_factors(want, act, of_rstd), act, tol));
                    EXPECT_TRUE(close_sums(d.read(rstd), rstds, f, tolerance(f, k.C)));
                    if (mean) {
                        Sums means{oracle.mean, Vector(oracle.mean.size())};
                        for (size_t i = 0; i < x.size(); i++)
                            means.terms[i / size_t(k.C)] += std::abs(x[i]) / double(k.C);
                        EXPECT_TRUE(close_sums(d.read(mean), means, f, tolerance(f, k.C)));
                    }
                }
}

// The variance of numbers near 100 that differ by 0.01 is seen only if the mean is subtracted before squaring.
TEST(Norm, SmallVarianceFarFromZero) {
    Vector x = rounded(DType::f32, shifted(random_vector(3 * 48, 4, 0.01), 100.0)), w(48, 1.0), b(48, 0.0);
    NormOracle oracle{3, 48, Norm::layernorm, eps, {}, {}};
    Vector want = oracle(x, w, b);
    Device d;
    Tensor tx = d.tensor(DType::f32, {3, 48}, x, "x"), out = d.tensor(DType::f32, {3, 48}, "out");
    Tensor mean = d.tensor(DType::f32, {3}, "mean"), rstd = d.tensor(DType::f32, {3}, "rstd");
    norm_forward(out, mean, rstd, tx, d.tensor(DType::f32, {48}, w, "weight"), d.tensor(DType::f32, {48}, b, "bias"),
                 Norm::layernorm, eps, d.ctx);
    // One roundoff of 100 in the mean, seen through rstd (about 150) and against outputs of about 1.5.
    EXPECT_TRUE(close(d.read(out), want, 2 * 100 * roundoff(DType::f32) * 150));
}

TEST(Norm, ResidualAddsThenNormalizesTheStoredSum) {
    for (DType act : all_act)
        for (const Case& k : cases)
            for (bool in_place : {false, true}) {
                SCOPED_TRACE(str(name_of(act), " C", k.C, in_place ? " in place" : ""));
                int64_t n = k.B * k.T * k.C;
                Vector x = rounded(act, random_vector(n, 5, 2.0)), branch = rounded(act, random_vector(n, 6));
                Vector w = rounded(act, random_vector(k.C, 7)), b = rounded(act, random_vector(k.C, 8));
                Vector stored = rounded(act, sum_of(x, branch));
                NormOracle oracle{k.B * k.T, k.C, Norm::layernorm, eps, {}, {}};
                const Sums want = oracle.sums(stored, w, b);

                Device d;
                DType f = statistics_dtype(act);
                Tensor tx = d.tensor(act, {k.B, k.T, k.C}, x, "x"), out = d.tensor(act, tx.shape, "out");
                Tensor sum = in_place ? tx : d.tensor(act, tx.shape, "sum");
                Tensor mean = d.tensor(f, {k.B, k.T}, "mean"), rstd = d.tensor(f, {k.B, k.T}, "rstd");
                residual_norm_forward(sum, out, mean, rstd, tx, d.tensor(act, tx.shape, branch, "branch"),
                                      d.tensor(act, {k.C}, w, "weight"), d.tensor(act, {k.C}, b, "bias"),
                                      Norm::layernorm, eps, d.ctx);
                EXPECT_EQ(d.read(sum), stored);
                double tol = tolerance(act, k.C) + 4 * roundoff(f) / std::sqrt(eps) * (k.C == 1 ? 1 : 0);
                const Sums sums = with_errors_of_factors(want, act, error_of_positive_sum(f, k.C));
                EXPECT_TRUE(close_sums(d.read(out), sums, act, tol));
                if (!in_place) {
                    EXPECT_EQ(d.read(tx), x);
                }
            }
}

struct Backward {
    Vector dx, dweight, dbias;
};

// The op's gradients; if they accumulate, dx, dweight and dbias hold dout, w and b before.
Backward run_backward(Device& d, DType act, Shape shape, Norm kind, const Vector& x, const Vector& w, const Vector& b,
                      const Vector& dout, bool accumulate) {
    DType f = statistics_dtype(act);
    Shape leading = {shape[0], shape[1]};
    int64_t C = shape[2];
    Tensor tx = d.tensor(act, shape, x, "x"), out = d.tensor(act, shape, "out"),
           weight = d.tensor(act, {C}, w, "weight");
    Tensor mean = kind == Norm::layernorm ? d.tensor(f, leading, "mean") : Tensor(),
           rstd = d.tensor(f, leading, "rstd");
    Tensor bias = b.empty() ? Tensor() : d.tensor(act, {C}, b, "bias");
    norm_forward(out, mean, rstd, tx, weight, bias, kind, eps, d.ctx);
    Tensor dx = d.tensor(act, shape, "dx"), dweight = d.tensor(f, {C}, "dweight");
    Tensor dbias = b.empty() ? Tensor() : d.tensor(f, {C}, "dbias");
    if (accumulate) {
        d.write(dx, dout), d.write(dweight, w);
        if (dbias) d.write(dbias, b);
    }
    Tensor tdout = d.tensor(act, shape, dout, "dout");
    norm_backward(dx, dweight, dbias, tdout, tx, mean, rstd, weight, kind, accumulate, accumulate, d.ctx);
    if (!accumulate) {  // dx may alias dout
        norm_backward(tdout, dweight, dbias, tdout, tx, mean, rstd, weight, kind, false, false, d.ctx);
        const Vector want = d.read(dx), got = d.read(tdout);
        for (size_t i = 0; i < want.size(); i++)
            EXPECT_TRUE(got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i]))) << i;
    }
    return {d.read(dx), d.read(dweight), dbias ? d.read(dbias) : Vector()};
}

// dx = rstd (d - mean(d) - n mean(d n)) with n = (x - mean) rstd and d = dout w; dweight = sum of dout n, dbias = sum
// of dout over the rows.
Backward backward_oracle(NormOracle& o, const Vector& x, const Vector& w, const Vector& b, const Vector& dout) {
    o(x, w, b);
    Backward g{Vector(x.size()), Vector(w.size()), Vector(b.size())};
    for (int64_t row = 0; row < o.rows; row++) {
        const double m = o.mean[size_t(row)], rstd = o.rstd[size_t(row)];
        auto at = [&](int64_t c) { return size_t(row * o.columns + c); };
        double mean_d = 0, mean_dn = 0;
        for (int64_t c = 0; c < o.columns; c++) {
            const double n = (x[at(c)] - m) * rstd, d = dout[at(c)] * w[size_t(c)];
            mean_d += o.kind == Norm::layernorm ? d / double(o.columns) : 0;
            mean_dn += d * n / double(o.columns);
            g.dweight[size_t(c)] += dout[at(c)] * n;
            if (!b.empty()) g.dbias[size_t(c)] += dout[at(c)];
        }
        for (int64_t c = 0; c < o.columns; c++)
            g.dx[at(c)] = rstd * (dout[at(c)] * w[size_t(c)] - mean_d - (x[at(c)] - m) * rstd * mean_dn);
    }
    return g;
}

// The sums of the magnitudes of the terms of all three, after backward_oracle() with the same arguments.
Backward backward_terms(const NormOracle& o, const Vector& x, const Vector& w, const Vector& b, const Vector& dout) {
    Backward g{Vector(x.size()), Vector(w.size()), Vector(b.size())};
    for (int64_t row = 0; row < o.rows; row++) {
        auto d = [&](int64_t c) { return std::abs(dout[size_t(row * o.columns + c)]); };
        Vector n(size_t(o.columns));
        double mean_d = 0, mean_dn = 0;
        for (int64_t c = 0; c < o.columns; c++) {
            n[size_t(c)] = o.terms(x, row, c);
            const double dw = d(c) * std::abs(w[size_t(c)]);
            mean_d += o.kind == Norm::layernorm ? dw / double(o.columns) : 0;
            mean_dn += dw * n[size_t(c)] / double(o.columns);
            g.dweight[size_t(c)] += d(c) * n[size_t(c)];
            if (!b.empty()) g.dbias[size_t(c)] += d(c);
        }
        for (int64_t c = 0; c < o.columns; c++)
            g.dx[size_t(row * o.columns + c)] =
                o.rstd[size_t(row)] * (d(c) * std::abs(w[size_t(c)]) + mean_d + n[size_t(c)] * mean_dn);
    }
    return g;
}

TEST(Norm, BackwardFormulaMatchesFiniteDifferences) {
    for (const Case& k : {Case{2, 3, 1}, Case{3, 1, 17}, Case{2, 2, 40}, Case{10, 7, 3}})
        for (Norm kind : {Norm::layernorm, Norm::rmsnorm}) {
            SCOPED_TRACE(str("C", k.C, kind == Norm::layernorm ? " layernorm" : " rmsnorm"));
            int64_t n = k.B * k.T * k.C;
            Vector x = random_vector(n, 9, 2.0), dout = random_vector(n, 10);
            Vector w = random_vector(k.C, 11), b = random_vector(k.C, 12);
            NormOracle oracle{k.B * k.T, k.C, kind, eps, {}, {}};
            Backward got = backward_oracle(oracle, x, w, b, dout);
            Vector dx = numeric_gradient([&](const Vector& v) { return dot(oracle(v, w, b), dout); }, x);
            Vector dw = numeric_gradient([&](const Vector& v) { return dot(oracle(x, v, b), dout); }, w);
            Vector db = numeric_gradient([&](const Vector& v) { return dot(oracle(x, w, v), dout); }, b);
            EXPECT_TRUE(close(got.dx, dx, 1e-6));
            EXPECT_TRUE(close(got.dweight, dw, 1e-7));
            EXPECT_TRUE(close(got.dbias, db, 1e-7));
        }
}

TEST(Norm, BackwardMatchesTheFormula) {
    for (DType act : all_act)
        for (const Case& k : cases) {
            if (k.C == 1) continue;  // layernorm of one column has gradient 0: only rounding is left
            for (Norm kind : {Norm::layernorm, Norm::rmsnorm})
                for (bool with_bias : {true, false})
                    for (bool accumulate : {false, true}) {
                        SCOPED_TRACE(str(name_of(act), " C", k.C, kind == Norm::layernorm ? " layernorm" : " rmsnorm"));
                        int64_t n = k.B * k.T * k.C;
                        Vector x = rounded(act, random_vector(n, 13, 2.0)), dout = rounded(act, random_vector(n, 14));
                        Vector w = rounded(act, random_vector(k.C, 15)),
                               b = rounded(act, random_vector(with_bias ? k.C : 0, 16));
                        NormOracle oracle{k.B * k.T, k.C, kind, eps, {}, {}};
                        Backward want = backward_oracle(oracle, x, w, b, dout);
                        Backward terms = backward_terms(oracle, x, w, b, dout);
                        Sums dx{want.dx, terms.dx}, dweight{want.dweight, terms.dweight},
                            dbias{want.dbias, terms.dbias};
                        if (accumulate) dx += dout, dweight += w, dbias += b;
                        Device d;
                        Backward got = run_backward(d, act, {k.B, k.T, k.C}, kind, x, w, b, dout, accumulate);
                        DType f = statistics_dtype(act);
                        // dx has rstd three times as a factor, dweight once; rstd is itself from a sum over the row.
                        const double of_rstd = error_of_positive_sum(f, k.C);
                        dx = with_errors_of_factors(dx, act, 3 * of_rstd);
                        dweight = with_errors_of_factors(dweight, f, of_rstd);
                        EXPECT_TRUE(close_sums(got.dx, dx, act, 4 * tolerance(act, k.C)));
                        EXPECT_TRUE(close_sums(got.dweight, dweight, f, tolerance(f, k.B * k.T + k.C)));
                        EXPECT_TRUE(close_sums(got.dbias, dbias, f, tolerance(f, k.B * k.T)));
                    }
        }
}

// Rows, or sums over rows, that do not fit into a GPU's shared memory: in 16 bytes, and element by element.
TEST(Norm, RowsLongerThanSharedMemory) {
    for (DType act : all_act)
        for (int64_t C : {49160, 49155}) {
            Vector x = rounded(act, random_vector(2 * C, 32)), w = rounded(act, random_vector(C, 33));
            Vector branch = rounded(act, random_vector(2 * C, 34)), stored = rounded(act, sum_of(x, branch));
            NormOracle oracle{2, C, Norm::layernorm, eps, {}, {}};
            Device d;
            DType f = statistics_dtype(act);
            Tensor tx = d.tensor(act, {2, C}, x, "x"), weight = d.tensor(act, {C}, w, "weight");
            Tensor out = d.tensor(act, {2, C}, "out"), sum = d.tensor(act, {2, C}, "sum");
            Tensor mean = d.tensor(f, {2}, "mean"), rstd = d.tensor(f, {2}, "rstd");
            norm_forward(out, mean, rstd, tx, weight, {}, Norm::layernorm, eps, d.ctx);
            EXPECT_TRUE(close(d.read(out), oracle(x, w, {}), tolerance(act, C)));
            residual_norm_forward(sum, out, mean, rstd, tx, d.tensor(act, {2, C}, branch, "branch"), weight, {},
                                  Norm::layernorm, eps, d.ctx);
            EXPECT_TRUE(close(d.read(out), oracle(stored, w, {}), tolerance(act, C)));
            EXPECT_EQ(d.read(sum), stored);
        }
    for (DType act : all_act)
        for (int64_t C : {12296, 12291}) {
            if (small_sizes() && (act == DType::bf16) == (C % 8 == 0)) continue;
            Vector x = rounded(act, random_vector(9 * C, 35)), dout = rounded(act, random_vector(9 * C, 36));
            Vector w = rounded(act, random_vector(C, 37));
            NormOracle oracle{9, C, Norm::layernorm, eps, {}, {}};
            Backward want = backward_oracle(oracle, x, w, {}, dout);
            Device d;
            Backward got = run_backward(d, act, {1, 9, C}, Norm::layernorm, x, w, {}, dout, false);
            EXPECT_TRUE(close(got.dx, want.dx, 4 * tolerance(act, C)));
            EXPECT_TRUE(close(got.dweight, want.dweight, tolerance(statistics_dtype(act), 9)));
        }
}

// Many more rows than one block has a turn for.
TEST(Norm, BackwardOfManyRows) {
    const int64_t rows = small_sizes() ? 300 : 2500, C = 12;
    for (DType act : all_act) {
        Vector x = rounded(act, random_vector(rows * C, 22, 2.0)), dout = rounded(act, random_vector(rows * C, 23));
        Vector w = rounded(act, random_vector(C, 24)), b = w;
        NormOracle oracle{rows, C, Norm::layernorm, eps, {}, {}};
        Backward want = backward_oracle(oracle, x, w, b, dout);
        const Backward terms = backward_terms(oracle, x, w, b, dout);
        const DType f = statistics_dtype(act);
        Device d;
        Backward got = run_backward(d, act, {1, rows, C}, Norm::layernorm, x, w, b, dout, false);
        EXPECT_TRUE(close_sums(got.dx, {want.dx, terms.dx}, act, 4 * tolerance(act, C)));
        EXPECT_TRUE(close_sums(got.dweight, {want.dweight, terms.dweight}, f, tolerance(f, rows)));
        EXPECT_TRUE(close_sums(got.dbias, {want.dbias, terms.dbias}, f, tolerance(f, rows)));
    }
}

// A NaN spoils its own row and the sums over rows in all columns that it reaches, and nothing else.
TEST(Norm, NotANumberStaysInItsRow) {
    const double nan_value = std::numeric_limits<double>::quiet_NaN();
    for (DType act : all_act)
        for (Norm kind : {Norm::layernorm, Norm::rmsnorm}) {
            Vector x = random_vector(3 * 40, 25), dout = random_vector(3 * 40, 26), w = random_vector(40, 27), b = w;
            x[40 + 7] = nan_value;
            Device d;
            Backward got = run_backward(d, act, {1, 3, 40}, kind, x, w, b, dout, false);
            for (size_t i = 0; i < 120; i++) EXPECT_EQ(std::isnan(got.dx[i]), i / 40 == 1) << i;
            for (double g : got.dweight) EXPECT_TRUE(std::isnan(g));
            for (double g : got.dbias) EXPECT_FALSE(std::isnan(g));
            Tensor out = d.tensor(act, {3, 40}, "out"), mean = d.tensor(statistics_dtype(act), {3}, "mean"),
                   rstd = d.tensor(statistics_dtype(act), {3}, "rstd"), weight = d.tensor(act, {40}, w, "weight");
            norm_forward(out, kind == Norm::layernorm ? mean : Tensor(), rstd, d.tensor(act, {3, 40}, x, "x"), weight,
                         weight, kind, eps, d.ctx);
            Vector y = d.read(out), r = d.read(rstd);
            for (size_t i = 0; i < 120; i++) EXPECT_EQ(std::isnan(y[i]), i / 40 == 1) << i;
            for (size_t i = 0; i < 3; i++) EXPECT_EQ(std::isnan(r[i]), i == 1);
        }
}

// Slices may begin anywhere, although rows of this length could be moved 16 bytes at a time.
TEST(Norm, RowsMayBeginAnywhere) {
    for (DType act : all_act) {
        const int64_t C = 16;
        Vector x = rounded(act, random_vector(3 * C, 28)), dout = rounded(act, random_vector(3 * C, 29));
        Vector w = rounded(act, random_vector(C, 30)), b = rounded(act, random_vector(C, 31));
        NormOracle oracle{3, C, Norm::layernorm, eps, {}, {}};
        Vector want = oracle(x, w, b);
        Backward want_back = backward_oracle(oracle, x, w, b, dout);
        Device d;
        DType f = statistics_dtype(act);
        auto shifted_tensor = [&](Shape shape, Vector v, const char* name) {
            v.insert(v.begin(), 0.0);
            return d.tensor(act, {int64_t(v.size())}, v, name).slice(1, int64_t(v.size())).view(shape);
        };
        Tensor tx = shifted_tensor({3, C}, x, "x"), dy = shifted_tensor({3, C}, dout, "dout");
        Tensor out = shifted_tensor({3, C}, Vector(size_t(3 * C)), "out"), dx = shifted_tensor({3, C}, x, "dx");
        Tensor weight = shifted_tensor({C}, w, "weight"), bias = shifted_tensor({C}, b, "bias");
        Tensor mean = d.tensor(f, {3}, "mean"), rstd = d.tensor(f, {3}, "rstd");
        Tensor dweight = d.tensor(f, {C}, "dweight"), dbias = d.tensor(f, {C}, "dbias");
        norm_forward(out, mean, rstd, tx, weight, bias, Norm::layernorm, eps, d.ctx);
        norm_backward(dx, dweight, dbias, dy, tx, mean, rstd, weight, Norm::layernorm, false, false, d.ctx);
        EXPECT_TRUE(close(d.read(out), want, tolerance(act, C)));
        EXPECT_TRUE(close(d.read(dx), want_back.dx, 4 * tolerance(act, C)));
        EXPECT_TRUE(close(d.read(dweight), want_back.dweight, tolerance(f, 3)));
        EXPECT_TRUE(close(d.read(dbias), want_back.dbias, tolerance(f, 3)));
    }
}

TEST(Norm, BackwardDoesNotDependOnThreads) {
    Vector x = random_vector(4 * 37 * 40, 17), dout = random_vector(4 * 37 * 40, 18), w = random_vector(40, 19), b = w;
    ContextOptions one, two;
    one.threads = 1, two.threads = 2;
    two.guard = true;  // and nothing is touched outside an op
    Device d1(one), d2(two);
    Backward a = run_backward(d1, DType::f32, {4, 37, 40}, Norm::layernorm, x, w, b, dout, false);
    Backward c = run_backward(d2, DType::f32, {4, 37, 40}, Norm::layernorm, x, w, b, dout, false);
    EXPECT_EQ(a.dx, c.dx);
    EXPECT_EQ(a.dweight, c.dweight);
    EXPECT_EQ(a.dbias, c.dbias);
}

TEST(Norm, AddAlsoInPlace) {
    std::vector<int64_t> sizes = {0, 1, 17, 5000};
    if (!small_sizes()) sizes.push_back(2200003);  // every GPU thread comes round again
    for (DType act : all_act)
        for (int64_t n : sizes) {
            Vector a = rounded(act, random_vector(n, 20)), b = rounded(act, random_vector(n, 21));
            Device d;
            Tensor ta = d.tensor(act, {n}, a, "a"), tb = d.tensor(act, {n}, b, "b"), out = d.tensor(act, {n}, "out");
            add(out, ta, tb, d.ctx);
            EXPECT_EQ(d.read(out), rounded(act, sum_of(a, b)));
            add(ta, ta, tb, d.ctx);
            EXPECT_EQ(d.read(ta), d.read(out));
            if (n < 2) continue;
            Tensor shifted_out = out.slice(1, n);  // not where 16 bytes begin
            add(shifted_out, ta.slice(1, n), tb.slice(1, n), d.ctx);
            Vector rest(b.begin() + 1, b.end());
            EXPECT_EQ(d.read(shifted_out), rounded(act, sum_of(d.read(ta.slice(1, n)), rest)));
        }
}

TEST(Norm, WrongTensorsAreNamed) {
    Device d;
    auto f32 = [&](Shape s, const char* name) { return d.tensor(DType::f32, s, name); };
    Tensor x = f32({2, 3, 8}, "x"), out = f32({2, 3, 8}, "out"), mean = f32({2, 3}, "mean"), rstd = f32({2, 3}, "rstd");
    Tensor weight = f32({8}, "weight"), short_weight = f32({7}, "short_weight"), short_rstd = f32({2, 2}, "short_rstd");
    Tensor wide = f32({2, 3, 9}, "wide"), doubles = d.tensor(DType::f64, {2, 3, 8}, "doubles");
    auto forward = [&](Tensor o, Tensor m, Tensor r, Tensor w, Tensor b) {
        return [=, &d] { norm_forward(o, m, r, x, w, b, Norm::layernorm, eps, d.ctx); };
    };
    EXPECT_TRUE(refuses(forward(wide, mean, rstd, weight, weight), "wide"));
    EXPECT_TRUE(refuses(forward(doubles, mean, rstd, weight, weight), "doubles"));
    EXPECT_TRUE(refuses(forward(out, {}, rstd, weight, weight), "mean"));
    EXPECT_TRUE(refuses(forward(out, mean, short_rstd, weight, weight), "short_rstd"));
    EXPECT_TRUE(refuses(forward(out, mean, rstd, short_weight, weight), "short_weight"));
    EXPECT_TRUE(refuses(forward(out, mean, rstd, weight, short_weight), "short_weight"));
    EXPECT_TRUE(refuses(
        [&] { residual_norm_forward(x, out, mean, rstd, x, {}, weight, {}, Norm::layernorm, eps, d.ctx); }, "branch"));
    EXPECT_TRUE(
        refuses([&] { residual_norm_forward(wide, out, mean, rstd, x, out, weight, {}, Norm::layernorm, eps, d.ctx); },
                "wide"));
    EXPECT_TRUE(refuses(
        [&] { norm_backward(out, short_weight, {}, out, x, mean, rstd, weight, Norm::layernorm, false, false, d.ctx); },
        "short_weight"));
    EXPECT_TRUE(refuses([&] { add(out, x, wide, d.ctx); }, "wide"));
}

}  // namespace
}  // namespace llmc
