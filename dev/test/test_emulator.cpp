// The device side of the emulator: order of threads, shuffles, votes, barriers, atomics, shared memory, tensor cores
// and asynchronous copies do what CUDA's manuals say. Only for BACKEND=emu.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "dev/test/emulated_device.h"

namespace llmc::test {
namespace {

// Every test of results runs in ascending, descending and two random orders.
class Emulator : public testing::TestWithParam<long> {
protected:
    Emulator() { emu::settings().seed = GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Seeds, Emulator, testing::Values(0, 1, 2, 77));

// ---------------------------------------------------------------------------------------------------- threads, order
__global__ void number_threads(int* count, int* shape_errors) {
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    atomicAdd(&count[block * (blockDim.x * blockDim.y * blockDim.z) + thread], 1);
    if (blockDim.x != 5 || blockDim.y != 3 || blockDim.z != 4 || gridDim.x != 3 || gridDim.y != 2 || gridDim.z != 2)
        atomicAdd(shape_errors, 1);
}
TEST_P(Emulator, RunsEveryThreadOnce) {
    Array<int> count(3 * 2 * 2 * 5 * 3 * 4, 0), errors({0});
    run(number_threads, dim3(3, 2, 2), dim3(5, 3, 4), 0, count.data(), errors.data());
    EXPECT_EQ(count.host(), std::vector<int>(count.size(), 1));
    EXPECT_EQ(errors.host()[0], 0);
}

__global__ void take_numbers(int* order, int* next) {
    order[atomicAdd(next, 1)] = int(blockIdx.x * blockDim.x + threadIdx.x);
    __syncthreads();
    order[atomicAdd(next, 1)] = int(blockIdx.x * blockDim.x + threadIdx.x);
}
std::vector<int> order_of_threads(long seed) {
    emu::settings().seed = seed;
    Array<int> order(2 * 2 * 64, 0), next({0});
    run(take_numbers, dim3(2), dim3(64), 0, order.data(), next.data());
    return order.host();
}
TEST(EmulatorOrder, FollowsTheSeed) {
    std::vector<int> ascending;
    for (int block = 0; block < 2; block++) {
        for (int t = 0; t < 64; t++) ascending.push_back(block * 64 + t);
        ascending.push_back(block * 64 + 63);  // whoever comes last to a barrier goes on at once
        for (int t = 0; t < 63; t++) ascending.push_back(block * 64 + t);
    }
    EXPECT_EQ(order_of_threads(0), ascending);
    std::vector<int> descending;
    for (int number : ascending) descending.push_back(127 - number);
    EXPECT_EQ(order_of_threads(1), descending);
    const std::vector<int> random = order_of_threads(5);
    EXPECT_NE(random, ascending);
    EXPECT_TRUE(std::is_permutation(random.begin(), random.end(), ascending.begin()));
    EXPECT_NE(order_of_threads(6), random);
}

// ----------------------------------------------------------------------------------------------------------- shuffles
enum Shuffle { from, up, down, butterfly };

// The lane that `lane` reads, by the pseudo-code of the PTX ISA for shfl.sync.
int source_lane(Shuffle mode, int lane, int b, int width) {
    const int segment_mask = 32 - width, clamp = mode == up ? 0 : 31;
    const int last = (lane & segment_mask) | (clamp & ~segment_mask), first = lane & segment_mask;
    int j = lane;
    bool good = false;
    switch (mode) {
        case from:
            j = first | (b & ~segment_mask), good = j <= last;
            break;
        case up:
            j = lane - b, good = j >= last;
            break;
        case down:
            j = lane + b, good = j <= last;
            break;
        case butterfly:
            j = lane ^ b, good = j <= last;
            break;
    }
    return good ? j : lane;
}

__global__ void shuffle(int* out, Shuffle mode, int b, int width) {
    const int x = 100 + int(threadIdx.x);
    int y = 0;
    if (mode == from)
        y = __shfl_sync(full_mask, x, b, width);
    else if (mode == up)
        y = __shfl_up_sync(full_mask, x, unsigned(b), width);
    else if (mode == down)
        y = __shfl_down_sync(full_mask, x, unsigned(b), width);
    else
        y = __shfl_xor_sync(full_mask, x, b, width);
    out[threadIdx.x] = y;
}
TEST_P(Emulator, ShufflesReadTheLaneThatPtxNames) {
    for (Shuffle mode : {from, up, down, butterfly})
        for (int width : {32, 16, 4})
            for (int b : {0, 1, 3, 5, 16, 31}) {
                Array<int> out(64, 0);
                run(shuffle, dim3(1), dim3(64), 0, out.data(), mode, b, width);
                std::vector<int> expected;
                for (int t = 0; t < 64; t++)
                    expected.push_back(100 + t / 32 * 32 + source_lane(mode, t % 32, b, width));
                EXPECT_EQ(out.host(), expected) << "mode " << mode << ", width " << width << ", argument " << b;
            }
}

__global__ void shuffle_types(double* d, unsigned long long* u, float* f) {
    const int lane = int(threadIdx.x);
    d[lane] = __shfl_xor_sync(full_mask, lane + 0.125, 1);
    u[lane] = __shfl_xor_sync(full_mask, 0x100000000ull + unsigned(lane), 2);
    f[lane] = __shfl_xor_sync(full_mask, float(lane), 4);
}
TEST_P(Emulator, ShufflesMoveAllTypes) {
    Array<double> d(32, 0);
    Array<unsigned long long> u(32, 0);
    Array<float> f(32, 0);
    run(shuffle_types, dim3(1), dim3(32), 0, d.data(), u.data(), f.data());
    for (int l = 0; l < 32; l++) {
        EXPECT_EQ(d.host()[size_t(l)], (l ^ 1) + 0.125);
        EXPECT_EQ(u.host()[size_t(l)], 0x100000000ull + unsigned(l ^ 2));
        EXPECT_EQ(f.host()[size_t(l)], float(l ^ 4));
    }
}

// Three groups of lanes go through different numbers of operations at the same time.
__global__ void sums_of_groups(int* out) {
    const int lane = int(threadIdx.x), group = lane < 4 ? 0 : lane < 16 ? 1 : 2;
    const unsigned masks[3] = {0x0000000fu, 0x0000fff0u, 0xffff0000u};
    const int first[3] = {0, 4, 16}, size[3] = {4, 12, 16};
    int sum = 0;
    for (int i = 0; i < size[group]; i++) sum += __shfl_sync(masks[group], lane, first[group] + i);
    __syncwarp();
    out[lane] = sum + 1000 * __shfl_sync(full_mask, sum, 31);
}
TEST_P(Emulator, GroupsOfLanesGoTheirOwnWay) {
    Array<int> out(32, 0);
    run(sums_of_groups, dim3(1), dim3(32), 0, out.data());
    for (int l = 0; l < 32; l++) {
        const int own = l < 4 ? 6 : l < 16 ? 114 : 376;  // 0 + ... + 3, 4 + ... + 15, 16 + ... + 31
        EXPECT_EQ(out.host()[size_t(l)], own + 1000 * 376);
    }
}

__global__ void votes(unsigned* out) {
    const unsigned lane = threadIdx.x;
    out[lane] = __ballot_sync(full_mask, lane % 3 == 0);
    out[32 + lane] = unsigned(__any_sync(full_mask, lane == 40)) + 2 * unsigned(__any_sync(full_mask, lane == 4));
    out[64 + lane] = unsigned(__all_sync(full_mask, lane < 31)) + 2 * unsigned(__all_sync(full_mask, lane < 32));
    out[96 + lane] = __match_any_sync(full_mask, lane % 5);
    out[128 + lane] = unsigned(__reduce_add_sync(full_mask, int(lane) - 20));
    out[160 + lane] = unsigned(__reduce_max_sync(full_mask, -int(lane) - 7));
}
TEST_P(Emulator, Votes) {
    Array<unsigned> out(6 * 32, 0);
    run(votes, dim3(1), dim3(32), 0, out.data());
    const auto values = out.host();
    for (unsigned l = 0; l < 32; l++) {
        unsigned thirds = 0, same = 0;
        for (unsigned m = 0; m < 32; m++) thirds |= unsigned(m % 3 == 0) << m, same |= unsigned(m % 5 == l % 5) << m;
        EXPECT_EQ(values[l], thirds);
        EXPECT_EQ(values[32 + l], 2u);
        EXPECT_EQ(values[64 + l], 2u);
        EXPECT_EQ(values[96 + l], same);
        EXPECT_EQ(int(values[128 + l]), 31 * 32 / 2 - 20 * 32);
        EXPECT_EQ(int(values[160 + l]), -7);
    }
}

// ------------------------------------------------------------------------------------------- barriers, shared memory
__global__ void rotate(int* out, int rounds) {
    DYN_SHARED(int, ring);
    const unsigned t = threadIdx.x, n = blockDim.x;
    int mine = int(t);
    for (int i = 0; i < rounds; i++) {
        ring[t] = mine;
        __syncthreads();
        mine = ring[(t + 1) % n];
        __syncthreads();
    }
    out[blockIdx.x * n + t] = mine;
}
TEST_P(Emulator, BarriersSeparateWritesFromReads) {
    Array<int> out(3 * 100, 0);
    run(rotate, dim3(3), dim3(100), 100 * sizeof(int), out.data(), 7);
    for (int i = 0; i < 300; i++) EXPECT_EQ(out.host()[size_t(i)], (i % 100 + 7) % 100);
}

__global__ void barrier_votes(int* out) {
    const int t = int(threadIdx.x);
    out[t] = __syncthreads_count(t % 3 == 0);
    out[96 + t] = __syncthreads_or(t == 95) + 2 * __syncthreads_or(t == 96);
    out[192 + t] = __syncthreads_and(t < 96) + 2 * __syncthreads_and(t < 95);
}
TEST_P(Emulator, BarriersCountVotes) {
    Array<int> out(3 * 96, 0);
    run(barrier_votes, dim3(1), dim3(96), 0, out.data());
    for (size_t t = 0; t < 96; t++) {
        EXPECT_EQ(out.host()[t], 32);
        EXPECT_EQ(out.host()[96 + t], 1);
        EXPECT_EQ(out.host()[192 + t], 1);
    }
}

__global__ void look_at_shared(int* stale, int* misaligned) {
    SHARED(float, a, [33]);
    SHARED(char, b, [5]);
    DYN_SHARED(float, c);
    const int t = int(threadIdx.x);
    if (t < 33 && !isnan(a[t])) atomicAdd(stale, 1);
    if (t < 17 && !isnan(c[t])) atomicAdd(stale, 1);
    if (t < 5 && b[t] != -1) atomicAdd(stale, 1);
    if (reinterpret_cast<uintptr_t>(a) % 16 || reinterpret_cast<uintptr_t>(b) % 16 ||
        reinterpret_cast<uintptr_t>(c) % 128)
        atomicAdd(misaligned, 1);
    __syncthreads();
    if (t < 33) a[t] = 1;
    if (t < 17) c[t] = 1;
    if (t < 5) b[t] = 1;
}
TEST_P(Emulator, SharedMemoryIsFreshAndAligned) {
    Array<int> stale({0}), misaligned({0});
    run(look_at_shared, dim3(4), dim3(64), 17 * sizeof(float), stale.data(), misaligned.data());
    EXPECT_EQ(stale.host()[0], 0);
    EXPECT_EQ(misaligned.host()[0], 0);
}

// ------------------------------------------------------------------------------------------------------------ atomics
__global__ void count_atomically(int* sum, float* real, unsigned* wrapped, int* largest, unsigned long long* product) {
    atomicAdd(sum, 2);
    atomicAdd(real, 0.5f);
    atomicInc(wrapped, 6);
    atomicMax(largest, int(blockIdx.x * blockDim.x + threadIdx.x) * 37 % 101);
    unsigned long long seen = atomicAdd(product, 0);
    for (;;) {
        const unsigned long long before = atomicCAS(product, seen, seen * 3);
        if (before == seen) break;
        seen = before;
    }
}
TEST_P(Emulator, AtomicsLoseNothing) {
    Array<int> sum({0}), largest({-5});
    Array<float> real({0});
    Array<unsigned> wrapped({0});
    Array<unsigned long long> product({1});
    run(count_atomically, dim3(3), dim3(40), 0, sum.data(), real.data(), wrapped.data(), largest.data(),
        product.data());
    unsigned long long power = 1;
    int most = 0;
    for (int i = 0; i < 120; i++) power *= 3, most = std::max(most, i * 37 % 101);
    EXPECT_EQ(sum.host()[0], 240);
    EXPECT_EQ(real.host()[0], 60.0f);
    EXPECT_EQ(wrapped.host()[0], 120u % 7);
    EXPECT_EQ(largest.host()[0], most);
    EXPECT_EQ(product.host()[0], power);
}

// The last block to finish adds up what the others left: the pattern of two-stage reductions.
__global__ void last_block_sums(float* partial, unsigned* done, float* total) {
    SHARED(bool, last, [1]);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = float(blockIdx.x + 1);
        __threadfence();
        last[0] = atomicInc(done, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last[0] && threadIdx.x == 0) {
        __threadfence();
        float sum = 0;
        for (unsigned b = 0; b < gridDim.x; b++) sum += partial[b];
        *total = sum;
    }
}
TEST_P(Emulator, LastBlockSeesTheOthers) {
    Array<float> partial(20, 0), total({0});
    Array<unsigned> done({0});
    run(last_block_sums, dim3(20), dim3(64), 0, partial.data(), done.data(), total.data());
    EXPECT_EQ(total.host()[0], 210.0f);
    EXPECT_EQ(done.host()[0], 0u);
}

// -------------------------------------------------------------------------------------------------------- tensor cores
// Element i = 0..7 of A, 0..3 of B, 0..3 of C in lane `lane`: its row and column as the PTX ISA gives them for
// mma.m16n8k16 with 16-bit operands.
struct Place {
    int row, column;
};
__host__ __device__ Place place_in_a(int lane, int i) {
    const int group = lane >> 2, in_group = lane % 4;
    return {(i >= 0 && i < 2) || (i >= 4 && i < 6) ? group : group + 8, in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}
__host__ __device__ Place place_in_b(int lane, int i) { return {lane % 4 * 2 + (i & 1) + (i >= 2 ? 8 : 0), lane >> 2}; }
__host__ __device__ Place place_in_c(int lane, int i) {
    return {(lane >> 2) + (i < 2 ? 0 : 8), lane % 4 * 2 + (i & 1)};
}

__global__ void multiply(float* d, const float* a, const float* b,
                         const float* c) {  // [16,8] = [16,16] [16,8] + [16,8]
    const int lane = int(threadIdx.x);
    MmaA fa;
    MmaB fb;
    MmaC fc;
    const auto element_a = [&](int i) { return a[place_in_a(lane, i).row * 16 + place_in_a(lane, i).column]; };
    const auto element_b = [&](int i) { return b[place_in_b(lane, i).row * 8 + place_in_b(lane, i).column]; };
    for (int i = 0; i < 4; i++) fa.r[i] = pack_bf16(element_a(2 * i), element_a(2 * i + 1));
    for (int i = 0; i < 2; i++) fb.r[i] = pack_bf16(element_b(2 * i), element_b(2 * i + 1));
    for (int i = 0; i < 4; i++) fc.f[i] = c[place_in_c(lane, i).row * 8 + place_in_c(lane, i).column];
    mma_m16n8k16(fc, fa, fb);
    for (int i = 0; i < 4; i++) d[place_in_c(lane, i).row * 8 + place_in_c(lane, i).column] = fc.f[i];
}
TEST_P(Emulator, MmaMultipliesFragmentsOfThePtxLayout) {
    std::vector<float> a(256), b(128), c(128), expected(128);  // small integers: exact in bf16
    for (size_t i = 0; i < 256; i++) a[i] = float(int(i * 37 % 23) - 11);
    for (size_t i = 0; i < 128; i++) b[i] = float(int(i * 29 % 19) - 9), c[i] = float(i);
    for (size_t i = 0; i < 16; i++)
        for (size_t j = 0; j < 8; j++) {
            expected[i * 8 + j] = c[i * 8 + j];
            for (size_t k = 0; k < 16; k++) expected[i * 8 + j] += a[i * 16 + k] * b[k * 8 + j];
        }
    Array<float> d(128, 0), da(a), db(b), dc(c);
    run(multiply, dim3(1), dim3(32), 0, d.data(), da.data(), db.data(), dc.data());
    EXPECT_EQ(d.host(), expected);
}

// Lane l names row l % 8 of matrix l / 8; the tile's rows are given in a scrambled order.
__global__ void load_matrices(unsigned* out, bool transposed) {
    SHARED(uint16_t, tile, [32][8]);
    const int lane = int(threadIdx.x);
    for (int i = 0; i < 8; i++) tile[(lane * 5 + 3) % 32][i] = uint16_t(lane * 8 + i);
    __syncwarp();
    uint32_t r[4];
    if (transposed)
        ldmatrix_x4_trans(r, tile[(lane * 5 + 3) % 32]);
    else
        ldmatrix_x4(r, tile[(lane * 5 + 3) % 32]);
    for (int m = 0; m < 4; m++) out[m * 32 + lane] = r[m];
}
TEST_P(Emulator, LdmatrixHandsOutThePtxLayout) {
    for (bool transposed : {false, true}) {
        Array<unsigned> out(128, 0);
        run(load_matrices, dim3(1), dim3(32), 0, out.data(), transposed);
        for (unsigned m = 0; m < 4; m++)
            for (unsigned l = 0; l < 32; l++) {
                const unsigned row = l / 4, column = l % 4 * 2;
                const auto element = [&](unsigned r, unsigned c) { return (m * 8 + r) * 8 + c; };
                const unsigned low = transposed ? element(column, row) : element(row, column);
                const unsigned high = transposed ? element(column + 1, row) : element(row, column + 1);
                EXPECT_EQ(out.host()[m * 32 + l], low | high << 16) << "matrix " << m << ", lane " << l;
            }
    }
}

// ------------------------------------------------------------------------------------------------ asynchronous copies
__global__ void copy_in_two_groups(int* out, const int* in) {
    SHARED(int, a, [32 * 4]);
    SHARED(int, b, [32 * 4]);
    const int t = int(threadIdx.x);
    cp_async16(a + 4 * t, in + 4 * t);
    cp_async_commit();
    cp_async16(b + 4 * t, in + 128 + 4 * t, t % 2 == 0);
    cp_async_commit();
    out[t] = a[4 * t];  // too early
    cp_async_wait<1>();
    out[32 + t] = a[4 * t];
    out[64 + t] = b[4 * t];  // too early
    cp_async_wait<0>();
    out[96 + t] = b[4 * t + 3];
}
TEST_P(Emulator, AsynchronousCopiesArriveAtTheWait) {
    std::vector<int> in(256);
    std::iota(in.begin(), in.end(), 1000);
    Array<int> out(128, 0), source(in);
    run(copy_in_two_groups, dim3(1), dim3(32), 0, out.data(), source.data());
    for (int t = 0; t < 32; t++) {
        const auto at = [&](int i) { return out.host()[size_t(i + t)]; };
        EXPECT_EQ(at(0), -1);
        EXPECT_EQ(at(32), 1000 + 4 * t);
        EXPECT_EQ(at(64), -1);
        EXPECT_EQ(at(96), t % 2 == 0 ? 1128 + 4 * t + 3 : 0);
    }
}

// ---------------------------------------------------------------------------------------------------------- arithmetic
__global__ void arithmetic(double* out) {
    int i = 0;
    out[i++] = min(3, -2L) + max(2u, 7);
    out[i++] = max(NAN, 1.0f) + min(2.0f, NAN);
    out[i++] = rsqrtf(16) + __fdividef(1, 8);
    out[i++] = __popc(0xf0f0u) + __clz(1) + __ffs(8) + __brev(2u) / double(1 << 30);
    out[i++] = __umulhi(0x80000000u, 6) + __mulhi(-(1 << 30), 8);
    out[i++] = __uint_as_float(0x40490fdbu) - __int_as_float(__float_as_int(1.5f));
    out[i++] = __float2int_rn(2.5f) + __float2int_rz(-2.7f) * 10 + __float2int_rd(-2.2f) * 100;
}
TEST(EmulatorArithmetic, GivesCudasResults) {
    Array<double> out(7, 0);
    run(arithmetic, dim3(1), dim3(1), 0, out.data());
    const std::vector<double> expected = {5, 3, 0.375, 8 + 31 + 4 + 1, 3 - 2, double(3.14159274f - 1.5f), 2 - 20 - 300};
    EXPECT_EQ(out.host(), expected);
}

}  // namespace
}  // namespace llmc::test
