// Products on the CPU: none of our shapes may fall to the library's slow code, and those that are made here are right
// on every machine, whether matmul would choose them there or not.
#include <gtest/gtest.h>

#include <atomic>

#include "dev/test/reference.h"
#include "llmc/ops/cpu/backend.h"

namespace llmc::test {
namespace {

// Forward, input gradient and weight gradient of layers as they are trained, and odd ones: none may fall to the
// library's slow reference code.
TEST(CpuGemm, NoReferenceImplementation) {
    Context ctx;
    GemmLibrary* library = ctx.backend->gemm;
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

// What p asks for in float64. Unlike matmul_sums's, its matrices have padding and batches.
Vector strided_product(const GemmProblem& p, const Vector& a, const Vector& b, const Vector& bias, Vector c) {
    for (int64_t matrix = 0; matrix < p.batch; matrix++)
        for (int64_t i = 0; i < p.m; i++)
            for (int64_t j = 0; j < p.n; j++) {
                double& sum = c[size_t(matrix * p.stride_c + i * p.ldc + j)];
                sum = p.accumulate ? sum : p.bias ? bias[size_t(j)] : 0;
                for (int64_t k = 0; k < p.k; k++)
                    sum += a[size_t(matrix * p.stride_a + (p.transpose_a ? k * p.lda + i : i * p.lda + k))] *
                           b[size_t(matrix * p.stride_b + (p.transpose_b ? j * p.ldb + k : k * p.ldb + j))];
            }
    return c;
}

// gemm_packed against float64 loops: strips and panels with remainders, depths and widths beyond what is copied at a
// time, rows with padding, batches that threads share, a bias, accumulation. Every element of C is finished once, when
// it has its final value, which has the same bits for any number of threads.
TEST(CpuGemm, PackedProducts) {
    struct Size { int64_t batch, m, n, k; };
    const std::vector<Size> sizes = {{1, 8, 32, 16},   {1, 61, 77, 300}, {1, 13, 1061, 5},  {1, 130, 545, 530},
                                     {3, 17, 33, 40},  {2, 24, 64, 64},  {1, 3, 2, 1},      {1, 70, 128, 1100},
                                     {1, 300, 31, 257}, {5, 1, 40, 9}};
    Device device({.threads = 3});
    for (const Size& s : sizes)
        for (int kind = 0; kind < 16; kind++) {
            const bool ta = kind & 1, tb = kind & 2, accumulate = kind & 4, bias = (kind & 8) && !accumulate;
            const int64_t pad = kind & 8 ? 7 : 0;
            const Shape a_shape = ta ? Shape{s.k, s.m + pad} : Shape{s.m, s.k + pad};
            const Shape b_shape = tb ? Shape{s.n, s.k + pad} : Shape{s.k, s.n + pad};
            const GemmProblem p{.batch = s.batch, .m = s.m, .n = s.n, .k = s.k, .in = DType::f32, .out = DType::f32,
                                .transpose_a = ta, .transpose_b = tb,
                                .lda = a_shape[1], .ldb = b_shape[1], .ldc = s.n + pad,
                                .stride_a = a_shape.numel(), .stride_b = b_shape.numel(),
                                .stride_c = s.m * (s.n + pad), .accumulate = accumulate, .bias = bias};
            const Vector a = rounded(DType::f32, random_vector(s.batch * p.stride_a, 1));
            const Vector b = rounded(DType::f32, random_vector(s.batch * p.stride_b, 2));
            const Vector c = rounded(DType::f32, random_vector(s.batch * p.stride_c, 3));
            const Vector shift = rounded(DType::f32, random_vector(s.n, 4));
            const Sums want{strided_product(p, a, b, shift, c),
                            strided_product(p, magnitudes(a), magnitudes(b), magnitudes(shift), magnitudes(c))};
            const std::vector<float> fa(a.begin(), a.end()), fb(b.begin(), b.end()), fc(c.begin(), c.end());
            const std::vector<float> fshift(shift.begin(), shift.end());
            std::vector<float> by_one;
            for (int threads : {1, 2, 3}) {
                std::vector<float> got = fc, finished = fc;
                std::vector<std::atomic<int>> times(fc.size());
                gemm_packed(p, fa.data(), fb.data(), bias ? fshift.data() : nullptr, got.data(),
                            device.ctx.backend->packed.get(), threads, [&](float* begin, int64_t count) {
                                const int64_t at = begin - got.data();
                                std::copy_n(begin, count, finished.begin() + at);
                                for (int64_t i = 0; i < count; i++) times[size_t(at + i)]++;
                            });
                if (threads == 1) by_one = got;
                const std::string what = str(p.text(), " kind ", kind, " threads ", threads);
                EXPECT_TRUE(close_sums(Vector(got.begin(), got.end()), want, DType::f32, tolerance(DType::f32, s.k)))
                    << what;
                EXPECT_EQ(got, by_one) << what;
                EXPECT_EQ(finished, got) << what;
                for (size_t i = 0; i < times.size(); i++)
                    ASSERT_EQ(times[i], int64_t(i) % p.ldc < s.n ? 1 : 0) << what;
            }
        }
}

}  // namespace
}  // namespace llmc::test
