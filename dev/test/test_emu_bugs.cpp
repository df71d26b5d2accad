// Bugs planted on purpose, each beside the right version: what the emulator catches, and with which build. The right
// versions (Twin) run as ordinary tests. The bugs are disabled tests, which emu_bugs.sh runs one by one in all builds,
// expecting that they fail: by wrong numbers or by a report.
#include <gtest/gtest.h>

#include <algorithm>

#include "dev/test/emulated_device.h"

namespace llmc::test {
namespace {

constexpr int threads = 96;

// PLANTED(Name, body): body is a function of `constexpr bool bug` that returns whether the results are right.
#define PLANTED(name, ...)                                         \
    template <bool bug>                                            \
    bool name() __VA_ARGS__                                        \
    TEST(Twin, name) { EXPECT_TRUE(name<false>()); }               \
    TEST(DISABLED_Bug, name) { EXPECT_TRUE(name<true>()); }

std::vector<float> numbers(int n) {
    std::vector<float> x;
    for (int i = 0; i < n; i++) x.push_back(float(i % 13));
    return x;
}

// ------------------------------------------------------------------------------------------------------------ barriers
// out[t] = in[t + 1], once around the block.
template <bool bug>
__global__ void neighbour(float* out, const float* in) {
    SHARED(float, tile, [threads]);
    tile[threadIdx.x] = in[threadIdx.x];
    if (!bug) __syncthreads();
    out[threadIdx.x] = tile[(threadIdx.x + 1) % threads];
}
PLANTED(MissingBarrierBeforeRead, {
    Array<float> in(numbers(threads)), out(threads, 0);
    run(neighbour<bug>, dim3(1), dim3(threads), 0, out.data(), in.data());
    bool right = true;
    for (size_t t = 0; t < threads; t++) right &= out.host()[t] == in.host()[(t + 1) % threads];
    return right;
})

// Sums of columns; every round uses the same piece of shared memory again.
template <bool bug>
__global__ void sums_of_tiles(float* out, const float* in, int tiles) {
    SHARED(float, tile, [threads]);
    float sum = 0;
    for (int i = 0; i < tiles; i++) {
        tile[threadIdx.x] = in[i * threads + int(threadIdx.x)];
        __syncthreads();
        sum += tile[(threadIdx.x + 40) % threads];
        if (!bug) __syncthreads();
    }
    out[threadIdx.x] = sum;
}
PLANTED(MissingBarrierBeforeReuse, {
    Array<float> in(numbers(5 * threads)), out(threads, 0);
    run(sums_of_tiles<bug>, dim3(1), dim3(threads), 0, out.data(), in.data(), 5);
    bool right = true;
    for (size_t t = 0; t < threads; t++) {
        float sum = 0;
        for (size_t i = 0; i < 5; i++) sum += in.host()[i * threads + (t + 40) % threads];
        right &= out.host()[t] == sum;
    }
    return right;
})

template <bool bug>
__global__ void swap_lanes(float* out) {
    SHARED(float, tile, [32]);
    tile[threadIdx.x] = float(threadIdx.x);
    if (bug) __shfl_sync(full_mask, 1, 0);  // orders nothing
    else __syncwarp();
    out[threadIdx.x] = tile[threadIdx.x ^ 1];
}
PLANTED(ShuffleTakenForBarrier, {
    Array<float> out(32, 0);
    run(swap_lanes<bug>, dim3(1), dim3(32), 0, out.data());
    return out.host()[4] == 5;
})

template <bool bug>
__global__ void two_barriers(float* out) {
    SHARED(float, tile, [64]);
    tile[threadIdx.x] = 1;
    if (bug && threadIdx.x < 32) __syncthreads();
    else __syncthreads();
    out[threadIdx.x] = tile[63 - threadIdx.x];
}
PLANTED(DivergentBarrier, {
    Array<float> out(64, 0);
    run(two_barriers<bug>, dim3(1), dim3(64), 0, out.data());
    return out.host() == std::vector<float>(64, 1.0f);
})

// ------------------------------------------------------------------------------------------------------------- memory
template <bool bug>
__global__ void count_threads(int* count) {
    if (threadIdx.x != 0) return;
    if (bug) *count += 1;
    else atomicAdd(count, 1);
}
PLANTED(MissingAtomic, {
    Array<int> count({0});
    run(count_threads<bug>, dim3(20), dim3(32), 0, count.data());
    return count.host()[0] == 20;
})

template <bool bug>
__global__ void add_packs(float* x, int n) {
    const int i = 4 * int(threadIdx.x);
    if (bug ? i <= n : i < n) {
        Pack<float> p = load_pack(x + i);
        for (int j = 0; j < 4; j++) p[j] += 1;
        store_pack(x + i, p);
    }
}
PLANTED(GlobalOverrun, {
    Array<float> x(64, 0);
    run(add_packs<bug>, dim3(1), dim3(32), 0, x.data(), 64);
    return x.host() == std::vector<float>(64, 1.0f);
})

template <bool bug>
__global__ void sum_static(float* out) {
    SHARED(float, tile, [32]);
    tile[threadIdx.x] = 1;
    __syncthreads();
    float sum = 0;
    const float* p = tile;
    for (int i = 0; i < (bug ? 33 : 32); i++) sum += p[i];
    out[threadIdx.x] = sum;
}
PLANTED(StaticSharedOverrun, {
    Array<float> out(32, 0);
    run(sum_static<bug>, dim3(1), dim3(32), 0, out.data());
    return out.host() == std::vector<float>(32, 32.0f);
})

__global__ void sum_dynamic(float* out) {
    DYN_SHARED(float, tile);
    tile[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = tile[0] + tile[31 - threadIdx.x];
}
PLANTED(DynamicSharedOverrun, {
    Array<float> out(32, 0);
    run(sum_dynamic, dim3(1), dim3(32), (bug ? 31 : 32) * sizeof(float), out.data());
    return out.host() == std::vector<float>(32, 2.0f);
})

template <bool bug>
__global__ void count_in_shared(int* out) {
    SHARED(int, count, [1]);
    if (!bug && threadIdx.x == 0) count[0] = 0;
    __syncthreads();
    atomicAdd(count, 1);
    __syncthreads();
    if (threadIdx.x == 0) out[blockIdx.x] = count[0];
}
PLANTED(UninitialisedShared, {
    Array<int> out(3, 0);
    run(count_in_shared<bug>, dim3(3), dim3(threads), 0, out.data());
    return out.host() == std::vector<int>(3, threads);
})

__global__ void accumulate(float* x) { x[threadIdx.x] += 1; }
PLANTED(UninitialisedGlobal, {
    float* x;
    float result = 0;
    cudaMalloc(reinterpret_cast<void**>(&x), 32 * sizeof(float));
    if (!bug) cudaMemset(x, 0, 32 * sizeof(float));
    run(accumulate, dim3(1), dim3(32), 0, x);
    cudaMemcpy(&result, x + 31, sizeof result, cudaMemcpyDeviceToHost);
    cudaFree(x);
    return result == 1;
})

PLANTED(UseAfterFree, {
    Array<float> x(32, 0);
    float* freed;
    cudaMalloc(reinterpret_cast<void**>(&freed), 32 * sizeof(float));
    if (bug) cudaFree(freed);
    run(accumulate, dim3(1), dim3(32), 0, freed);
    if (!bug) cudaFree(freed);
    return true;
})

// ------------------------------------------------------------------------------------------------ asynchronous copies
enum class CopyBug { none, wait, barrier };
template <CopyBug bug>
__global__ void copy_backwards(float* out, const float* in) {
    SHARED(float, tile, [4 * threads]);
    cp_async16(tile + 4 * threadIdx.x, in + 4 * threadIdx.x);
    cp_async_commit();
    if (bug != CopyBug::wait) cp_async_wait<0>();
    if (bug != CopyBug::barrier) __syncthreads();
    for (unsigned i = 0; i < 4; i++) out[4 * threadIdx.x + i] = tile[4 * threads - 1 - (4 * threadIdx.x + i)];
    cp_async_wait<0>();
}
bool copies_backwards(void (*kernel)(float*, const float*)) {
    Array<float> in(numbers(4 * threads)), out(4 * threads, 0);
    run(kernel, dim3(1), dim3(threads), 0, out.data(), in.data());
    std::vector<float> expected = in.host();
    std::reverse(expected.begin(), expected.end());
    return out.host() == expected;
}
PLANTED(MissingCopyWait, {
    return copies_backwards(copy_backwards<bug ? CopyBug::wait : CopyBug::none>);
})
PLANTED(MissingBarrierAfterCopyWait, {
    return copies_backwards(copy_backwards<bug ? CopyBug::barrier : CopyBug::none>);
})

// ------------------------------------------------------------------------------------------------------------ the host
__global__ void set(float* x, float value) { *x = value; }

PLANTED(HostDoesNotWait, {
    Array<float> x({0});
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    float result = 0;
    enqueue(set, dim3(1), dim3(1), 0, stream, x.data(), 4.0f);
    cudaMemcpyAsync(&result, x.data(), sizeof result, cudaMemcpyDeviceToHost, stream);
    if (!bug) cudaStreamSynchronize(stream);
    const bool right = result == 4;
    cudaStreamDestroy(stream);
    return right;
})

PLANTED(MissingEvent, {
    bool right = true;
    for (int i = 0; i < 20; i++) {
        Array<float> x({0}), y({0});
        cudaStream_t compute, communication;
        cudaEvent_t ready;
        cudaStreamCreateWithFlags(&compute, cudaStreamNonBlocking);
        cudaStreamCreateWithFlags(&communication, cudaStreamNonBlocking);
        cudaEventCreate(&ready);
        enqueue(set, dim3(1), dim3(1), 0, compute, x.data(), 4.0f);
        cudaEventRecord(ready, compute);
        if (!bug) cudaStreamWaitEvent(communication, ready);
        cudaMemcpyAsync(y.data(), x.data(), sizeof(float), cudaMemcpyDeviceToDevice, communication);
        cudaDeviceSynchronize();
        right &= y.host()[0] == 4;
        cudaEventDestroy(ready);
        cudaStreamDestroy(compute);
        cudaStreamDestroy(communication);
    }
    return right;
})

PLANTED(HostReadsDeviceMemory, {
    Array<float> x({5});
    const float value = bug ? *x.data() : x.host()[0];
    return value == 5;
})

}  // namespace
}  // namespace llmc::test
