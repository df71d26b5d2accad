// The CPU backend's GEMM library: none of our shapes may fall to its slow code.
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace llmc::test
