// What the emulator reports, and how: barriers and warp operations that not all threads reach, bad addresses, too much
// shared memory. Only for BACKEND=emu.
#include <gtest/gtest.h>

#include "dev/test/child.h"
#include "dev/test/emulated_device.h"

namespace llmc::test {
namespace {

#define EXPECT_REPORT(statement, message) EXPECT_EXIT(statement, testing::ExitedWithCode(97), message)

__global__ void divergent_barrier() {
    if (threadIdx.x < 16)
        __syncthreads();
    else
        __syncthreads();
}
__global__ void barrier_after_return() {
    if (threadIdx.x == 3) return;
    __syncthreads();
}
__global__ void absent_lane() {
    if (threadIdx.x < 16) __syncwarp();
}
__global__ void returned_lane() {
    if (threadIdx.x == 16) return;
    __shfl_sync(full_mask, 1, 0);
}
__global__ void not_named() { __syncwarp(0xfffffffeu); }
__global__ void different_operations() {
    if (threadIdx.x < 16)
        __shfl_sync(full_mask, 1, 0);
    else
        __syncwarp();
}
__global__ void overlapping_masks() {
    if (threadIdx.x == 0)
        __syncwarp(3);
    else
        __syncwarp();
}
TEST(EmuMisuseDeathTest, ReportsMisusedBarriers) {
    const auto launch = [](void (*kernel)(), int threads) { run(kernel, dim3(1), dim3(unsigned(threads)), 0); };
    EXPECT_REPORT(launch(divergent_barrier, 32), "divergent __syncthreads: .*test_emu_misuse.cpp:[0-9]+ and at");
    EXPECT_REPORT(launch(barrier_after_return, 64), "returned");
    EXPECT_REPORT(launch(absent_lane, 16), "do not exist .ffff0000.");
    EXPECT_REPORT(launch(returned_lane, 32), "returned");
    EXPECT_REPORT(launch(not_named, 32), "lane 0 calls a warp operation whose mask fffffffe does not name it");
    EXPECT_REPORT(launch(different_operations, 32), "different warp operations");
    EXPECT_REPORT(launch(overlapping_masks, 32),
                  "deadlock in block .*(\n.*)*31 wait in warp operation at .*mask ffffffff");
}
TEST(EmuMisuseDeathTest, SaysWhereAndWithWhichSeed) {
    EXPECT_REPORT(run(not_named, dim3(1), dim3(32), 0),
                  "in kernel .*not_named.*block .0,0,0., thread .0,0,0.; EMU_SEED=");
}

__global__ void misaligned_ldmatrix() {
    SHARED(uint16_t, tile, [264]);
    uint32_t r[4];
    tile[threadIdx.x] = 0;
    ldmatrix_x4(r, tile + 1);
}
__global__ void misaligned_copy(const char* from) {
    SHARED(char, to, [32]);
    cp_async16(to, from + 8);
}
__global__ void forgotten_copy(const char* from) {
    SHARED(char, to, [32]);
    cp_async16(to, from);
    cp_async_commit();
}
__global__ void much_static_memory() {
    SHARED(char, a, [30 << 10]);
    SHARED(char, b, [30 << 10]);
    a[0] = b[0] = 0;
}
__global__ void no_dynamic_memory() {
    DYN_SHARED(char, a);
    a[0] = 0;
}
TEST(EmuMisuseDeathTest, ReportsMisusedMemory) {
    Array<char> bytes(64, 0);
    EXPECT_REPORT(run(misaligned_ldmatrix, dim3(1), dim3(32), 0), "16-byte aligned rows");
    EXPECT_REPORT(run(misaligned_copy, dim3(1), dim3(1), 0, bytes.data()), "16-byte aligned");
    EXPECT_REPORT(run(forgotten_copy, dim3(1), dim3(1), 0, bytes.data()), "cp.async");
    EXPECT_REPORT(run(much_static_memory, dim3(1), dim3(1), 0), "48 KB");
    EXPECT_REPORT(run(no_dynamic_memory, dim3(1), dim3(1), 0), "DYN_SHARED");
}
__global__ void overflow_the_stack(volatile int* out, int depth) {
    volatile char frame[4096];
    frame[depth % 4096] = char(depth);
    if (depth > 0) overflow_the_stack(out, depth - 1);
    *out = frame[depth % 4096];
}
TEST(EmuMisuseDeathTest, StackOverflowCrashes) {
    Array<int> out({0});
    EXPECT_BAD_ACCESS(run(overflow_the_stack, dim3(1), dim3(1), 0, out.data(), 100));
}

}  // namespace
}  // namespace llmc::test
