// Context, Op and device memory: threads, workspace, counting, guard, profile.
#include <sched.h>
#include <unistd.h>

#include <cstring>

#include "dev/test/reference.h"

namespace llmc::test {
namespace {

// Whether this process may read the byte: the kernel answers EFAULT instead of killing us.
bool readable(const void* data) {
    int ends[2];
    if (pipe(ends) != 0) throw std::runtime_error("pipe failed");
    bool ok = ::write(ends[1], data, 1) == 1;
    ::close(ends[0]);
    ::close(ends[1]);
    return ok;
}

TEST(Shape, CountsElementsOrRefuses) {
    EXPECT_EQ(Shape({int64_t(1) << 25, int64_t(1) << 25}).numel(), int64_t(1) << 50);
    EXPECT_EQ(Shape({int64_t(1) << 40, 0}).numel(), 0);
    EXPECT_THROW(Shape({int64_t(1) << 26, int64_t(1) << 25}).numel(), InputError);
    EXPECT_THROW(Shape({int64_t(1) << 32, int64_t(1) << 32}).numel(), InputError);  // 0 in 64 bits
    EXPECT_THROW(Shape({int64_t(1) << 40, int64_t(1) << 40, 3, 5}).numel(), InputError);
}

TEST(Context, Threads) {
    cpu_set_t set;
    CPU_ZERO(&set);
    ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
    EXPECT_EQ(Context().threads, CPU_COUNT(&set));
    EXPECT_EQ(Context({.threads = 3}).threads, 3);
    EXPECT_THROW(Context({.threads = -1}), InputError);
}

TEST(Context, CountingAddsUpAndTouchesNothing) {
    Context ctx({.counting = true});
    void* first = device_alloc(int64_t(1) << 50, ctx);
    void* second = device_alloc(100, ctx);
    EXPECT_GE(static_cast<char*>(second) - static_cast<char*>(first), int64_t(1) << 50);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(second) % 256, 0u);
    EXPECT_FALSE(readable(first));
    for (int64_t bytes : {100, 5000, 300}) {
        Op op(ctx, "some_op", 7, bytes);
        EXPECT_FALSE(op.run);
        EXPECT_EQ(op.workspace, nullptr);
    }
    EXPECT_EQ(ctx.flops, 21);
    EXPECT_EQ(ctx.workspace_needed, 5000);
    Tensor t(first, DType::f32, {3}, "t");
    float host[3] = {1, 2, 3};
    upload(t, host, ctx);
    fill(t, 1.0, ctx);
    copy(t, t, ctx);
    download(host, t, ctx);
    EXPECT_EQ(host[2], 0.0f);
    device_free(first, int64_t(1) << 50, ctx);
    device_free(second, 100, ctx);
}

TEST(Context, WorkspaceGrowsUntilItIsFixed) {
    Context ctx;
    for (int64_t bytes : {100, 100000, 50}) {
        Op op(ctx, "some_op", 1, bytes);
        ASSERT_NE(op.workspace, nullptr);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(op.workspace) % 64, 0u);
        std::memset(op.workspace, 1, size_t(bytes));
    }
    EXPECT_EQ(ctx.flops, 3);
    EXPECT_EQ(ctx.workspace_needed, 100000);
    reserve_workspace(200000, ctx);
    { Op op(ctx, "fits", 0, 200000); }
    EXPECT_TRUE(refuses([&] { Op op(ctx, "too_large", 0, 200001); }, "too_large"));
    { Op op(ctx, "fits", 0, 200000); }  // the refused one left nothing behind
}

TEST(Context, WorkspaceHasOneHolder) {
    Context ctx;
    Op outer(ctx, "outer", 0, 100);
    { Op inner(ctx, "without", 0, 0); }
    EXPECT_TRUE(refuses([&] { Op inner(ctx, "inner", 0, 100); }, "inner"));
}

TEST(Context, GuardTakesMemoryAwayBetweenOps) {
    Context ctx({.guard = true});
    auto* data = static_cast<char*>(device_alloc(100, ctx));
    EXPECT_FALSE(readable(data));
    char host[4] = {1, 2, 3, 4}, back[4] = {};
    Tensor t(data, DType::i32, {1}, "t");
    upload(t, host, ctx);
    EXPECT_FALSE(readable(data));
    void* workspace = nullptr;
    {
        Op op(ctx, "outer", 0, 64);
        workspace = op.workspace;
        EXPECT_TRUE(readable(data) && readable(workspace));
        { Op inner(ctx, "inner"); }
        EXPECT_TRUE(readable(data));
        void* inside = device_alloc(100, ctx);
        EXPECT_TRUE(readable(inside));
    }
    EXPECT_FALSE(readable(data) || readable(workspace));
    EXPECT_TRUE(refuses([&] { Op op(ctx, "too_large", 0, int64_t(1) << 60); }, "out of memory"));
    EXPECT_FALSE(readable(data));
    download(back, t, ctx);
    EXPECT_EQ(std::memcmp(host, back, 4), 0);
    device_free(data, 100, ctx);
}

TEST(Context, ProfileCountsCallsAndFlops) {
    Context ctx({.profile = true});
    for (int i = 0; i < 3; i++) Op op(ctx, "some_op", 5);
    const OpCost cost = ctx.profile->total("some_op");
    EXPECT_EQ(cost.calls, 3);
    EXPECT_EQ(cost.flops, 15);
    EXPECT_GT(cost.seconds, 0.0);
    EXPECT_FALSE(Context().profile);
    EXPECT_FALSE(Context({.counting = true, .profile = true}).profile);
}

TEST(Memory, AlignedAndRefusedWhenTooLarge) {
    Context ctx;
    for (int64_t bytes : {int64_t(1), int64_t(1000), int64_t(9) << 20}) {
        auto* data = static_cast<char*>(device_alloc(bytes, ctx));
        EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 256, 0u);
        data[0] = data[bytes - 1] = 1;
        device_free(data, bytes, ctx);
    }
    EXPECT_TRUE(refuses([&] { device_alloc(int64_t(1) << 55, ctx); }, "needs 36028797018963968 bytes, available "));
    EXPECT_TRUE(refuses([&] { device_alloc(-1, ctx); }, "overflowed"));
    int unknown = 0;
    EXPECT_TRUE(refuses([&] { device_free(&unknown, 4, ctx); }, "not a live allocation"));
    device_free(nullptr, 0, ctx);
}

TEST(Memory, AvailableIsWithinTheMachine) {
    Context ctx;
    int64_t available = device_memory_available(ctx), total = int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
    EXPECT_GT(available, 0);
    EXPECT_LE(available, total);
}

TEST(Machine, DescriptionAndPeak) {
    Context ctx({.threads = 1});
    EXPECT_EQ(backend_description(ctx).rfind("cpu, 1 thread, ", 0), 0u) << backend_description(ctx);
    double peak = peak_flops(DType::f32, ctx).flops;
    EXPECT_GT(peak, 1e8);
    EXPECT_LT(peak, 1e13);
}

TEST(Machine, BandwidthIsMeasuredUnderGuardToo) {
    Context ctx({.threads = 2, .guard = true});
    EXPECT_GT(peak_bandwidth(ctx).bytes, 1e7);
}

}  // namespace
}  // namespace llmc::test
