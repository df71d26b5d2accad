// matmul and bias_backward against float64 loops: all types, transposes, strides, odd sizes, accumulation.
#include "dev/test/reference.h"
#include "llmc/ops/cpu/backend.h"

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
    Vector want = matmul_oracle(device.read(a), device.read(b), m, n, k, ta, tb);
    if (accumulate)
        for (size_t i = 0; i < want.size(); i++) want[i] += start[i];
    EXPECT_TRUE(close(device.read(out), want, tolerance(out_type, k)))
        << name_of(in) << " to " << name_of(out_type) << " " << m << "x" << n << "x" << k << " transposes " << ta << tb
        << " accumulate " << accumulate;
}

TEST(Matmul, OddSizesAllTypesTransposesAndAccumulation) {
    const int64_t sizes[] = {1, 3, 7, 17, 33, 65};
    for (auto [in, out] : {std::pair{DType::f32, DType::f32},
                           {DType::bf16, DType::f32},
                           {DType::bf16, DType::bf16},
                           {DType::f64, DType::f64}})
        for (int i = 0; i < 36; i++) {
            Device device;
            check_product(device, in, out, sizes[i % 6], sizes[(i + i / 6) % 6], sizes[(i * 5 + 2) % 6], i & 1, i & 2,
                          i & 4);
        }
}

TEST(Matmul, BlocksLargerThanOneTile) {
    for (DType type : all_act)
        for (int transposes = 0; transposes < 4; transposes++) {
            Device device;
            check_product(device, type, type, 113, 157, 301, transposes & 1, transposes & 2, transposes == 1);
        }
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
    EXPECT_TRUE(close(device.read(out), matmul_oracle(vx, vw, B * T, O, C, false, true), tolerance(DType::f32, C)));
    EXPECT_TRUE(close(device.read(dx), matmul_oracle(vd, vw, B * T, C, O, false, false), tolerance(DType::f32, O)));
    EXPECT_TRUE(
        close(device.read(dweight), matmul_oracle(vd, vx, O, C, B * T, true, false), tolerance(DType::f32, B * T)));
}

TEST(Matmul, Batched) {
    const int64_t E = 5, m = 17, n = 33, k = 7;
    for (DType type : all_act)
        for (int transposes = 0; transposes < 4; transposes++) {
            bool ta = transposes & 1, tb = transposes & 2;
            Device device;
            Tensor a = device.tensor(type, ta ? Shape{E, k, m} : Shape{E, m, k}, random_vector(E * m * k, 1), "a");
            Tensor b = device.tensor(type, tb ? Shape{E, n, k} : Shape{E, k, n}, random_vector(E * k * n, 2), "b");
            Tensor out = device.tensor(type, {E, m, n}, "out");
            matmul(out, a, b, {.transpose_a = ta, .transpose_b = tb}, device.ctx);
            Vector got = device.read(out), va = device.read(a), vb = device.read(b);
            for (int64_t e = 0; e < E; e++) {
                auto part = [e](const Vector& v, int64_t size) {
                    return Vector(v.begin() + e * size, v.begin() + (e + 1) * size);
                };
                Vector want = matmul_oracle(part(va, m * k), part(vb, k * n), m, n, k, ta, tb);
                EXPECT_TRUE(close(part(got, m * n), want, tolerance(type, k))) << name_of(type) << " expert " << e;
            }
        }
}

// Columns 3..9 of wider matrices: leading dimension and batch stride differ from the shape's.
TEST(Matmul, ViewsWithStrides) {
    Device device;
    const int64_t E = 3, m = 5, n = 7, k = 6, wide = 20;
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

TEST(Matmul, BiasAndRelu) {
    const int64_t m = 33, n = 17, k = 7;
    for (DType type : all_act)
        for (bool relu : {false, true}) {
            Device device;
            Tensor a = device.tensor(type, {m, k}, random_vector(m * k, 1), "a");
            Tensor b = device.tensor(type, {n, k}, random_vector(n * k, 2), "b");
            Tensor bias = device.tensor(type, {n}, random_vector(n, 3), "bias");
            Tensor out = device.tensor(type, {m, n}, "out");
            matmul(out, a, b,
                   {.transpose_b = true, .bias = bias, .activation = relu ? Activation::relu : Activation::none},
                   device.ctx);
            Vector want = matmul_oracle(device.read(a), device.read(b), m, n, k, false, true),
                   added = device.read(bias);
            for (size_t i = 0; i < want.size(); i++) {
                want[i] += added[i % size_t(n)];
                if (relu) want[i] = std::max(0.0, want[i]);
            }
            EXPECT_TRUE(close(device.read(out), want, tolerance(type, k))) << name_of(type) << " relu " << relu;
        }
}

// A diverging model must be seen, not clipped to zero by a ReLU.
TEST(Matmul, NotANumberAndInfinityPassThrough) {
    for (DType type : all_act)
        for (bool relu : {false, true}) {
            Device device;
            Vector va = random_vector(17 * 33, 1);
            va[5] = nan_value;        // row 0
            va[33 * 2 + 1] = infinity;  // row 2
            Tensor a = device.tensor(type, {17, 33}, va, "a");
            Tensor b = device.tensor(type, {33, 9}, Vector(33 * 9, 0.5), "b"),
                   out = device.tensor(type, {17, 9}, "out");
            matmul(out, a, b, {.activation = relu ? Activation::relu : Activation::none}, device.ctx);
            Vector got = device.read(out);
            for (size_t j = 0; j < 9; j++) {
                EXPECT_TRUE(std::isnan(got[j])) << name_of(type) << " relu " << relu;
                EXPECT_EQ(got[2 * 9 + j], infinity);
                EXPECT_TRUE(std::isfinite(got[9 + j]));
            }
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
    EXPECT_TRUE(refuses([&] { matmul(out, a, good, {.activation = Activation::gelu}, ctx); }, "relu"));
    EXPECT_TRUE(refuses([&] { matmul(out, a, good, {.accumulate = true, .activation = Activation::relu}, ctx); },
                        "accumulate"));
    Tensor wrong = device.tensor(DType::f32, {7}, "wrong");
    EXPECT_TRUE(refuses([&] { bias_backward(wrong, out, false, ctx); }, "wrong has shape [7]"));
}

TEST(Matmul, CountsFlopsAndTouchesNothingWhileCounting) {
    Device device({.counting = true});
    Tensor a = device.tensor(DType::f32, {2, 3, 4}, "a"), b = device.tensor(DType::f32, {2, 4, 5}, "b");
    Tensor out = device.tensor(DType::f32, {2, 3, 5}, "out");
    matmul(out, a, b, {}, device.ctx);
    EXPECT_EQ(device.ctx.flops, 2 * 2 * 3 * 4 * 5);
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

// Forward, input gradient and weight gradient of layers as they are trained, and odd ones: none may fall to the
// library's slow reference code.
TEST(Matmul, NoReferenceImplementation) {
    Device device;
    GemmLibrary* library = device.ctx.backend->gemm;
    struct Layer { int64_t batch, rows, in, out; };
    const std::vector<Layer> layers = {
        {1, 8192, 512, 1536}, {1, 8192, 512, 2048}, {1, 8192, 2048, 512}, {1, 2048, 768, 3072}, {1, 512, 512, 50257},
        {1, 512, 512, 50304}, {1, 8192, 512, 32},   {32, 64, 512, 128},   {32, 64, 128, 512},   {1, 1, 512, 512},
        {1, 7, 33, 65},       {3, 17, 65, 33},      {1, 1, 1, 1}};
    for (const Layer& l : layers)
        for (DType type : {DType::f32, DType::bf16}) {
            if (type == DType::bf16 && !gemm_has_bf16(library)) continue;
            auto expect_fast = [&](int64_t m, int64_t n, int64_t k, bool ta, bool tb, DType out, bool accumulate) {
                int64_t lda = ta ? m : k, ldb = tb ? k : n;
                GemmProblem p{.batch = l.batch, .m = m, .n = n, .k = k, .in = type, .out = out,
                              .transpose_a = ta, .transpose_b = tb, .lda = lda, .ldb = ldb, .ldc = n,
                              .stride_a = m * k, .stride_b = k * n, .stride_c = m * n,
                              .accumulate = accumulate, .bias = false};
                std::string implementation = gemm_implementation(library, p);
                EXPECT_EQ(implementation.find("ref"), std::string::npos) << p.text() << " runs on " << implementation;
            };
            expect_fast(l.rows, l.out, l.in, false, true, type, false);
            expect_fast(l.rows, l.in, l.out, false, false, type, false);
            expect_fast(l.out, l.in, l.rows, true, false, DType::f32, false);
            expect_fast(l.out, l.in, l.rows, true, false, DType::f32, true);
        }
}

TEST(BiasBackward, ColumnSums) {
    for (DType type : all_act)
        for (int64_t rows : {1, 3, 65, 1000})
            for (bool accumulate : {false, true}) {
                Device device;
                const int64_t n = 33;
                DType sum_type = statistics_dtype(type);
                Tensor dout = device.tensor(type, {rows, n}, random_vector(rows * n, 1), "dout");
                Vector want = accumulate ? random_vector(n, 2) : Vector(size_t(n), 0.0);
                Tensor dbias =
                    accumulate ? device.tensor(sum_type, {n}, want, "dbias") : device.tensor(sum_type, {n}, "dbias");
                bias_backward(dbias, dout, accumulate, device.ctx);
                Vector v = device.read(dout);
                for (size_t i = 0; i < v.size(); i++) want[i % size_t(n)] += v[i];
                EXPECT_TRUE(close(device.read(dbias), want, tolerance(sum_type, rows)))
                    << name_of(type) << " rows " << rows;
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
