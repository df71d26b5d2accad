// Seconds of ops, collectives and steps on a cluster, against numbers worked out by hand.
#include <gtest/gtest.h>

#include <cmath>

#include "dev/test/reference.h"
#include "dev/test/temp_dir.h"
#include "llmc/base/files.h"
#include "llmc/planner/timeline.h"

namespace llmc::test {
namespace {

// Round numbers: 100 TFLOP/s in bf16, 10 in fp32, 1 TB/s; 4 GPUs a node, 100 GB/s inside, 10 GB/s out; 2 us and 20 us.
Cluster simple(Shares shares = {1, 1, 1}) {
    Cluster c;
    c.gpu = {"simple", 100e12, 10e12, 1e12, 64e9, 100e9, 4};
    c.net = 10e9, c.link_latency = 2e-6, c.net_latency = 20e-6, c.message_gap = 1e-6, c.shares = shares;
    return c;
}

void expect_seconds(double got, double want) { EXPECT_NEAR(got, want, 1e-9 * want); }

// ---------------------------------------------------------------------------------------------------- computation

TEST(Ops, TakeAsLongAsTheirArithmeticOrTheirBytes) {
    const Cluster c = simple(), shared = simple({0.25, 0.5, 1});
    const OpCost work{1, 200'000'000'000, 1'000'000'000}, copying{1, 0, 3'000'000'000};
    expect_seconds(op_seconds("matmul", work, DType::bf16, c), 2e-3);         // 200 GFLOP at 100 TFLOP/s
    expect_seconds(op_seconds("matmul", work, DType::f32, c), 20e-3);         // ... at 10
    expect_seconds(op_seconds("norm_forward", work, DType::bf16, c), 20e-3);  // not on tensor cores
    expect_seconds(op_seconds("matmul", copying, DType::bf16, c), 3e-3);      // 3 GB at 1 TB/s
    expect_seconds(op_seconds("matmul", work, DType::bf16, shared), 8e-3);    // at a quarter of the peak
    expect_seconds(op_seconds("norm_forward", work, DType::bf16, shared), 20e-3);
    expect_seconds(op_seconds("add", copying, DType::bf16, shared), 6e-3);
}

// Datasheets; the products of an H100 in fp32 are 14.8 times slower than in bf16.
TEST(Gpus, HaveTheirDatasheets) {
    EXPECT_EQ(gpu_by_name("h100").peak(DType::bf16), 989e12);
    EXPECT_EQ(gpu_by_name("h100").peak(DType::f32), 67e12);
    EXPECT_EQ(gpu_by_name("a100").bandwidth, 2.039e12);
    EXPECT_EQ(gpu_by_name("h200").memory, 141e9);
    EXPECT_EQ(gpu_by_name("b200").link, 900e9);
    EXPECT_EQ(gpu_by_name("cpu").bf16, 0);
}

// Two reports in bf16-mixed and one in fp32: seconds and work of the same precision are added up.
TEST(Measured, ReplacesTheRoofline) {
    const TempDir dir;
    const std::string op = R"({"op": "matmul", "calls": 1, "bytes": 5, "flops": )";
    write_file_atomic(dir / "one.json", R"({"precision": "bf16-mixed", "ops": [)" + op + R"(100, "seconds": 3},
        {"op": "add", "calls": 1, "flops": 7, "bytes": 50, "seconds": 4}, {"op": "copy", "calls": 1, "flops": 0,
         "bytes": 9, "seconds": 0}]})");
    write_file_atomic(dir / "check.json", R"({"speed": [{"model": "a", "result": )" + read_file(dir / "one.json") +
                                              R"(}, {"model": "b", "result": {"precision": "bf16-mixed", "ops": [)" +
                                              op + R"(300, "seconds": 5}]}},
        {"model": "b", "result": {"precision": "fp32", "ops": [)" +
                                              op + R"(1, "seconds": 99}]}}]})");
    Cluster c = simple();
    c.measured = read_measured(dir / "one.json", PrecisionMode::bf16_mixed);
    EXPECT_EQ(c.measured.size(), 2u);  // an op of no seconds was not measured
    expect_seconds(op_seconds("matmul", {1, 1000, 1 << 20}, DType::bf16, c), 30);  // 3 s for 100 FLOPs
    expect_seconds(op_seconds("add", {1, 1 << 20, 1000}, DType::bf16, c), 80);     // 4 s for 50 bytes
    expect_seconds(op_seconds("norm_forward", {1, 0, 1000}, DType::bf16, c), 1e-9);
    c.measured = read_measured(dir / "check.json", PrecisionMode::bf16_mixed);
    expect_seconds(op_seconds("matmul", {1, 1000, 0}, DType::bf16, c), 20);  // 8 s for 400 FLOPs

    EXPECT_TRUE(
        refuses<InputError>([&] { read_measured(dir / "one.json", PrecisionMode::fp32); }, "no times of ops in fp32"));
    write_file_atomic(dir / "other.json", R"({"a": 1})");
    write_file_atomic(dir / "broken.json", "{");
    EXPECT_TRUE(
        refuses<InputError>([&] { read_measured(dir / "other.json", PrecisionMode::fp32); }, "not a report of"));
    EXPECT_TRUE(
        refuses<InputError>([&] { read_measured(dir / "broken.json", PrecisionMode::fp32); }, "not a report of"));
}

// -------------------------------------------------------------------------------------------------- communication

TEST(Paths, KnowTheirNodes) {
    const Cluster c = simple();  // 4 GPUs a node
    for (const auto& [ranks, count, nodes, per_node] :
         std::vector<std::tuple<Ranks, int, int, int>>{{{0, 1, 4}, 4, 1, 4},  // a node
                                                       {{2, 1, 4}, 4, 2, 2},  // 2, 3 | 4, 5
                                                       {{0, 1, 16}, 16, 4, 4},
                                                       {{1, 2, 8}, 8, 4, 2},  // 1, 3 | 5, 7 | 9, 11 | 13, 15
                                                       {{3, 4, 5}, 5, 5, 1},  // one of each node
                                                       {{0, 8, 3}, 3, 3, 1},
                                                       {{7, 1, 1}, 1, 1, 1}}) {
        const Path path = path_of(ranks, c);
        EXPECT_EQ(path.ranks, count);
        EXPECT_EQ(path.nodes, nodes) << ranks.first << " " << ranks.stride << " " << ranks.count;
        EXPECT_EQ(path.per_node(), per_node);
    }
}

TEST(Rings, AreAsFastAsTheirSlowestLink) {
    const Cluster c = simple();
    EXPECT_EQ(ring_rate({4, 1}, c), 100e9);
    EXPECT_EQ(ring_rate({16, 4}, c), 40e9);  // four cards of 10 GB/s side by side
    EXPECT_EQ(ring_rate({5, 5}, c), 10e9);
    EXPECT_EQ(ring_rate({16, 4}, simple({1, 1, 0.5})), 20e9);
    Cluster fast = simple();
    fast.net = 50e9;
    EXPECT_EQ(ring_rate({16, 4}, fast), 100e9);  // 200 GB/s of cards, but NVLink inside
    EXPECT_EQ(ring_rate({5, 5}, fast), 50e9);    // no NVLink in between
    expect_seconds(ring_latency({4, 1}, c), 6e-6);
    expect_seconds(ring_latency({16, 4}, c), 12 * 2e-6 + 3 * 20e-6);
    EXPECT_EQ(ring_latency({1, 1}, c), 0);
}

TEST(Collectives, ByHand) {
    const Cluster c = simple();
    const Path node{4, 1}, nodes{16, 4}, alone{1, 1};
    // 3 calls, 8 GB in all, of which (W-1)/W travel.
    expect_seconds(collective_seconds("all_gather", {3, 8'000'000'000, 6'000'000'000}, node, c), 3 * 6e-6 + 0.06);
    expect_seconds(collective_seconds("reduce_scatter", {3, 8'000'000'000, 7'500'000'000}, nodes, c),
                   3 * 84e-6 + 7.5 / 40);
    expect_seconds(collective_seconds("broadcast", {1, 8, 6}, node, c), 6e-6 / 4 + 4 * 6 / 100e9);
    // A large all_reduce goes twice around the ring, a small one through a tree: 2 (3 * 2 us + log2(4) * 20 us).
    expect_seconds(collective_seconds("all_reduce", {1, 8'000'000'000, 15'000'000'000}, nodes, c),
                   2 * 84e-6 + 15.0 / 40);
    expect_seconds(collective_seconds("all_reduce", {1, 24, 45}, nodes, c), 2 * 46e-6 / 4 + 4 * 48 / 40e9);
    // 16 GB, 1 GB for each of 16: 3 GB stay in the node (0.03 s at 100 GB/s), 12 leave it (1.2 s at 10).
    expect_seconds(collective_seconds("all_to_all", {2, 16'000'000'000, 15'000'000'000}, nodes, c),
                   2 * (20e-6 + 15e-6) + 1.2);
    expect_seconds(collective_seconds("all_to_all_rows", {2, 12'000'000'000, 12'000'000'000}, node, c),
                   2 * (2e-6 + 3e-6) + 0.12);
    for (const char* name : {"all_reduce", "all_to_all", "all_gather"})
        EXPECT_EQ(collective_seconds(name, {1, 1000, 0}, alone, c), 0);
    EXPECT_TRUE(is_collective("reduce_scatter"));
    EXPECT_FALSE(is_collective("matmul"));
}

TEST(Collectives, LittleDataTravelsTheLowLatencyWay) {
    expect_seconds(transfer_seconds(8, 1), 6);
    expect_seconds(transfer_seconds(8, 3), 11);
}

// At 4,096 GPUs the latency of a tree is a fiftieth of a ring's.
TEST(Collectives, TreesAreForMany) {
    Cluster c = simple();
    const Path many{4096, 1024};
    const double tree = collective_seconds("all_reduce", {1, 24, 47}, many, c);
    expect_seconds(tree, 2 * (3 * 2e-6 + 10 * 20e-6) / 4 + 4 * 48 / 40e9);
    EXPECT_GT(collective_seconds("all_gather", {1, 24, 23}, many, c), 50 * tree);
}

// -------------------------------------------------------------------------------------------------------- a step

constexpr int64_t ms = 1'000'000'000;  // bytes that an op moves in a millisecond
Event op(int64_t milliseconds) { return {.kind = Event::op, .name = "add", .bytes = milliseconds * ms}; }
Event collective(int64_t milliseconds) {  // in one node, 2 us of latency included
    const int64_t wire = milliseconds * ms / 10 - 200'000;
    return {.kind = Event::collective, .name = "all_gather", .bytes = 2 * wire, .wire = wire, .count = 2};
}
const Event after{.kind = Event::after_compute}, before{.kind = Event::before_compute};
Event mark(int i) { return {.kind = Event::mark, .number = i}; }
Event before_mark(int i) { return {.kind = Event::before_compute_mark, .number = i}; }

void expect_time(const std::vector<Event>& events, double total, double exposed, const Cluster& c = simple()) {
    StepTrace trace;
    trace.last = events;
    const StepTime time = replay(trace, DType::f32, c);
    EXPECT_NEAR(time.total, total * 1e-3, 1e-9);
    EXPECT_NEAR(time.exposed(), exposed * 1e-3, 1e-9);
    EXPECT_NEAR(time.compute, (total - exposed) * 1e-3, 1e-9);
}

TEST(Replay, OpsAndCollectivesGoOnSideBySide) {
    expect_time({op(3), op(4)}, 7, 0);
    expect_time({op(3), collective(5), op(4)}, 7, 0);         // nothing waits
    expect_time({op(3), after, collective(5), op(4)}, 8, 1);  // 3..8, the ops end at 7
    expect_time({op(3), after, collective(5), op(7)}, 10, 0);
    expect_time({op(3), after, collective(5), before, op(4)}, 12, 5);  // an op that needs the result
    expect_time({collective(2), collective(3), op(1)}, 5, 4);          // one after the other
    Cluster blocking = simple();
    blocking.overlaps = false;
    expect_time({op(3), collective(5), op(4)}, 12, 5, blocking);
}

TEST(Replay, AMarkIsWaitedForAloneNotWhatCameLater) {
    expect_time({collective(2), mark(0), collective(6), mark(1), before_mark(0), op(3)}, 8, 5);
    expect_time({collective(2), mark(0), collective(6), mark(1), before_mark(1), op(3)}, 11, 8);
    expect_time({op(5), before_mark(3), op(1)}, 6, 0);  // a mark that was never set
}

TEST(Replay, AHostThatReadsStartsNothingMeanwhile) {
    Event download = op(1);
    download.name = "download";
    Cluster c = simple();
    c.host_wait = 5e-3;
    StepTrace trace;
    trace.last = {op(3), after, collective(2), download, op(4)};
    const StepTime time = replay(trace, DType::f32, c);
    EXPECT_NEAR(time.total, 0.013, 1e-9);
    EXPECT_NEAR(time.exposed(), 0.005, 1e-9);
}

// What a collective does in the memory of this GPU is no op beside it.
TEST(Replay, ACollectiveIsNotCountedTwice) {
    Event inside = op(5);
    inside.name = "all_gather";
    expect_time({collective(2), inside, op(3)}, 3, 0);
}

TEST(Replay, MiddleMicroBatchesAreRepeated) {
    StepTrace trace;
    trace.micro_batches = 5;
    trace.first = {op(1)}, trace.middle = {op(10)}, trace.last = {op(100)},
    trace.update = {after, collective(7), before};
    StepTime time = replay(trace, DType::f32, simple());
    EXPECT_NEAR(time.total, 0.138, 1e-9);
    EXPECT_NEAR(time.communication, 0.007, 1e-9);
    trace.micro_batches = 2;
    time = replay(trace, DType::f32, simple());
    EXPECT_NEAR(time.total, 0.108, 1e-9);
}

}  // namespace
}  // namespace llmc::test
