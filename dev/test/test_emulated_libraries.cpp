// The emulated cuBLASLt and NCCL themselves: results against plain loops, what they refuse, streams, capture. NCCL
// between processes: test_emulated_ranks.
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <nccl.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include "dev/emu/settings.h"

namespace llmc::test {
namespace {

using Floats = std::vector<float>;

Floats numbers(int64_t n, int seed) {
    Floats v(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; i++) v[size_t(i)] = float(std::sin(double(i * 7 + seed * 13) * 0.73));
    return v;
}

// Device memory with f32 elements, 256-byte aligned.
struct Memory {
    float* data = nullptr;
    size_t size;
    explicit Memory(const Floats& v) : size(v.size()) {
        EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data), (size + 1) * 4), cudaSuccess);
        write(v);
    }
    explicit Memory(size_t n) : Memory(Floats(n, NAN)) {}
    ~Memory() { cudaFree(data); }
    Memory(const Memory&) = delete;
    void write(const Floats& v) { cudaMemcpy(data, v.data(), size * 4, cudaMemcpyHostToDevice); }
    Floats read() const {
        Floats v(size);
        cudaMemcpy(v.data(), data, size * 4, cudaMemcpyDeviceToHost);
        return v;
    }
};

// One product of float matrices in columns, with everything about it open to change:
//     D [m,n] = epilogue(alpha op(A) op(B) + beta C), `batch` times.
struct Lt {
    int64_t m = 19, n = 6, k = 11, batch = 1, lda, ldb, ldd;
    bool ta = false, tb = false;
    float alpha = 1, beta = 0;
    cublasLtHandle_t handle = nullptr;
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
    cublasLtMatmulPreference_t preference = nullptr;
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    Memory workspace{256};
    cudaStream_t stream = nullptr;

    void make() {
        lda = (ta ? k : m) + 2, ldb = (tb ? n : k) + 1, ldd = m + 5;
        EXPECT_EQ(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
        cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
        set(CUBLASLT_MATMUL_DESC_TRANSA, int32_t(ta ? CUBLAS_OP_T : CUBLAS_OP_N));
        set(CUBLASLT_MATMUL_DESC_TRANSB, int32_t(tb ? CUBLAS_OP_T : CUBLAS_OP_N));
        layout(a, ta ? k : m, ta ? m : k, lda);
        layout(b, tb ? n : k, tb ? k : n, ldb);
        layout(d, m, n, ldd);
        cublasLtMatmulPreferenceCreate(&preference);
        prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(1024));
        for (auto attribute : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                               CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
            prefer(attribute, uint32_t(4));
    }
    ~Lt() {
        cublasLtMatmulPreferenceDestroy(preference);
        for (auto l : {a, b, d}) cublasLtMatrixLayoutDestroy(l);
        cublasLtMatmulDescDestroy(operation);
        cublasLtDestroy(handle);
    }

    void layout(cublasLtMatrixLayout_t& l, int64_t rows, int64_t columns, int64_t ld) {
        cublasLtMatrixLayoutCreate(&l, CUDA_R_32F, uint64_t(rows), uint64_t(columns), ld);
        if (batch == 1) return;
        set(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, int32_t(batch));
        set(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, int64_t(ld * columns + 3));
    }
    template <class T>
    cublasStatus_t set(cublasLtMatmulDescAttributes_t attribute, T value) {
        return cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value);
    }
    template <class T>
    static cublasStatus_t set(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t attribute, T value) {
        return cublasLtMatrixLayoutSetAttribute(l, attribute, &value, sizeof value);
    }
    template <class T>
    cublasStatus_t prefer(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
        return cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value);
    }

    size_t size_a() const { return size_t(batch * (lda * (ta ? m : k) + 3)); }
    size_t size_b() const { return size_t(batch * (ldb * (tb ? k : n) + 3)); }
    size_t size_d() const { return size_t(batch * (ldd * n + 3)); }

    cublasStatus_t choose() {
        return cublasLtMatmulAlgoGetHeuristic(handle, operation, a, b, d, d, preference, 1, &result, &found);
    }
    cublasStatus_t run(const float* pa, const float* pb, float* pd) {
        return cublasLtMatmul(handle, operation, &alpha, pa, a, pb, b, &beta, pd, d, pd, d, &result.algo,
                              workspace.data, result.workspaceSize, stream);
    }
    // The product in double, in the layout of D; elements outside the matrices as they were.
    Floats oracle(const Floats& va, const Floats& vb, Floats vd) const {
        for (int64_t e = 0; e < batch; e++)
            for (int64_t i = 0; i < m; i++)
                for (int64_t j = 0; j < n; j++) {
                    double sum = 0;
                    for (int64_t p = 0; p < k; p++) {
                        const int64_t ia = e * int64_t(size_a()) / batch + (ta ? i * lda + p : p * lda + i);
                        const int64_t ib = e * int64_t(size_b()) / batch + (tb ? p * ldb + j : j * ldb + p);
                        sum += double(va[size_t(ia)]) * double(vb[size_t(ib)]);
                    }
                    float& to = vd[size_t(e * int64_t(size_d()) / batch + j * ldd + i)];
                    to = float(alpha * sum + (beta != 0 ? beta * double(to) : 0));
                }
        return vd;
    }
};

void expect_close(const Floats& got, const Floats& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); i++) {
        if (std::isnan(got[i]) && std::isnan(want[i])) continue;
        ASSERT_NEAR(got[i], want[i], 2e-6) << "element " << i;
    }
}

TEST(CublasLt, Products) {
    for (int i = 0; i < 8; i++) {
        Lt lt;
        lt.ta = i & 1, lt.tb = i & 2, lt.batch = i & 4 ? 3 : 1;
        if (i % 3 == 1) lt.alpha = 0.5f, lt.beta = -2;
        lt.make();
        const Floats va = numbers(int64_t(lt.size_a()), 1), vb = numbers(int64_t(lt.size_b()), 2),
                     vd = numbers(int64_t(lt.size_d()), 3);
        Memory a(va), b(vb), d(vd);
        ASSERT_EQ(lt.choose(), CUBLAS_STATUS_SUCCESS);
        ASSERT_EQ(lt.found, 1);
        ASSERT_EQ(lt.run(a.data, b.data, d.data), CUBLAS_STATUS_SUCCESS);
        cudaDeviceSynchronize();
        expect_close(d.read(), lt.oracle(va, vb, vd));
        EXPECT_TRUE(std::isnan(lt.workspace.read()[0])) << "the workspace was not used";
    }
}

// With beta = 0 what was in D does not matter, not even NaN.
TEST(CublasLt, Epilogues) {
    const float root = float(std::sqrt(2 / M_PI));
    auto gelu = [&](float x) { return 0.5f * x * (1 + std::tanh(root * (x + 0.044715f * x * x * x))); };
    auto gelu_slope = [&](float x) { return (gelu(x + 1e-2f) - gelu(x - 1e-2f)) / 2e-2f; };
    for (cublasLtEpilogue_t epilogue :
         {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_RELU_BIAS,
          CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX,
          CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DGELU}) {
        Lt lt;
        lt.make();
        Floats va = numbers(int64_t(lt.size_a()), 1), vb = numbers(int64_t(lt.size_b()), 2);
        vb[size_t(5 * lt.ldb)] = NAN;  // column 5 of D
        const Floats vbias = numbers(lt.m, 4), vaux = numbers(24 * lt.n, 5);
        Memory a(va), b(vb), d(lt.size_d()), bias(vbias), aux(vaux);
        lt.set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t(epilogue));
        lt.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.data);
        lt.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux.data);
        lt.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t(24));
        ASSERT_EQ(lt.choose(), CUBLAS_STATUS_SUCCESS);
        ASSERT_EQ(lt.run(a.data, b.data, d.data), CUBLAS_STATUS_SUCCESS);
        cudaDeviceSynchronize();
        const Floats product = lt.oracle(va, vb, Floats(lt.size_d(), NAN)), got = d.read(), got_aux = aux.read();
        for (int64_t j = 0; j < lt.n; j++)
            for (int64_t i = 0; i < lt.m; i++) {
                float want = product[size_t(j * lt.ldd + i)];
                if (epilogue & CUBLASLT_EPILOGUE_BIAS) want += vbias[size_t(i)];
                if ((epilogue & CUBLASLT_EPILOGUE_GELU_AUX) == CUBLASLT_EPILOGUE_GELU_AUX && j != 5) {
                    EXPECT_NEAR(got_aux[size_t(j * 24 + i)], want, 2e-6);
                }
                if (epilogue & CUBLASLT_EPILOGUE_RELU) want = want > 0 ? want : 0;  // of NaN too
                if (epilogue & CUBLASLT_EPILOGUE_GELU) want = gelu(want);
                if (epilogue == CUBLASLT_EPILOGUE_DGELU) want *= gelu_slope(vaux[size_t(j * 24 + i)]);
                const float tol = epilogue == CUBLASLT_EPILOGUE_DGELU ? 1e-3f : 2e-6f;  // of the differences
                const float value = got[size_t(j * lt.ldd + i)];
                if (std::isnan(want)) EXPECT_TRUE(std::isnan(value));
                else EXPECT_NEAR(value, want, tol) << "epilogue " << int(epilogue) << " at " << i << ", " << j;
            }
    }
}

// Every way to use the library wrongly that it documents gets the status it documents.
TEST(CublasLt, Refusals) {
    Lt lt;
    lt.make();
    Memory a(lt.size_a()), b(lt.size_b()), d(lt.size_d());
    const auto ok = CUBLAS_STATUS_SUCCESS, invalid = CUBLAS_STATUS_INVALID_VALUE, no = CUBLAS_STATUS_NOT_SUPPORTED;
    auto epilogue = [&](cublasLtEpilogue_t e) {
        lt.set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t(e));
        return lt.choose();
    };
    EXPECT_EQ(lt.choose(), ok);
    EXPECT_EQ(lt.set(CUBLASLT_MATMUL_DESC_EPILOGUE, char(1)), invalid);  // size of the attribute
    EXPECT_EQ(epilogue(CUBLASLT_EPILOGUE_BIAS), invalid);                // no bias
    EXPECT_EQ(epilogue(CUBLASLT_EPILOGUE_GELU_AUX), invalid);            // no second matrix
    lt.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, d.data);
    for (int64_t ld : {int64_t(18), int64_t(20), int64_t(16)}) {  // not a multiple of 8, or less than m
        lt.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, ld);
        EXPECT_EQ(lt.choose(), invalid) << ld;
    }
    EXPECT_EQ(epilogue(CUBLASLT_EPILOGUE_BGRADA), no);
    EXPECT_EQ(epilogue(CUBLASLT_EPILOGUE_DEFAULT), ok);

    auto with_layout = [&](cublasLtMatrixLayoutAttribute_t attribute, auto wrong) {
        decltype(wrong) old{};
        cublasLtMatrixLayoutGetAttribute(lt.b, attribute, &old, sizeof old, nullptr);
        Lt::set(lt.b, attribute, wrong);
        const cublasStatus_t status = lt.choose();
        Lt::set(lt.b, attribute, old);
        return status;
    };
    EXPECT_EQ(with_layout(CUBLASLT_MATRIX_LAYOUT_ROWS, uint64_t(lt.k + 1)), invalid);
    EXPECT_EQ(with_layout(CUBLASLT_MATRIX_LAYOUT_COLS, uint64_t(lt.n - 1)), invalid);
    EXPECT_EQ(with_layout(CUBLASLT_MATRIX_LAYOUT_LD, int64_t(lt.k - 1)), invalid);
    EXPECT_EQ(with_layout(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, int32_t(2)), invalid);
    EXPECT_EQ(with_layout(CUBLASLT_MATRIX_LAYOUT_ORDER, int32_t(CUBLASLT_ORDER_ROW)), no);
    EXPECT_EQ(with_layout(CUBLASLT_MATRIX_LAYOUT_TYPE, uint32_t(CUDA_R_16BF)), no);

    lt.prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t(16));
    ASSERT_EQ(lt.choose(), ok);
    EXPECT_EQ(lt.run(a.data, b.data + 1, d.data), invalid);         // aligned less than promised
    EXPECT_EQ(lt.run(a.data + 1, b.data, d.data), ok);
    EXPECT_EQ(lt.run(a.data, b.data, a.data + 8), invalid);         // overwrites its input
    Floats host(lt.size_a());
    EXPECT_EQ(lt.run(host.data(), b.data, d.data), invalid);        // not device memory
    lt.result.workspaceSize--;
    EXPECT_EQ(lt.run(a.data, b.data, d.data), invalid);             // too little workspace
    lt.result.workspaceSize++;
    Lt::set(lt.d, CUBLASLT_MATRIX_LAYOUT_LD, int64_t(lt.ldd - 1));
    EXPECT_EQ(lt.run(a.data, b.data, d.data), invalid);             // the algorithm was for another problem
    setenv("EMU_CUBLASLT_EPILOGUES", "0", 1);
    EXPECT_EQ(epilogue(CUBLASLT_EPILOGUE_RELU), no);
    EXPECT_EQ(epilogue(CUBLASLT_EPILOGUE_DEFAULT), ok);
    unsetenv("EMU_CUBLASLT_EPILOGUES");
}

// The work waits for its stream, and what it needs was copied when it was enqueued; so too in a captured graph.
TEST(CublasLt, StreamsAndGraphs) {
    const bool was_lazy = emu::settings().lazy;
    emu::settings().lazy = true;
    {
        Lt lt;
        lt.make();
        const Floats va = numbers(int64_t(lt.size_a()), 1), vb = numbers(int64_t(lt.size_b()), 2);
        const Floats vbias = numbers(lt.m, 4);
        Memory a(va), b(vb), d(lt.size_d()), bias(vbias);
        cudaStreamCreate(&lt.stream);
        lt.set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t(CUBLASLT_EPILOGUE_BIAS));
        lt.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.data);
        ASSERT_EQ(lt.choose(), CUBLAS_STATUS_SUCCESS);
        Floats want = lt.oracle(va, vb, Floats(lt.size_d(), NAN));
        for (size_t i = 0; i < want.size(); i++)
            if (!std::isnan(want[i])) want[i] += vbias[i % size_t(lt.ldd)];

        ASSERT_EQ(lt.run(a.data, b.data, d.data), CUBLAS_STATUS_SUCCESS);
        lt.alpha = 100;  // too late to matter, like the next line
        lt.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, a.data);
        cudaStreamSynchronize(lt.stream);
        expect_close(d.read(), want);

        lt.alpha = 1;
        lt.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.data);
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t executable = nullptr;
        d.write(Floats(lt.size_d(), NAN));
        ASSERT_EQ(cudaStreamBeginCapture(lt.stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
        ASSERT_EQ(lt.run(a.data, b.data, d.data), CUBLAS_STATUS_SUCCESS);
        ASSERT_EQ(cudaStreamEndCapture(lt.stream, &graph), cudaSuccess);
        ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
        cudaStreamSynchronize(lt.stream);
        EXPECT_TRUE(std::isnan(d.read()[0])) << "a captured product ran";
        ASSERT_EQ(cudaGraphLaunch(executable, lt.stream), cudaSuccess);
        cudaStreamSynchronize(lt.stream);
        expect_close(d.read(), want);
        cudaGraphExecDestroy(executable);
        cudaGraphDestroy(graph);
        cudaStreamDestroy(lt.stream);
    }
    emu::settings().lazy = was_lazy;
}

TEST(Nccl, OneRank) {
    ncclUniqueId id;
    ncclComm_t comm = nullptr;
    int version = 0, ranks = 0, rank = -1;
    ncclResult_t error = ncclSystemError;
    EXPECT_EQ(ncclGetVersion(&version), ncclSuccess);
    EXPECT_EQ(version, NCCL_VERSION_CODE);
    ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
    EXPECT_EQ(ncclCommInitRank(&comm, 1, id, 1), ncclInvalidArgument);
    ASSERT_EQ(ncclCommInitRank(&comm, 1, id, 0), ncclSuccess);
    EXPECT_EQ(ncclCommCount(comm, &ranks), ncclSuccess);
    EXPECT_EQ(ncclCommUserRank(comm, &rank), ncclSuccess);
    EXPECT_EQ(ranks, 1);
    EXPECT_EQ(rank, 0);
    EXPECT_EQ(ncclCommGetAsyncError(comm, &error), ncclSuccess);
    EXPECT_EQ(error, ncclSuccess);

    const Floats v = numbers(33, 1);
    Memory from(v);
    auto expect_copy = [&](auto call) {
        Memory to(v.size());
        EXPECT_EQ(call(to.data), ncclSuccess);
        cudaDeviceSynchronize();
        EXPECT_EQ(to.read(), v);
    };
    for (ncclRedOp_t op : {ncclSum, ncclProd, ncclMax, ncclMin, ncclAvg}) {
        expect_copy([&](float* to) { return ncclAllReduce(from.data, to, 33, ncclFloat32, op, comm, nullptr); });
        expect_copy([&](float* to) { return ncclReduceScatter(from.data, to, 33, ncclFloat32, op, comm, nullptr); });
        expect_copy([&](float* to) { return ncclReduce(from.data, to, 33, ncclFloat32, op, 0, comm, nullptr); });
    }
    expect_copy([&](float* to) { return ncclAllGather(from.data, to, 66, ncclBfloat16, comm, nullptr); });
    expect_copy([&](float* to) { return ncclBroadcast(from.data, to, 33 * 4, ncclInt8, 0, comm, nullptr); });
    EXPECT_EQ(ncclAllReduce(from.data, from.data, 33, ncclFloat32, ncclSum, comm, nullptr), ncclSuccess);  // in place
    EXPECT_EQ(from.read(), v);

    EXPECT_EQ(ncclAllReduce(from.data, from.data + 1, 32, ncclFloat32, ncclSum, comm, nullptr), ncclInvalidUsage);
    EXPECT_EQ(ncclBroadcast(from.data, from.data, 33, ncclFloat32, 1, comm, nullptr), ncclInvalidArgument);
    EXPECT_EQ(ncclAllReduce(nullptr, from.data, 33, ncclFloat32, ncclSum, comm, nullptr), ncclInvalidArgument);
    EXPECT_EQ(ncclCommDestroy(comm), ncclSuccess);
}

TEST(Nccl, Groups) {
    ncclUniqueId id;
    ncclComm_t comm = nullptr;
    ncclGetUniqueId(&id);
    ASSERT_EQ(ncclCommInitRank(&comm, 1, id, 0), ncclSuccess);
    const Floats v = numbers(33, 1);
    Memory from(v), to(v.size()), reduced(v.size());
    EXPECT_EQ(ncclSend(from.data, 33, ncclFloat32, 0, comm, nullptr), ncclInvalidUsage);  // would wait for itself
    EXPECT_EQ(ncclGroupEnd(), ncclInvalidUsage);

    ASSERT_EQ(ncclGroupStart(), ncclSuccess);
    ASSERT_EQ(ncclGroupStart(), ncclSuccess);  // groups nest
    EXPECT_EQ(ncclRecv(to.data, 33, ncclFloat32, 0, comm, nullptr), ncclSuccess);
    EXPECT_EQ(ncclSend(from.data, 33, ncclFloat32, 0, comm, nullptr), ncclSuccess);
    EXPECT_EQ(ncclAllReduce(from.data, reduced.data, 33, ncclFloat32, ncclSum, comm, nullptr), ncclSuccess);
    ASSERT_EQ(ncclGroupEnd(), ncclSuccess);
    cudaDeviceSynchronize();
    EXPECT_TRUE(std::isnan(to.read()[0])) << "a group that is still open did something";
    EXPECT_TRUE(std::isnan(reduced.read()[0])) << "a group that is still open did something";
    ASSERT_EQ(ncclGroupEnd(), ncclSuccess);
    cudaDeviceSynchronize();
    EXPECT_EQ(to.read(), v);
    EXPECT_EQ(reduced.read(), v);

    ASSERT_EQ(ncclGroupStart(), ncclSuccess);
    EXPECT_EQ(ncclSend(from.data, 33, ncclFloat32, 0, comm, nullptr), ncclSuccess);
    EXPECT_EQ(ncclGroupEnd(), ncclInvalidUsage);  // a send without a receive
    EXPECT_EQ(ncclCommDestroy(comm), ncclSuccess);
}

}  // namespace
}  // namespace llmc::test
