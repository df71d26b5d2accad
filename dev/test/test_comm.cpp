// World and Comm: collectives against plain sums, on one rank in this process and on one to four under mpirun.
#include <sched.h>

#include "dev/test/ranks.h"
#include "dev/test/reference.h"
#include "llmc/comm/backend.h"
#include "llmc/ops/graph.h"

namespace llmc::test {
namespace {

// ----------------------------------------------------------------------------------------------------------- launching
std::vector<Start> starts() {
    std::vector<Start> starts{{1, false}, {2, false}, {3, false}, {4, false}};
    if (backend_has_graphs()) starts.push_back({3, true});
    return starts;
}
class Launch : public testing::TestWithParam<Start> {};

TEST_P(Launch, AllTestsOnRanks) {
    const int ranks = GetParam().ranks;
    const std::string text = run_on_ranks(GetParam(), "Ranks.*:OnRanks*");
    if (text.empty()) return;
    EXPECT_NE(text.find(str("size ", ranks, ", local size ", ranks)), std::string::npos) << text;
}
INSTANTIATE_TEST_SUITE_P(, Launch, testing::ValuesIn(starts()));

TEST(World, Alone) {
    if (under_mpirun()) GTEST_SKIP() << "not alone";
    World alone;
    EXPECT_EQ(alone.processes(), nullptr);
    EXPECT_EQ(alone.rank, 0);
    EXPECT_EQ(alone.size, 1);
    EXPECT_FALSE(alone.host.empty());
}

TEST(World, Pretended) {
    World world = World::pretend(512, 37);
    EXPECT_EQ(world.size, 512);
    EXPECT_EQ(world.rank, 37);
    world.barrier();
    EXPECT_EQ(world.all_gather("x").size(), 512u);
    Context counting({.counting = true}), computing;
    Comm comm(world, counting, {.first = 1, .stride = 4, .count = 128});
    EXPECT_EQ(comm.rank, 9);
    EXPECT_EQ(comm.size, 128);
    float x[4] = {1, 2, 3, 4};
    Tensor t(x, DType::f32, {4}, "t");
    comm.all_reduce(t);
    EXPECT_EQ(comm.costs["all_reduce"].wire, 2 * 127 * 16 / 128);
    EXPECT_EQ(counting.workspace_needed > 0, !backend_has_graphs());  // NCCL brings its own
    Comm other(world, computing);
    EXPECT_TRUE(refuses([&] { other.all_reduce(t); }, "simulated"));
    EXPECT_EQ(x[0], 1);
    for (Ranks ranks : {Ranks{0, 4, 128}, Ranks{1, 4, 129}, Ranks{38, 1, 2}, Ranks{0, 1, 37}, Ranks{37, 0, 1}})
        EXPECT_THROW(Comm(world, counting, ranks), RunError);
    EXPECT_THROW(World::pretend(4, 4), RunError);
}

TEST(World, SrunWithoutPmiIsRefused) {
    if (under_mpirun()) GTEST_SKIP() << "this has a launcher";
    if (!transport_needs_mpi()) GTEST_SKIP() << "GPUs do without: see test_rendezvous";
    for (const auto& [name, value] : {std::pair("PROCID", "0"), {"STEP_NODELIST", "a"}, {"STEP_NUM_TASKS", "4"}})
        ::setenv(str("SLURM_", name).c_str(), value, 1);
    try {
        World world;
        ADD_FAILURE() << "four processes that do not know each other";
    } catch (const InputError& error) {
        EXPECT_NE(std::string(error.what()).find("--mpi=pmix"), std::string::npos);
    }
    ::setenv("SLURM_STEP_NUM_TASKS", "1", 1);
    EXPECT_EQ(World().size, 1);
    ::unsetenv("SLURM_STEP_NUM_TASKS");
}

// ------------------------------------------------------------------------------------------------ the host's memory
TEST(Ranks, Host) {
    World& w = world();
    if (w.rank == 0) std::printf("size %d, local size %d\n", w.size, w.local_size);
    EXPECT_EQ(w.local_rank, w.rank);
    w.barrier();

    std::string bytes(1000, char('a' + w.rank));
    w.broadcast(bytes.data(), 1000, w.size - 1);
    EXPECT_EQ(bytes, std::string(1000, char('a' + w.size - 1)));

    const std::vector<std::string> all = w.all_gather(std::string(size_t(w.rank), 'x') + "end");  // not equally long
    ASSERT_EQ(all.size(), size_t(w.size));
    for (int r = 0; r < w.size; r++) EXPECT_EQ(all[size_t(r)], std::string(size_t(r), 'x') + "end");
    EXPECT_EQ(w.all_gather(""), std::vector<std::string>(size_t(w.size)));
}

TEST(Ranks, ThreadWarning) {
    World& w = world();
    cpu_set_t old, one;
    ASSERT_EQ(sched_getaffinity(0, sizeof old, &old), 0);
    CPU_ZERO(&one);
    for (int cpu = 0; CPU_COUNT(&one) == 0; cpu++)
        if (CPU_ISSET(cpu, &old)) CPU_SET(cpu, &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);  // all ranks on the same CPU
    const std::string text = thread_warning(w, 3);
    EXPECT_NE(text.find(str(3 * w.size, " threads of ", w.size, " process")), std::string::npos) << text;
    EXPECT_NE(text.find("share 1 CPU "), std::string::npos) << text;
    EXPECT_EQ(thread_warning(w, 1).empty(), w.size == 1);
    ASSERT_EQ(sched_setaffinity(0, sizeof old, &old), 0);
    if (w.size == 1) {
        EXPECT_EQ(thread_warning(w, CPU_COUNT(&old)), "");
        EXPECT_NE(thread_warning(w, CPU_COUNT(&old) + 1), "");
    }
}

// --------------------------------------------------------------------------------------------------------- on tensors
// What rank r puts in: every rank can make everybody's.
Vector input_of(int rank, int64_t n, DType dtype) {
    if (dtype == DType::i32) return random_integers(n, -1000000, 1000000, uint64_t(rank) + 100);
    return rounded(dtype, random_vector(n, uint64_t(rank) + 100));
}

// The sum in the order of ranks, in the arithmetic of the dtype: exactly what all_reduce must give on the CPU.
Vector sum_of(int size, int64_t n, DType dtype) {
    Vector sum = input_of(0, n, dtype);
    for (int r = 1; r < size; r++) {
        const Vector x = input_of(r, n, dtype);
        for (size_t i = 0; i < sum.size(); i++)
            sum[i] = dtype == DType::f32 ? double(float(sum[i]) + float(x[i])) : sum[i] + x[i];
    }
    return sum;
}

Vector part_of_vector(const Vector& v, int part, int parts) {
    const auto n = std::ptrdiff_t(v.size()) / parts;
    return Vector(v.begin() + part * n, v.begin() + (part + 1) * n);
}

const DType all_dtypes[] = {DType::f32, DType::bf16, DType::f64, DType::i32};
const int64_t lengths[] = {0, 1, 2, 3, 5, 1000, 16385, 70001};

struct Case {
    ContextOptions options;
    int64_t largest_message;
};
class OnRanks : public testing::TestWithParam<Case> {
protected:
    Device device{options()};
    Comm comm{world(), device.ctx};
    const int me = comm.rank, size = comm.size;
    const bool by_mpi = backend_description(device.ctx).rfind("cpu", 0) == 0;

    static ContextOptions options() {
        ContextOptions options = GetParam().options;
        options.device = choose_device(world());
        return options;
    }
    // A collective between what was computed and what will be.
    void call(const std::function<void()>& collective) {
        comm.after_compute();
        collective();
        comm.before_compute();
    }
    // MPI's sums are those in the order of the ranks, NCCL may take another.
    void expect_sum(const Vector& got, const Vector& want, DType dtype) {
        EXPECT_TRUE(close(got, want, by_mpi ? 0 : tolerance(dtype, size))) << name_of(dtype) << " " << want.size();
    }

    void SetUp() override { comm.largest_message = GetParam().largest_message; }
    std::vector<int64_t> sizes() const {  // small messages are many messages
        std::vector<int64_t> sizes(std::begin(lengths), std::end(lengths));
        return comm.largest_message < 100 ? std::vector<int64_t>(sizes.begin(), sizes.begin() + 6) : sizes;
    }
    // Bytes of the table and, summed over ranks, bytes that really came.
    void expect_cost(const char* name, int64_t passes, int64_t bytes, int64_t received_before) {
        const CommCost& cost = comm.costs[name];
        EXPECT_EQ(cost.wire, passes * (size - 1) * bytes / size);
        if (by_mpi) expect_received(passes * (size - 1) * bytes, comm.received - received_before);
        comm.costs.clear();
    }
    void expect_received(int64_t by_all, int64_t by_me) {
        const std::vector<std::string> all = world().all_gather(std::to_string(by_me));
        int64_t came = 0;
        for (const std::string& text : all) came += std::stoll(text);
        EXPECT_EQ(came, by_all);
    }
};

TEST_P(OnRanks, Broadcast) {
    for (DType dtype : all_dtypes)
        for (int64_t n : sizes())
            for (int root : {0, size - 1}) {
                Tensor t = device.tensor(dtype, {n}, input_of(me, n, dtype), "t");
                const int64_t before = comm.received;
                call([&] { comm.broadcast(t, root); });
                EXPECT_EQ(device.read(t), input_of(root, n, dtype)) << name_of(dtype) << " " << n;
                expect_cost("broadcast", 1, t.bytes(), before);
            }
}

TEST_P(OnRanks, AllReduce) {
    for (DType dtype : {DType::f32, DType::f64})
        for (int64_t n : sizes()) {
            Tensor t = device.tensor(dtype, {n}, input_of(me, n, dtype), "t");
            const int64_t before = comm.received;
            call([&] { comm.all_reduce(t); });
            expect_sum(device.read(t), sum_of(size, n, dtype), dtype);
            expect_cost("all_reduce", 2, t.bytes(), before);
        }
}

TEST_P(OnRanks, ReduceScatter) {
    for (DType dtype : {DType::f32, DType::f64})
        for (int64_t n : sizes())
            for (bool in_place : {false, true}) {
                Tensor in = device.tensor(dtype, {size, n}, input_of(me, size * n, dtype), "in");
                Tensor out = in_place ? in.slice(me, me + 1).view({n}) : device.tensor(dtype, {n}, "out");
                const int64_t before = comm.received;
                call([&] { comm.reduce_scatter(out, in); });
                expect_sum(device.read(out), part_of_vector(sum_of(size, size * n, dtype), me, size), dtype);
                if (!in_place) {
                    EXPECT_EQ(device.read(in), input_of(me, size * n, dtype)) << n;
                }
                expect_cost("reduce_scatter", 1, in.bytes(), before);
            }
}

TEST_P(OnRanks, AllGather) {
    for (DType dtype : all_dtypes)
        for (int64_t n : sizes())
            for (bool in_place : {false, true}) {
                Tensor out = device.tensor(dtype, {size, n}, "out");
                Tensor in = in_place ? out.slice(me, me + 1).view({n}) : device.tensor(dtype, {n}, "in");
                device.write(in, input_of(me, n, dtype));
                const int64_t before = comm.received;
                call([&] { comm.all_gather(out, in); });
                const Vector got = device.read(out);
                for (int r = 0; r < size; r++)
                    EXPECT_EQ(part_of_vector(got, r, size), input_of(r, n, dtype)) << n << " from " << r;
                expect_cost("all_gather", 1, out.bytes(), before);
            }
}

TEST_P(OnRanks, AllToAll) {
    for (DType dtype : all_dtypes)
        for (int64_t n : sizes()) {
            Tensor in = device.tensor(dtype, {size * n}, input_of(me, size * n, dtype), "in");
            Tensor out = device.tensor(dtype, {size * n}, "out");
            const int64_t before = comm.received;
            call([&] { comm.all_to_all(out, in); });
            const Vector got = device.read(out);
            for (int r = 0; r < size; r++)
                EXPECT_EQ(part_of_vector(got, r, size), part_of_vector(input_of(r, size * n, dtype), me, size)) << n;
            EXPECT_EQ(device.read(in), input_of(me, size * n, dtype));
            expect_cost("all_to_all", 1, in.bytes(), before);
        }
}

// Rank r sends (r + 2 * to) % 4 rows to rank `to`, each full of the number 10 r + to; some send nothing.
TEST_P(OnRanks, AllToAllRows) {
    for (DType dtype : all_dtypes)
        for (int64_t n : {1, 5, 300}) {
            auto rows = [](int from, int to) { return int64_t(from + 2 * to) % 4; };
            std::vector<int64_t> send, receive;
            Vector values, want;
            int64_t sent = 0;
            for (int r = 0; r < size; r++) {
                send.push_back(rows(me, r)), receive.push_back(rows(r, me));
                values.insert(values.end(), size_t(send.back() * n), 10 * me + r);
                want.insert(want.end(), size_t(receive.back() * n), 10 * r + me);
                sent += r == me ? 0 : send.back() * n * size_of(dtype);
            }
            values.insert(values.end(), size_t(2 * n), -1), want.insert(want.end(), size_t(n), 7);  // nobody's rows
            Tensor in = device.tensor(dtype, {int64_t(values.size()) / n, n}, values, "in");
            Tensor out = device.tensor(dtype, {int64_t(want.size()) / n, n}, Vector(want.size(), 7), "out");
            call([&] { comm.all_to_all_rows(out, in, receive, send); });
            EXPECT_EQ(device.read(out), want) << name_of(dtype) << " " << n;
            EXPECT_EQ(comm.costs["all_to_all_rows"].wire, sent);
            comm.costs.clear();
            receive.back() += 2;
            EXPECT_TRUE(refuses([&] { comm.all_to_all_rows(out, in, receive, send); }, "out has"));
        }
}

// A plan counts exactly what the run then does: bytes, and the workspace.
TEST_P(OnRanks, CountingSendsNothing) {
    Device counted({.counting = true});
    Comm plan(world(), counted.ctx);
    auto step = [&](Device& d, Comm& c) {
        for (int64_t n : {0, 7, 20000}) {
            Tensor part(device_alloc(n * 4 + 1, d.ctx), DType::f32, {n}, "part");
            Tensor whole(device_alloc(size * n * 4 + 1, d.ctx), DType::f32, {size * n}, "whole");
            fill(part, 1, d.ctx), fill(whole, 1, d.ctx);
            c.after_compute();
            c.all_gather(whole, part);
            c.reduce_scatter(part, whole);
            c.all_reduce(part);
            c.broadcast(part);
            c.before_compute();
        }
    };
    step(counted, plan);
    EXPECT_EQ(plan.received, 0);
    step(device, comm);
    ASSERT_EQ(plan.costs.size(), 4u);
    for (const auto& [name, cost] : plan.costs) {
        EXPECT_EQ(cost.calls, comm.costs[name].calls);
        EXPECT_EQ(cost.bytes, comm.costs[name].bytes);
        EXPECT_EQ(cost.wire, comm.costs[name].wire);
    }
    EXPECT_EQ(counted.ctx.workspace_needed, device.ctx.workspace_needed);
}

// The same every time: twice the same bits, on all ranks.
TEST_P(OnRanks, Deterministic) {
    std::string first;
    for (int repeat = 0; repeat < 2; repeat++) {
        Tensor t = device.tensor(DType::f32, {5003}, input_of(me, 5003, DType::f32), "t");
        call([&] { comm.all_reduce(t); });
        const std::vector<char> bytes = encode(DType::f32, device.read(t));
        const std::string bits(bytes.begin(), bytes.end());
        EXPECT_EQ(world().all_gather(bits), std::vector<std::string>(size_t(world().size), bits));
        if (repeat == 0) first = bits;
        EXPECT_EQ(bits, first);
    }
}

// Computation and collectives take turns, op by op and as a graph.
TEST_P(OnRanks, InAGraph) {
    Tensor whole = device.tensor(DType::f32, {size, 100}, "whole"), mine = device.tensor(DType::f32, {100}, "mine");
    Tensor total = device.tensor(DType::f32, {100}, Vector(100, 1.0 + me), "total");
    Graph graph;
    double want = 1.0 + me, sum = size * (size + 1) / 2.0;
    for (int run = 0; run < 4; run++) {
        graph.run(device.ctx, [&] {
            call([&] { comm.all_reduce(total); });
            copy(mine, total, device.ctx);
            add(total, mine, mine, device.ctx);
            call([&] { comm.all_gather(whole, mine); });
        });
        want = run == 0 ? sum : 2 * want * size;
        EXPECT_EQ(device.read(whole), Vector(size_t(size * 100), want)) << run;
    }
}

// NaN and infinity arrive everywhere.
TEST_P(OnRanks, NotANumberSpreads) {
    Vector x(9, 1.0);
    if (me == size - 1) x[4] = std::nan(""), x[8] = std::numeric_limits<double>::infinity();
    Tensor t = device.tensor(DType::f32, {9}, x, "t");
    call([&] { comm.all_reduce(t); });
    const Vector got = device.read(t);
    EXPECT_TRUE(std::isnan(got[4]));
    EXPECT_TRUE(std::isinf(got[8]));
    EXPECT_EQ(got[3], size);
}

// Groups: neighbours, and every second rank.
TEST_P(OnRanks, SomeOfTheRanks) {
    const std::vector<Ranks> pairs{{me / 2 * 2, 1, 2}, {me % 2, 2, 2}};
    for (Ranks ranks : size == 4 ? pairs : std::vector<Ranks>{}) {
        Comm two(world(), device.ctx, ranks);
        EXPECT_EQ(two.size, 2);
        EXPECT_EQ(two.rank, (me - ranks.first) / ranks.stride);
        Tensor in = device.tensor(DType::f64, {3}, input_of(me, 3, DType::f64), "in");
        Tensor out = device.tensor(DType::f64, {2, 3}, "out");
        two.after_compute();
        two.all_gather(out, in);
        two.before_compute();
        const Vector got = device.read(out);
        for (int r = 0; r < 2; r++)
            EXPECT_EQ(part_of_vector(got, r, 2), input_of(ranks.first + r * ranks.stride, 3, DType::f64));
    }
    Comm one(world(), device.ctx, {me, 1, 1});
    Tensor t = device.tensor(DType::f32, {2}, {1, 2}, "t");
    one.all_reduce(t);
    EXPECT_EQ(device.read(t), (Vector{1, 2}));
}

TEST_P(OnRanks, WrongTensorsAreRefused) {
    Tensor a = device.tensor(DType::f32, {3 * size}, Vector(size_t(3 * size)), "a");
    Tensor b = device.tensor(DType::f32, {2}, {0, 0}, "b");
    Tensor c = device.tensor(DType::bf16, {3}, {0, 0, 0}, "c");
    EXPECT_TRUE(refuses([&] { comm.all_gather(a, b); }, "b"));
    EXPECT_TRUE(refuses([&] { comm.reduce_scatter(b, a); }, "b"));
    EXPECT_TRUE(refuses([&] { comm.all_gather(a, c); }, "c is BF16"));
    EXPECT_TRUE(refuses([&] { comm.all_reduce(c); }, "c is BF16"));
    EXPECT_TRUE(refuses([&] { comm.broadcast(a, size); }, str("no rank ", size)));
    Tensor strided = a;
    strided.stride.dim[0] = 2;
    EXPECT_TRUE(refuses([&] { comm.all_reduce(strided); }, "contiguous"));
    if (size > 1) {
        Tensor odd = device.tensor(DType::f32, {size + 1}, Vector(size_t(size + 1)), "odd");
        EXPECT_TRUE(refuses([&] { comm.all_to_all(odd, odd); }, "odd"));
    }
}

INSTANTIATE_TEST_SUITE_P(, OnRanks,
                         testing::Values(Case{{}, int64_t(1) << 30}, Case{{.threads = 3}, 7},
                                         Case{{.guard = true}, 1000}));

}  // namespace
}  // namespace llmc::test
