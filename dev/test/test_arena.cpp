// Arena: the counted pass and the real one hand out the same places.
#include "llmc/ops/arena.h"

#include "dev/test/reference.h"

namespace llmc::test {
namespace {

// Two tensors that stay, two that come and go: the peak is the first two plus the larger of the others.
std::vector<Tensor> use(Arena& arena) {
    std::vector<Tensor> t;
    t.push_back(arena.tensor("first", DType::f32, {3}));         // 12 bytes: 256
    t.push_back(arena.tensor("second", DType::bf16, {10, 20}));  // 400 bytes: 512
    int64_t mark = arena.mark();
    t.push_back(arena.tensor("third", DType::f64, {100}));       // 800 bytes: 1024
    arena.release(mark);
    t.push_back(arena.tensor("fourth", DType::i32, {64}));       // 256 bytes
    t.push_back(arena.tensor("empty", DType::f32, {0, 5}));
    arena.release(mark);
    return t;
}

TEST(Arena, CountedThenReal) {
    Context counting({.counting = true});
    Arena plan("test", counting);
    std::vector<Tensor> counted = use(plan);
    EXPECT_EQ(plan.peak(), 256 + 512 + 1024);
    EXPECT_EQ(plan.bytes(), 0);

    Context ctx;
    Arena arena("test", ctx);
    arena.allocate(plan.peak());
    EXPECT_EQ(arena.bytes(), 1792);
    std::vector<Tensor> real = use(arena);
    for (size_t i = 0; i < real.size(); i++) {
        EXPECT_EQ(reinterpret_cast<uintptr_t>(real[i].data) % 256, 0u);
        EXPECT_EQ(static_cast<char*>(real[i].data) - static_cast<char*>(real[0].data),
                  static_cast<char*>(counted[i].data) - static_cast<char*>(counted[0].data));
        fill(real[i], 1, ctx);
    }
    EXPECT_EQ(real[2].data, real[3].data);  // given back, so used again
    EXPECT_EQ(arena.peak(), plan.peak());
    EXPECT_TRUE(refuses([&] { arena.tensor("fifth", DType::f32, {10000}); }, "fifth [10000] needs 40192 bytes"));
    EXPECT_TRUE(refuses([&] { arena.allocate(1000); }, "in use already"));
}

// The workspace of an op lies above the tensors in use, is in the peak, and is free again after the op.
TEST(Arena, LendsOpsTheirWorkspace) {
    auto use = [](Arena& arena, Context& ctx) {
        const WorkspaceOnArena workspace(arena, ctx);
        const Tensor below = arena.tensor("below", DType::f32, {3});
        { Op op(ctx, "small", 0, 300); }
        Op op(ctx, "large", 0, 1000);
        EXPECT_EQ(static_cast<char*>(op.workspace) - static_cast<char*>(below.data), 256);
        EXPECT_TRUE(refuses([&] { Op inner(ctx, "inner", 0, 100); }, "inner"));
        return arena.mark();
    };
    Context counting({.counting = true});
    Arena plan("test", counting);
    EXPECT_EQ(use(plan, counting), 256 + 1024);
    EXPECT_EQ(plan.mark(), 256);
    EXPECT_EQ(plan.peak(), 256 + 1024);
    EXPECT_EQ(counting.workspace_needed, 0);

    Context ctx;
    Arena arena("test", ctx);
    arena.allocate(plan.peak());
    use(arena, ctx);
    EXPECT_EQ(arena.mark(), 256);
    EXPECT_EQ(ctx.workspace.bytes, 0);
    const WorkspaceOnArena workspace(arena, ctx);
    EXPECT_TRUE(refuses([&] { Op op(ctx, "too_large", 0, 10000); }, "too_large [10000] needs 10240 bytes"));
}

TEST(Arena, CountingAllocatesNothing) {
    Context counting({.counting = true});
    Arena arena("test", counting);
    arena.allocate(int64_t(1) << 60);
    EXPECT_EQ(arena.bytes(), 0);
}

}  // namespace
}  // namespace llmc::test
