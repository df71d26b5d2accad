// matmul_ragged against float64 loops: the products of feed-forward experts that own as many rows as they need, forward
// and backward. Rows of nobody are full of NaN and must stay alone.
#include <fstream>

#include "dev/test/activation_oracle.h"
#include "dev/test/reference.h"
#include "dev/test/sanitized.h"
#include "llmc/ops/graph.h"

namespace llmc::test {
namespace {

const double nan_value = std::numeric_limits<double>::quiet_NaN();

// Experts with `pairs[e]` filled rows each, and where those lie.
struct Routing {
    std::vector<int64_t> pairs, offsets{0};
    int64_t rows = 0, experts;

    explicit Routing(const std::vector<int64_t>& pairs) : pairs(pairs), experts(int64_t(pairs.size())) {
        int64_t all = 0;
        for (int64_t count : pairs) {
            offsets.push_back(offsets.back() + (count + ragged_tile() - 1) / ragged_tile() * ragged_tile());
            all += count;
        }
        rows = ragged_rows(all, experts) + 3;  // so that there are rows of nobody everywhere
    }
    int64_t owned() const { return offsets.back(); }
    Tensor tensor(Device& device) const {
        return device.tensor(DType::i32, {experts + 1}, Vector(offsets.begin(), offsets.end()), "offsets");
    }
    // Random filled rows, zeros that fill up tiles, NaN in the rows of nobody.
    Vector values(int64_t columns, uint64_t seed, double scale = 1) const {
        Vector v = random_vector(rows * columns, seed, scale);
        for (int64_t e = 0; e < experts; e++)
            std::fill(v.begin() + (offsets[e] + pairs[e]) * columns, v.begin() + offsets[e + 1] * columns, 0.0);
        std::fill(v.begin() + owned() * columns, v.end(), nan_value);
        return v;
    }
    // A tensor of rows that says which elements somebody wrote.
    Tensor untouched(Device& device, DType type, int64_t columns, const char* name) const {
        return device.tensor(type, {rows, columns}, Vector(size_t(rows * columns), 7.0), name);
    }
};

Vector rows_of(const Vector& v, const Routing& r, int64_t e, int64_t columns) {
    return {v.begin() + r.offsets[e] * columns, v.begin() + r.offsets[e + 1] * columns};
}
Vector matrix_of(const Vector& v, int64_t e, int64_t size) {
    return {v.begin() + e * size, v.begin() + (e + 1) * size};
}

// a_e b_e in the rows of each expert; `rest` in the rows of nobody.
Sums rows_oracle(const Routing& r, const Vector& a, const Vector& b, int64_t n, int64_t k, bool tb, double rest) {
    Sums out;
    for (int64_t e = 0; e < r.experts; e++)
        out.append(matmul_sums(rows_of(a, r, e, k), matrix_of(b, e, k * n), r.offsets[e + 1] - r.offsets[e], n, k,
                               false, tb));
    out.value.resize(size_t(r.rows * n), rest);
    out.terms.resize(size_t(r.rows * n), 0.0);
    return out;
}
Sums sums_oracle(const Routing& r, const Vector& a, const Vector& b, int64_t m, int64_t n) {
    Sums out;
    for (int64_t e = 0; e < r.experts; e++)
        out.append(matmul_sums(rows_of(a, r, e, m), rows_of(b, r, e, n), m, n, r.offsets[e + 1] - r.offsets[e], true,
                               false));
    return out;
}

struct Case {
    std::vector<int64_t> pairs;
    int64_t k, n;
    std::string text() const {
        return str(pairs.size(), " experts, ", k, " to ", n, ", rows ", pairs[0], " ", pairs[1], " ...");
    }
};
// Experts without rows, one with all of them, sizes that allow 128-bit accesses and that do not, more than a tile.
const std::vector<Case> cases = few_or_all<Case>({{{5, 0, 40}, 16, 24}, {{0, 33, 0, 1}, 7, 9}, {{0, 130}, 40, 136}},
                                                 {{{130, 0, 257, 1, 128}, 72, 136},
                                                  {{0, 300}, 33, 65},
                                                  {{64, 0, 2, 0, 0, 0, 0}, 24, 264},
                                                  {{0, 1100, 0}, 40, 1030},
                                                  {{1, 1, 1, 1, 1, 1, 1, 1, 1}, 1, 1},
                                                  {{17, 3}, 129, 8}});

struct Types {
    DType in, out;
};
const std::vector<Types> types = [] {
    std::vector<Types> all;
    for (DType act : all_act) all.push_back({act, act});
    all.push_back({DType::bf16, DType::f32});
    return all;
}();

Shape weight_shape(const Routing& r, int64_t k, int64_t n, bool transposed) {
    return transposed ? Shape{r.experts, n, k} : Shape{r.experts, k, n};
}

TEST(MatmulRagged, EveryRowMeetsTheMatrixOfItsExpert) {
    for (const Case& c : cases)
        for (Types type : types)
            for (bool tb : {false, true})
                for (bool accumulate : {false, true}) {
                    Device device;
                    const Routing r(c.pairs);
                    Tensor a = device.tensor(type.in, {r.rows, c.k}, r.values(c.k, 1), "a");
                    Tensor b = device.tensor(type.in, weight_shape(r, c.k, c.n, tb),
                                             random_vector(r.experts * c.k * c.n, 2), "b");
                    Tensor out = r.untouched(device, type.out, c.n, "out");
                    matmul_ragged(out, a, b, r.tensor(device), {.transpose_b = tb, .accumulate = accumulate},
                                  device.ctx);
                    Sums want = rows_oracle(r, device.read(a), device.read(b), c.n, c.k, tb, 7.0);
                    Vector start(size_t(r.owned() * c.n), 7.0), got = device.read(out);
                    start.resize(want.value.size(), 0.0);
                    if (accumulate) want += start;
                    EXPECT_TRUE(close_sums(got, want, type.out, tolerance(type.out, c.k)))
                        << name_of(type.in) << " to " << name_of(type.out) << " transpose " << tb << " accumulate "
                        << accumulate << ", " << c.text();
                    for (size_t i = size_t(r.owned() * c.n); i < got.size(); i++) ASSERT_EQ(got[i], 7.0);
                }
}

// The weights' gradient. An expert without rows gets 0, or keeps what it had.
TEST(MatmulRagged, SumsOverTheRowsOfAnExpert) {
    for (const Case& c : cases)
        for (Types type : types)
            for (bool accumulate : {false, true}) {
                Device device;
                const Routing r(c.pairs);
                Tensor a = device.tensor(type.in, {r.rows, c.n}, r.values(c.n, 1), "a");
                Tensor b = device.tensor(type.in, {r.rows, c.k}, r.values(c.k, 2), "b");
                const int64_t size = r.experts * c.n * c.k;
                const Vector start = rounded(type.out, random_vector(size, 3));
                Tensor out = accumulate ? device.tensor(type.out, {r.experts, c.n, c.k}, start, "out")
                                        : device.tensor(type.out, {r.experts, c.n, c.k}, "out");
                matmul_ragged(out, a, b, r.tensor(device), {.transpose_a = true, .accumulate = accumulate}, device.ctx);
                Sums want = sums_oracle(r, device.read(a), device.read(b), c.n, c.k);
                if (accumulate) want += start;
                const int64_t longest = *std::max_element(c.pairs.begin(), c.pairs.end());
                const Vector got = device.read(out);
                EXPECT_TRUE(close_sums(got, want, type.out, tolerance(type.out, longest)))
                    << name_of(type.in) << " to " << name_of(type.out) << " accumulate " << accumulate << ", "
                    << c.text();
                for (int64_t e = 0; e < r.experts; e++)
                    if (c.pairs[size_t(e)] == 0) {
                        EXPECT_EQ(matrix_of(got, e, c.n * c.k), matrix_of(want.value, e, c.n * c.k)) << "expert " << e;
                    }
            }
}

const std::vector<Case> cases_with_activations(cases.begin(), cases.begin() + (small_sizes() ? 2 : 5));
const std::vector<Activation> activations =
    few_or_all<Activation>({Activation::relu, Activation::gelu}, {Activation::gelu_erf, Activation::silu});

TEST(MatmulRagged, ActivationsOfOwnedRowsAlone) {
    for (const Case& c : cases_with_activations)
        for (Types type : types)
            for (Activation kind : activations)
                for (bool with_pre : {false, true}) {
                    Device device;
                    const Routing r(c.pairs);
                    Tensor a = device.tensor(type.in, {r.rows, c.k}, r.values(c.k, 1, 2.0), "a");
                    Tensor b = device.tensor(type.in, weight_shape(r, c.k, c.n, true),
                                             random_vector(r.experts * c.k * c.n, 2), "b");
                    Tensor out = r.untouched(device, type.out, c.n, "out"), pre{};
                    if (with_pre) pre = r.untouched(device, type.out, c.n, "pre");
                    matmul_ragged(out, a, b, r.tensor(device), {.transpose_b = true, .activation = kind, .pre = pre},
                                  device.ctx);
                    const Sums before = rows_oracle(r, device.read(a), device.read(b), c.n, c.k, true, 7.0);
                    // One rounding for `out`, another where it is made from a rounded `pre`; no slope is above 1.13.
                    const double tol = tolerance(type.out, c.k) + 2.3 * roundoff(type.out);
                    EXPECT_TRUE(close_activated(device.read(out), before, kind, type.out, tol, r.owned() * c.n))
                        << name_of(type.in) << " activation " << int(kind) << " pre " << with_pre << ", " << c.text();
                    if (with_pre) {
                        EXPECT_TRUE(close_sums(device.read(pre), before, type.out, tolerance(type.out, c.k)))
                            << name_of(type.in);
                    }
                }
}

TEST(MatmulRagged, BackThroughActivationsOfOwnedRowsAlone) {
    for (const Case& c : cases_with_activations)
        for (DType type : all_act)
            for (Activation kind : activations) {
                Device device;
                const Routing r(c.pairs);
                Tensor a = device.tensor(type, {r.rows, c.k}, r.values(c.k, 1), "a");
                Tensor b =
                    device.tensor(type, weight_shape(r, c.k, c.n, false), random_vector(r.experts * c.k * c.n, 2), "b");
                Tensor pre = device.tensor(type, {r.rows, c.n}, r.values(c.n, 3, 4.0), "pre");
                Tensor out = r.untouched(device, type, c.n, "out"), value = r.untouched(device, type, c.n, "value");
                matmul_ragged(out, a, b, r.tensor(device), {.backward = kind, .pre = pre, .value = value}, device.ctx);
                Vector x = device.read(pre);  // at relu's kink the row is one that fills up: 0 0
                const int64_t owned = r.owned() * c.n;
                const Sums want = through_slope(rows_oracle(r, device.read(a), device.read(b), c.n, c.k, false, 7.0),
                                                kind, x, owned);
                const double stored = 2.3 * roundoff(type);
                EXPECT_TRUE(close_sums(device.read(out), want, type, tolerance(type, c.k) + stored, stored))
                    << name_of(type) << " activation " << int(kind) << ", " << c.text();
                std::fill(x.begin() + owned, x.end(), 7.0);
                EXPECT_TRUE(close_sums(device.read(value), activated(x, kind, owned), type, tolerance(type)))
                    << name_of(type) << " activation " << int(kind) << ", " << c.text();
            }
}

TEST(MatmulRagged, NotANumberStaysInItsRowAndItsExpert) {
    for (DType type : all_act) {
        Device device;
        const int64_t k = 24, n = 16;
        const Routing r({3, 20, 5});
        Vector va = r.values(k, 1);
        va[size_t((r.offsets[1] + 4) * k + 7)] = nan_value;
        Tensor a = device.tensor(type, {r.rows, k}, va, "a"), offsets = r.tensor(device);
        Tensor b = device.tensor(type, {3, k, n}, random_vector(3 * k * n, 2), "b");
        Tensor out = r.untouched(device, type, n, "out"), hidden = r.untouched(device, type, n, "hidden");
        matmul_ragged(out, a, b, offsets, {}, device.ctx);
        matmul_ragged(hidden, a, b, offsets, {.activation = Activation::relu}, device.ctx);
        for (const Vector& got : {device.read(out), device.read(hidden)})
            for (int64_t i = 0; i < r.owned() * n; i++)
                ASSERT_EQ(std::isnan(got[size_t(i)]), i / n == r.offsets[1] + 4) << name_of(type) << " row " << i / n;

        Tensor d = device.tensor(type, {r.rows, n}, r.values(n, 3), "d");
        Tensor sums = device.tensor(type, {3, k, n}, "sums");
        matmul_ragged(sums, a, d, offsets, {.transpose_a = true}, device.ctx);
        const Vector got = device.read(sums);
        for (int64_t i = 0; i < 3 * k * n; i++)
            ASSERT_EQ(std::isnan(got[size_t(i)]), i / n == k + 7) << name_of(type) << " row of sums " << i / n;
    }
}

// A recorded launch meets another routing every time it runs.
TEST(MatmulRagged, OffsetsChangeInsideAGraph) {
    Device device;
    const int64_t k = 9, n = 12;
    const std::vector<Routing> routings = {Routing({3, 0, 20}), Routing({23, 0, 0}), Routing({0, 22, 1}),
                                           Routing({8, 8, 7})};
    const int64_t rows = routings[0].rows;  // equally many pairs
    Tensor offsets = device.tensor(DType::i32, {4}, "offsets"), a = device.tensor(DType::f32, {rows, k}, "a");
    Tensor b = device.tensor(DType::f32, {3, k, n}, random_vector(3 * k * n, 2), "b");
    Tensor out = device.tensor(DType::f32, {rows, n}, "out"), sums = device.tensor(DType::f32, {3, k, n}, "sums");
    Graph graph;
    for (const Routing& r : routings) {
        device.write(offsets, Vector(r.offsets.begin(), r.offsets.end()));
        device.write(a, r.values(k, 1));
        device.write(out, Vector(size_t(rows * n), 7.0));
        graph.run(device.ctx, [&] {
            matmul_ragged(out, a, b, offsets, {}, device.ctx);
            matmul_ragged(sums, a, out, offsets, {.transpose_a = true}, device.ctx);
        });
        const Vector got = device.read(out);
        EXPECT_TRUE(close_sums(got, rows_oracle(r, device.read(a), device.read(b), n, k, false, 7.0), DType::f32,
                               tolerance(DType::f32, k)));
        EXPECT_TRUE(close_sums(device.read(sums), sums_oracle(r, device.read(a), got, k, n), DType::f32,
                               tolerance(DType::f32, 23)));
    }
}

// With `guard`, memory of the CPU can be read by an op alone: offsets are read inside it.
TEST(MatmulRagged, UnderTheGuard) {
    Device device({.guard = true});
    const int64_t k = 9, n = 12;
    const Routing r({3, 0, 20});
    Tensor a = device.tensor(DType::f32, {r.rows, k}, r.values(k, 1), "a"),
           out = r.untouched(device, DType::f32, n, "out");
    Tensor b = device.tensor(DType::f32, {3, k, n}, random_vector(3 * k * n, 2), "b");
    matmul_ragged(out, a, b, r.tensor(device), {.activation = Activation::relu}, device.ctx);
    const Sums before = rows_oracle(r, device.read(a), device.read(b), n, k, false, 7.0);
    EXPECT_TRUE(close_activated(device.read(out), before, Activation::relu, DType::f32, tolerance(DType::f32, k)));
}

TEST(MatmulRagged, SumsOverNothingAreZero) {
    for (DType type : all_act) {
        Device device;
        const Routing r({2, 0, 3}), empty({0, 0, 0});
        Tensor offsets = r.tensor(device), out = r.untouched(device, type, 5, "out");
        matmul_ragged(out, device.tensor(type, {r.rows, 0}, "a"), device.tensor(type, {3, 0, 5}, "b"), offsets, {},
                      device.ctx);
        Vector want(size_t(r.rows * 5), 7.0);
        std::fill_n(want.begin(), r.owned() * 5, 0.0);
        EXPECT_EQ(device.read(out), want) << name_of(type);

        Tensor sums = device.tensor(type, {3, 4, 5}, "sums");
        matmul_ragged(sums, device.tensor(type, {empty.rows, 4}, "a"), device.tensor(type, {empty.rows, 5}, "b"),
                      empty.tensor(device), {.transpose_a = true}, device.ctx);
        EXPECT_EQ(device.read(sums), Vector(60, 0.0)) << name_of(type);

        // no rows at all, no columns, no experts
        matmul_ragged(device.tensor(type, {0, 5}, "out"), device.tensor(type, {0, 4}, "a"),
                      device.tensor(type, {3, 4, 5}, "b"), device.tensor(DType::i32, {4}, Vector(4, 0.0), "offsets"),
                      {}, device.ctx);
        matmul_ragged(device.tensor(type, {r.rows, 0}, "out"), device.tensor(type, {r.rows, 4}, "a"),
                      device.tensor(type, {3, 4, 0}, "b"), offsets, {}, device.ctx);
        matmul_ragged(device.tensor(type, {0, 5}, "out"), device.tensor(type, {0, 4}, "a"),
                      device.tensor(type, {0, 4, 5}, "b"), device.tensor(DType::i32, {1}, {0.0}, "offsets"), {},
                      device.ctx);
    }
}

TEST(MatmulRagged, SameBitsForAnyNumberOfThreads) {
    if (small_sizes()) GTEST_SKIP() << "an emulated GPU has one thread";
    for (Types type : types) {
        Vector rows[2], sums[2];
        for (int i = 0; i < 2; i++) {
            Device device({.threads = i ? 2 : 1});
            const Routing r({30, 0, 700, 129});
            const int64_t k = 96, n = 544;
            Tensor offsets = r.tensor(device);
            Tensor a = device.tensor(type.in, {r.rows, k}, r.values(k, 1), "a");
            Tensor b = device.tensor(type.in, {4, k, n}, random_vector(4 * k * n, 2), "b");
            Tensor out = r.untouched(device, type.in, n, "out"), sum = device.tensor(type.out, {4, k, n}, "sum");
            matmul_ragged(out, a, b, offsets, {}, device.ctx);
            matmul_ragged(sum, a, out, offsets, {.transpose_a = true}, device.ctx);
            rows[i] = device.read(out), sums[i] = device.read(sum);
        }
        EXPECT_EQ(rows[0], rows[1]) << name_of(type.in);
        EXPECT_EQ(sums[0], sums[1]) << name_of(type.in);
    }
}

int64_t resident_bytes() {
    int64_t size = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> size >> resident;
    return resident * 4096;
}

// The host does not keep something for every number of rows that an expert ever had.
TEST(MatmulRagged, NewSizesCostNoMemory) {
    if (small_sizes()) GTEST_SKIP() << "an emulated GPU is too slow for this many sizes";
    if (sanitized) GTEST_SKIP() << "a sanitizer keeps freed memory for a while: at 700 sizes 20 to 50 MB";
    Device device({.threads = 1});
    const int64_t k = 16, n = 24, most = 700;
    const Routing r({0, most});
    Tensor offsets = r.tensor(device), b = device.tensor(DType::f32, {2, k, n}, random_vector(2 * k * n, 2), "b");
    Tensor a = device.tensor(DType::f32, {r.rows, k}, r.values(k, 1), "a");
    Tensor out = r.untouched(device, DType::f32, n, "out"), sum = device.tensor(DType::f32, {2, k, n}, "sum");
    int64_t before = 0;
    for (int64_t rows = 0; rows <= r.owned(); rows += ragged_tile()) {
        device.write(offsets, {0, double(rows), double(r.owned())});
        matmul_ragged(out, a, b, offsets, {}, device.ctx);
        matmul_ragged(sum, a, out, offsets, {.transpose_a = true}, device.ctx);
        if (rows == 0) before = resident_bytes();
    }
    EXPECT_LE(resident_bytes() - before, int64_t(4) << 20);  // a primitive for each would take 60 MB
}

TEST(MatmulRagged, CountingTouchesNothing) {
    Device device({.counting = true});
    Tensor a(nullptr, DType::f32, {20 + 3 * (ragged_tile() - 1), 8}, "a");
    a.data = device_alloc(a.bytes(), device.ctx);
    Tensor b(device_alloc(3 * 8 * 5 * 4, device.ctx), DType::f32, {3, 8, 5}, "b");
    Tensor offsets(device_alloc(16, device.ctx), DType::i32, {4}, "offsets");
    Tensor out(device_alloc(a.shape[0] * 20, device.ctx), DType::f32, {a.shape[0], 5}, "out");
    matmul_ragged(out, a, b, offsets, {}, device.ctx);
    EXPECT_EQ(device.ctx.flops, 2 * 20 * 8 * 5);  // of the rows of pairs
}

TEST(MatmulRagged, BadArgumentsAreNamed) {
    Device device;
    const int64_t R = 8, K = 4, N = 5, E = 3;
    auto f32 = [&](Shape shape, const char* name) { return device.tensor(DType::f32, shape, name); };
    Tensor a = f32({R, K}, "a"), b = f32({E, K, N}, "b"), out = f32({R, N}, "out"), sums = f32({E, K, N}, "sums");
    Tensor offsets = device.tensor(DType::i32, {E + 1}, Vector(4, 0.0), "offsets");
    auto refused = [&](Tensor to, Tensor x, Tensor y, Tensor from, const MatmulOptions& options, const char* part) {
        return refuses([&] { matmul_ragged(to, x, y, from, options, device.ctx); }, part);
    };
    EXPECT_TRUE(refused(out, a, f32({E, K, N + 1}, "weight"), offsets, {}, "weight"));
    EXPECT_TRUE(refused(out, a, f32({E + 1, K, N}, "weight"), offsets, {}, "weight"));
    EXPECT_TRUE(refused(out, a, b, offsets, {.transpose_b = true}, "b has shape"));
    EXPECT_TRUE(refused(f32({R + 1, N}, "short"), a, b, offsets, {}, "short"));
    EXPECT_TRUE(refused(out, f32({2, R, K}, "cube"), b, offsets, {}, "cube"));
    EXPECT_TRUE(refused(out, a, b, f32({E + 1}, "floats"), {}, "floats"));
    EXPECT_TRUE(refused(out, a, b, f32({2, 2}, "square"), {}, "square"));
    EXPECT_TRUE(refused(out, a, b, offsets, {.transpose_a = true}, "out"));
    EXPECT_TRUE(refused(sums, a, f32({R, N}, "right"), offsets, {}, "sums"));
    EXPECT_TRUE(refused(sums, a, f32({R + 1, N}, "right"), offsets, {.transpose_a = true}, "right"));
    EXPECT_TRUE(refused(sums, a, out, offsets, {.transpose_a = true, .activation = Activation::relu}, "sums"));
    EXPECT_TRUE(refused(out, a, b, offsets, {.bias = f32({N}, "bias")}, "bias"));
    EXPECT_TRUE(refused(out, a, b, offsets, {.accumulate = true, .activation = Activation::relu}, "accumulate"));
    EXPECT_TRUE(refused(out, a, b, offsets, {.backward = Activation::relu}, "pre"));
    EXPECT_TRUE(refused(device.tensor(DType::bf16, {R, N}, "half"), a, b, offsets, {}, "half"));
}

}  // namespace
}  // namespace llmc::test
