// matmul and bias_backward against float64 loops: all types, transposes, strides, odd sizes, accumulation.
#include "dev/test/activation_oracle.h"
#include "dev/test/reference.h"
#include "llmc/ops/graph.h"

namespace llmc::test {
namespace {

const double nan_value = std::numeric_limits<double>::quiet_NaN();
const double infinity = std::numeric_limits<double>::infinity();

Shape stored(int64_t rows, int64_t columns, bool transposed) {
    return transposed ? Shape{columns, rows} : Shape{rows, columns};
}

// out = op(a) op(b), checked; accumulating on top of `start` if asked.
void check_product(Device& device, DType in, DType out_type, int64_t m, int64_t n, int64_t k, bool ta, bool tb,
                   bool accumulate) {
    Tensor a = device.tensor(in, stored(m, k, ta), random_vector(m * k, 1), "a");
    Tensor b = device.tensor(in, stored(k, n, tb), random_vector(k * n, 2), "b");
    Vector start = rounded(out_type, random_vector(m * n, 3));
    Tensor out = accumulate ? device.tensor(out_type, {m, n}, start, "out") : device.tensor(out_type, {m, n}, "out");
    matmul(out, a, b, {.transpose_a = ta, .transpose_b = tb, .accumulate = accumulate}, device.ctx);
    Sums want = matmul_sums(device.read(a), device.read(b), m, n, k, ta, tb);
    if (accumulate) want += start;
    EXPECT_TRUE(close_sums(device.read(out), want, out_type, tolerance(out_type, k)))
        << name_of(in) << " to " << name_of(out_type) << " " << m << "x" << n << "x" << k << " transposes " << ta << tb
        << " accumulate " << accumulate;
}

TEST(Matmul, OddSizesAllTypesTransposesAndAccumulation) {
    Device device;
    const int64_t sizes[] = {1, 3, 7, 17, 33, 65};
    for (auto [in, out] : {std::pair{DType::f32, DType::f32},
                           {DType::bf16, DType::f32},
                           {DType::bf16, DType::bf16},
                           {DType::f64, DType::f64}})
        for (int i = 0; i < 36 && backend_supports(in); i++)
            check_product(device, in, out, sizes[i % 6], sizes[(i + i / 6) % 6], sizes[(i * 5 + 2) % 6], i & 1, i & 2,
                          i & 4);
}

TEST(Matmul, BlocksLargerThanOneTile) {
    Device device;
    for (DType type : all_act)
        for (int transposes = 0; transposes < 4; transposes++)
            check_product(device, type, type, 113, 157, 301, transposes & 1, transposes & 2, transposes == 1);
}

// Generation multiplies one row or a few; whole vectors and a remainder of them.
TEST(Matmul, FewRows) {
    Device device;
    for (auto [in, out] : {std::pair{DType::f32, DType::f32}, {DType::bf16, DType::f32}, {DType::bf16, DType::bf16}})
        for (int64_t m : {1, 2, 3, 4, 5})
            for (int64_t k : {16, 80, 208, 2048})
                for (bool accumulate : {false, true})
                    check_product(device, in, out, m, 37, k, false, true, accumulate);
}

// Weight gradients: sizes around and beyond what is copied at a time, with remainders.
TEST(Matmul, TransposedLeft) {
    Device device;
    const int64_t sizes[][3] = {{77, 61, 300},   {40, 128, 256}, {9, 1061, 5},
                                {130, 545, 257}, {1, 8500, 3},   {4100, 1, 7}};
    for (auto [m, n, k] : sizes)
        for (bool accumulate : {false, true})
            check_product(device, DType::f32, DType::f32, m, n, k, true, false, accumulate);
}

TEST(Matmul, LeadingAxesAreRows) {
    Device device;
    const int64_t B = 3, T = 5, C = 7, O = 9;
    Tensor x = device.tensor(DType::f32, {B, T, C}, random_vector(B * T * C, 1), "x");
    Tensor weight = device.tensor(DType::f32, {O, C}, random_vector(O * C, 2), "weight");
    Tensor dout = device.tensor(DType::f32, {B, T, O}, random_vector(B * T * O, 3), "dout");
    Tensor out = device.tensor(DType::f32, {B, T, O}, "out"), dx = device.tensor(DType::f32, {B, T, C}, "dx");
    Tensor dweight = device.tensor(DType::f32, {O, C}, "dweight");
    matmul(out, x, weight, {.transpose_b = true}, device.ctx);
    matmul(dx, dout, weight, {}, device.ctx);
    matmul(dweight, dout, x, {.transpose_a = true}, device.ctx);
    Vector vx = device.read(x), vw = device.read(weight), vd = device.read(dout);
    const DType f32 = DType::f32;
    EXPECT_TRUE(close_sums(device.read(out), matmul_sums(vx, vw, B * T, O, C, false, true), f32, tolerance(f32, C)));
    EXPECT_TRUE(close_sums(device.read(dx), matmul_sums(vd, vw, B * T, C, O, false, false), f32, tolerance(f32, O)));
    EXPECT_TRUE(close_sums(device.read(dweight), matmul_sums(vd, vx, O, C, B * T, true, false), f32,
                           tolerance(f32, B * T)));
}

void check_batched(int64_t E, int64_t m, int64_t n, int64_t k) {
    Device device;
    for (DType type : all_act)
        for (int transposes = 0; transposes < 4; transposes++) {
            bool ta = transposes & 1, tb = transposes & 2;
            Tensor a = device.tensor(type, ta ? Shape{E, k, m} : Shape{E, m, k}, random_vector(E * m * k, 1), "a");
            Tensor b = device.tensor(type, tb ? Shape{E, n, k} : Shape{E, k, n}, random_vector(E * k * n, 2), "b");
            Tensor out = device.tensor(type, {E, m, n}, "out");
            matmul(out, a, b, {.transpose_a = ta, .transpose_b = tb}, device.ctx);
            Vector got = device.read(out), va = device.read(a), vb = device.read(b);
            for (int64_t e = 0; e < E; e++) {
                auto part = [e](const Vector& v, int64_t size) {
                    return Vector(v.begin() + e * size, v.begin() + (e + 1) * size);
                };
                const Sums want = matmul_sums(part(va, m * k), part(vb, k * n), m, n, k, ta, tb);
                EXPECT_TRUE(close_sums(part(got, m * n), want, type, tolerance(type, k)))
                    << name_of(type) << " expert " << e;
            }
        }
}
TEST(Matmul, Batched) {
    check_batched(5, 17, 33, 7);
    check_batched(5, 3, 33, 32);
    check_batched(2, 70, 520, 20);
}

// Columns from 3 on of wider matrices: leading dimension and batch stride differ from the shape's.
void check_views(int64_t E, int64_t m, int64_t n, int64_t k, int64_t wide) {
    Device device;
    auto columns = [](Tensor t, int64_t first, int64_t count) {
        t.data = static_cast<char*>(t.data) + first * size_of(t.dtype);
        t.shape.dim[size_t(t.shape.rank - 1)] = count;
        return t;
    };
    Tensor a = device.tensor(DType::f32, {E, m, wide}, random_vector(E * m * wide, 1), "a");
    Tensor b = device.tensor(DType::f32, {E, n, wide}, random_vector(E * n * wide, 2), "b");
    Tensor out = device.tensor(DType::f32, {E, m, wide}, Vector(size_t(E * m * wide), 5.0), "out");
    matmul(columns(out, 3, n), columns(a, 3, k), columns(b, 3, k), {.transpose_b = true}, device.ctx);
    Tensor folded = device.tensor(DType::f32, {E, m, n}, "folded");
    matmul(folded, columns(a, 3, k), columns(b.slice(0, 1).view({n, wide}), 3, k), {.transpose_b = true}, device.ctx);
    Vector va = device.read(a), vb = device.read(b), got = device.read(out), got_folded = device.read(folded);
    for (int64_t e = 0; e < E; e++)
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < wide; j++) {
                double want = 0, want_folded = 0;
                if (j >= 3 && j < 3 + n)
                    for (int64_t p = 3; p < 3 + k; p++) {
                        want += va[size_t((e * m + i) * wide + p)] * vb[size_t((e * n + j - 3) * wide + p)];
                        want_folded += va[size_t((e * m + i) * wide + p)] * vb[size_t((j - 3) * wide + p)];
                    }
                else
                    want = 5.0;  // untouched
                EXPECT_NEAR(got[size_t((e * m + i) * wide + j)], want, 1e-5);
                if (j >= 3 && j < 3 + n) {
                    EXPECT_NEAR(got_folded[size_t((e * m + i) * n + j - 3)], want_folded, 1e-5);
                }
            }
}
TEST(Matmul, ViewsWithStrides) {
    check_views(3, 5, 7, 6, 20);
    check_views(3, 2, 7, 32, 40);
}

// ---------------------------------------------------------------------------------------------- bias and activations
const std::vector<Activation> all_activations = {Activation::none, Activation::relu, Activation::gelu,
                                                 Activation::gelu_erf, Activation::silu};

// With `off`, cuBLASLt (the emulated one) has no epilogues: bias and activations take the other way. Other backends do
// not look at the variable.
struct NoEpilogues {
    explicit NoEpilogues(bool off) {
        if (off) setenv("EMU_CUBLASLT_EPILOGUES", "0", 1);
    }
    ~NoEpilogues() { unsetenv("EMU_CUBLASLT_EPILOGUES"); }
};

struct Layer {
    Shape out, a, b;
    int64_t m, n, k;  // m: rows of all matrices together
};
// Columns that epilogues with a second matrix take (multiples of 8) and that they do not; a batch.
const std::vector<Layer> layers = {{{3, 11, 24}, {3, 11, 7}, {24, 7}, 33, 24, 7},
                                   {{33, 17}, {33, 7}, {17, 7}, 33, 17, 7},
                                   {{3, 5, 16}, {3, 5, 9}, {3, 16, 9}, 15, 16, 9},
                                   {{3, 5, 9}, {3, 5, 16}, {3, 9, 16}, 15, 9, 16},
                                   {{2, 40, 72}, {2, 40, 33}, {72, 33}, 80, 72, 33}};

// a b^T in float64, b one matrix or one for each in a.
Sums layer_oracle(const Layer& l, const Vector& a, const Vector& b) {
    const int64_t batch = l.b.rank == 3 ? l.b[0] : 1, rows = l.m / batch;
    Sums want;
    for (int64_t i = 0; i < batch; i++)
        want.append(matmul_sums(Vector(a.begin() + i * rows * l.k, a.begin() + (i + 1) * rows * l.k),
                                Vector(b.begin() + i * l.n * l.k, b.begin() + (i + 1) * l.n * l.k), rows, l.n, l.k,
                                false, true));
    return want;
}

void check_layer(Device& device, DType in, DType out_type, const Layer& l, Activation kind, bool with_bias,
                 bool with_pre) {
    Tensor a = device.tensor(in, l.a, random_vector(l.m * l.k, 1, 2.0), "a");
    Tensor b = device.tensor(in, l.b, random_vector(l.b.numel(), 2), "b");
    Tensor out = device.tensor(out_type, l.out, "out"), pre{}, bias{};
    if (with_bias) bias = device.tensor(in, {l.n}, random_vector(l.n, 3), "bias");
    if (with_pre) pre = device.tensor(out_type, l.out, "pre");
    matmul(out, a, b, {.transpose_b = true, .bias = bias, .activation = kind, .pre = pre}, device.ctx);

    Sums before = layer_oracle(l, device.read(a), device.read(b));
    if (with_bias) {
        Vector added, once = device.read(bias);
        while (added.size() < before.value.size()) added.insert(added.end(), once.begin(), once.end());
        before += added;
    }
    // One rounding for `out`, and another where it is made from a rounded `pre`; no slope is above 1.13.
    const double tol = tolerance(out_type, l.k) + (kind == Activation::none ? 0 : 2.3 * roundoff(out_type));
    EXPECT_TRUE(close_activated(device.read(out), before, kind, out_type, tol))
        << name_of(in) << " to " << name_of(out_type) << " activation " << int(kind) << " bias " << with_bias << " pre "
        << with_pre << " columns " << l.n;
    if (with_pre) {
        EXPECT_TRUE(close_sums(device.read(pre), before, out_type, tolerance(out_type, l.k))) << name_of(in);
    }
}

TEST(Matmul, BiasAndActivations) {
    for (bool off : {false, true}) {
        NoEpilogues epilogues(off);
        Device device;
        for (DType type : all_act)
            for (const Layer& layer : layers)
                for (Activation kind : all_activations)
                    for (bool bias : {false, true})
                        for (bool pre : {false, true})
                            if (!pre || kind != Activation::none)
                                check_layer(device, type, type, layer, kind, bias, pre);
        for (Activation kind : {Activation::none, Activation::relu, Activation::gelu})
            check_layer(device, DType::bf16, DType::f32, layers[0], kind, true, kind != Activation::none);
    }
}

// matmul(dhidden, dout, W, {.backward = f, .pre}) = (dout W) f'(pre).
TEST(Matmul, BackThroughActivations) {
    for (bool off : {false, true}) {
        NoEpilogues epilogues(off);
        Device device;
        for (DType type : all_act)
            for (const Layer& l : layers)
                for (Activation kind : all_activations) {
                    if (kind == Activation::none) continue;
                    Tensor a = device.tensor(type, l.a, random_vector(l.m * l.k, 1), "a");
                    Tensor b = device.tensor(type, l.b, random_vector(l.b.numel(), 2), "b");
                    Tensor pre = device.tensor(type, l.out, random_vector(l.m * l.n, 3, 4.0), "pre");
                    Tensor out = device.tensor(type, l.out, "out"), value = device.tensor(type, l.out, "value");
                    matmul(out, a, b, {.transpose_b = true, .backward = kind, .pre = pre, .value = value}, device.ctx);
                    const Vector x = device.read(pre);
                    const Sums want = through_slope(layer_oracle(l, device.read(a), device.read(b)), kind, x);
                    const double stored = 2.3 * roundoff(type);
                    EXPECT_TRUE(close_sums(device.read(out), want, type, tolerance(type, l.k) + stored, stored))
                        << name_of(type) << " activation " << int(kind) << " columns " << l.n;
                    EXPECT_TRUE(close_sums(device.read(value), activated(x, kind), type, tolerance(type)))
                        << name_of(type) << " activation " << int(kind) << " columns " << l.n;
                }
    }
}

// A bias that is added by the library and one that is not are the same to the last bit.
TEST(Matmul, BiasWithAndWithoutEpilogues) {
    for (DType type : all_act) {
        Vector results[2];
        for (bool off : {false, true}) {
            NoEpilogues epilogues(off);
            Device device;
            Tensor a = device.tensor(type, {9, 33}, random_vector(9 * 33, 1), "a");
            Tensor b = device.tensor(type, {33, 16}, random_vector(33 * 16, 2), "b");
            Tensor bias = device.tensor(type, {16}, random_vector(16, 3), "bias");
            Tensor out = device.tensor(type, {9, 16}, "out");
            matmul(out, a, b, {.bias = bias}, device.ctx);
            results[off] = device.read(out);
        }
        EXPECT_EQ(results[0], results[1]);
    }
}

// A diverging model must be seen, not clipped to zero by a ReLU.
TEST(Matmul, NotANumberAndInfinityPassThrough) {
    Device device;
    for (DType type : all_act)
        for (Activation kind : all_activations) {
            Vector va = random_vector(17 * 33, 1);
            va[5] = nan_value;        // row 0
            va[33 * 2 + 1] = infinity;  // row 2
            Tensor a = device.tensor(type, {17, 33}, va, "a");
            Tensor b = device.tensor(type, {33, 8}, Vector(33 * 8, 0.5), "b"),
                   out = device.tensor(type, {17, 8}, "out");
            matmul(out, a, b, {.activation = kind}, device.ctx);
            Vector got = device.read(out);
            for (size_t j = 0; j < 8; j++) {
                EXPECT_TRUE(std::isnan(got[j])) << name_of(type) << " activation " << int(kind);
                EXPECT_EQ(got[2 * 8 + j], infinity) << name_of(type) << " activation " << int(kind);
                EXPECT_TRUE(std::isfinite(got[8 + j]));
            }
        }
}

// The first run calls the ops, the second records them, the third plays the record. Two products of one kind with
// different biases: each has its own, although a library may keep one description for both.
TEST(Matmul, InAGraph) {
    Device device;
    Tensor x = device.tensor(DType::f32, {8, 7}, random_vector(56, 1), "x");
    Tensor weight = device.tensor(DType::f32, {8, 7}, random_vector(56, 2), "weight");
    Tensor biases = device.tensor(DType::f32, {2, 64}, random_vector(128, 3), "biases");  // 256-byte aligned, as all is
    Tensor out = device.tensor(DType::f32, {2, 8, 8}, "out"), dbias = device.tensor(DType::f32, {8}, "dbias");
    Graph graph;
    for (int64_t run = 0; run < 3; run++) {
        device.write(out, Vector(128, nan_value));
        device.write(x, random_vector(56, uint64_t(10 + run)));
        graph.run(device.ctx, [&] {
            for (int64_t i = 0; i < 2; i++) {
                Tensor bias = biases.slice(i, i + 1).view({64});
                bias.shape = {8};
                matmul(out.slice(i, i + 1).view({8, 8}), x, weight, {.transpose_b = true, .bias = bias}, device.ctx);
            }
            bias_backward(dbias, out.slice(1, 2).view({8, 8}), false, device.ctx);
        });
        const Sums product = matmul_sums(device.read(x), device.read(weight), 8, 8, 7, false, true);
        Sums want, sums{Vector(8), Vector(8)};
        want.append(product), want.append(product);
        Vector added(128), from = device.read(biases);
        for (size_t i = 0; i < 128; i++) added[i] = from[i / 64 * 64 + i % 8];
        want += added;
        for (size_t i = 64; i < 128; i++) sums.value[i % 8] += want.value[i], sums.terms[i % 8] += want.terms[i];
        EXPECT_TRUE(close_sums(device.read(out), want, DType::f32, tolerance(DType::f32, 8))) << "run " << run;
        EXPECT_TRUE(close_sums(device.read(dbias), sums, DType::f32, tolerance(DType::f32, 40))) << "run " << run;
    }
}

TEST(Matmul, EmptySizes) {
    for (DType type : all_act) {
        Device device;
        Tensor weight = device.tensor(type, {5, 7}, random_vector(35, 1), "weight");
        Tensor none_in = device.tensor(type, {0, 7}, "none_in"), none_out = device.tensor(type, {0, 5}, "none_out");
        matmul(none_out, none_in, weight, {.transpose_b = true}, device.ctx);
        Tensor grad = device.tensor(type, {5, 7}, "grad");
        matmul(grad, none_out, none_in, {.transpose_a = true}, device.ctx);
        EXPECT_EQ(device.read(grad), Vector(35, 0.0));  // a sum over no rows
        matmul(weight, none_out, none_in, {.transpose_a = true, .accumulate = true}, device.ctx);
        EXPECT_EQ(device.read(weight), rounded(type, random_vector(35, 1)));
        Tensor dbias = device.tensor(statistics_dtype(type), {5}, "dbias");
        bias_backward(dbias, none_out, false, device.ctx);
        EXPECT_EQ(device.read(dbias), Vector(5, 0.0));
    }
}

TEST(Matmul, NamesTheWrongTensor) {
    Device device;
    Context& ctx = device.ctx;
    Tensor a = device.tensor(DType::f32, {3, 4}, "input_a"), b = device.tensor(DType::f32, {5, 6}, "weight_b");
    Tensor out = device.tensor(DType::f32, {3, 6}, "result"), half = device.tensor(DType::bf16, {4, 6}, "half");
    Tensor good = device.tensor(DType::f32, {4, 6}, "good"), bias = device.tensor(DType::f32, {5}, "bias");
    EXPECT_TRUE(refuses([&] { matmul(out, a, b, {}, ctx); }, "weight_b"));
    EXPECT_TRUE(refuses([&] { matmul(out, a, half, {}, ctx); }, "half has dtype BF16"));
    EXPECT_TRUE(refuses([&] { matmul(b, a, good, {}, ctx); }, "weight_b [5, 6] cannot hold"));
    EXPECT_TRUE(refuses([&] { matmul(out, a, good, {.bias = bias}, ctx); }, "bias has shape [5]"));
    auto refused = [&](const MatmulOptions& options, const char* part) {
        return refuses([&] { matmul(out, a, good, options, ctx); }, part);
    };
    const Activation relu = Activation::relu;
    EXPECT_TRUE(refused({.accumulate = true, .activation = relu}, "result cannot accumulate"));
    EXPECT_TRUE(refused({.accumulate = true, .backward = relu, .pre = out}, "result cannot accumulate"));
    EXPECT_TRUE(refused({.backward = relu}, "result needs `pre`"));
    EXPECT_TRUE(refused({.activation = relu, .backward = relu, .pre = out}, "together with the gradient of one"));
    EXPECT_TRUE(refused({.pre = b}, "weight_b is given without an activation"));
    EXPECT_TRUE(refused({.value = b}, "weight_b is given without the gradient of an activation"));
    EXPECT_TRUE(refused({.activation = relu, .pre = b}, "weight_b has shape [5, 6]"));
    Tensor wide = device.tensor(DType::f32, {3, 8}, "wide");
    wide.shape.dim[1] = 6;
    EXPECT_TRUE(refuses([&] { matmul(wide, a, good, {.activation = relu}, ctx); }, "wide must be contiguous"));
    Tensor wrong = device.tensor(DType::f32, {7}, "wrong");
    EXPECT_TRUE(refuses([&] { bias_backward(wrong, out, false, ctx); }, "wrong has shape [7]"));
}

TEST(Matmul, CountsFlopsAndTouchesNothingWhileCounting) {
    Device device({.counting = true});
    Tensor a = device.tensor(DType::f32, {2, 3, 4}, "a"), b = device.tensor(DType::f32, {2, 4, 5}, "b");
    Tensor out = device.tensor(DType::f32, {2, 3, 5}, "out");
    matmul(out, a, b, {}, device.ctx);
    EXPECT_EQ(device.ctx.flops, 2 * 2 * 3 * 4 * 5);
    matmul(out, a, b, {.activation = Activation::gelu}, device.ctx);
    EXPECT_GT(device.ctx.flops, 2 * 2 * 2 * 3 * 4 * 5);
}

TEST(Matmul, SameThreadsSameBits) {
    Vector results[2];
    for (Vector& result : results) {
        Device device;
        Tensor a = device.tensor(DType::f32, {1000, 65}, random_vector(65000, 1), "a");
        Tensor b = device.tensor(DType::f32, {1000, 33}, random_vector(33000, 2), "b"),
               out = device.tensor(DType::f32, {65, 33}, "out");
        matmul(out, a, b, {.transpose_a = true}, device.ctx);
        result = device.read(out);
    }
    EXPECT_EQ(results[0], results[1]);
}

// Columns: packed and not, more than one tile of 32 lanes, fewer than one. Rows: from none to more than 128 chunks.
TEST(BiasBackward, ColumnSums) {
    struct Case { int64_t rows, columns; };
    for (DType type : all_act)
        for (Case c : {Case{1, 33}, {3, 33}, {65, 36}, {200, 264}, {1000, 33}, {9000, 8}, {0, 8}})
            for (bool accumulate : {false, true}) {
                Device device;
                const int64_t n = c.columns;
                DType sum_type = statistics_dtype(type);
                Tensor dout = device.tensor(type, {c.rows, n}, random_vector(c.rows * n, 1), "dout");
                Vector start = accumulate ? rounded(sum_type, random_vector(n, 2)) : Vector(size_t(n), 0.0);
                Tensor dbias =
                    accumulate ? device.tensor(sum_type, {n}, start, "dbias") : device.tensor(sum_type, {n}, "dbias");
                bias_backward(dbias, dout, accumulate, device.ctx);
                Vector v = device.read(dout);
                Sums want{start, magnitudes(start)};
                for (size_t i = 0; i < v.size(); i++) {
                    want.value[i % size_t(n)] += v[i];
                    want.terms[i % size_t(n)] += std::abs(v[i]);
                }
                EXPECT_TRUE(close_sums(device.read(dbias), want, sum_type, tolerance(sum_type, c.rows)))
                    << name_of(type) << " rows " << c.rows << " columns " << n;
            }
}

TEST(BiasBackward, NotANumberStaysInItsColumn) {
    for (DType type : all_act) {
        Device device;
        Vector v = random_vector(200 * 16, 1);
        v[150 * 16 + 5] = nan_value;
        Tensor dout = device.tensor(type, {200, 16}, v, "dout");
        Tensor dbias = device.tensor(statistics_dtype(type), {16}, "dbias");
        bias_backward(dbias, dout, false, device.ctx);
        Vector got = device.read(dbias);
        for (size_t j = 0; j < 16; j++) EXPECT_EQ(std::isnan(got[j]), j == 5) << name_of(type) << " column " << j;
    }
}

TEST(BiasBackward, SameBitsForAnyNumberOfThreads) {
    Vector results[2];
    for (int i = 0; i < 2; i++) {
        Device device({.threads = i ? 5 : 1});
        Tensor dout = device.tensor(DType::f32, {777, 65}, random_vector(777 * 65, 1), "dout");
        Tensor dbias = device.tensor(DType::f32, {65}, "dbias");
        bias_backward(dbias, dout, false, device.ctx);
        results[i] = device.read(dbias);
    }
    EXPECT_EQ(results[0], results[1]);
}

}  // namespace
}  // namespace llmc::test
