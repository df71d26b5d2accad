// The emulated NCCL between processes: results in the order of the ranks, ranks that do not agree, do not come, or die.
#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <nccl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <thread>
#include <utility>
#include <vector>

#include "dev/test/child.h"
#include "dev/test/temp_dir.h"

namespace llmc::test {
namespace {

using namespace std::chrono_literals;

// ------------------------------------------------------------------------ what the ranks do, each in its own process
ncclUniqueId id_from_environment() {
    ncclUniqueId id{};
    strncpy(id.internal, getenv("TEST_ID"), sizeof id.internal - 1);
    return id;
}
int from_environment(const char* name) { return atoi(getenv(name)); }

template <class T>
struct Memory {
    T* data = nullptr;
    size_t size;
    explicit Memory(const std::vector<T>& v) : size(v.size()) {
        cudaMalloc(reinterpret_cast<void**>(&data), size * sizeof(T) + 1);
        cudaMemcpy(data, v.data(), size * sizeof(T), cudaMemcpyHostToDevice);
    }
    explicit Memory(size_t n) : Memory(std::vector<T>(n, T(-1))) {}
    ~Memory() { cudaFree(data); }
    Memory(const Memory&) = delete;
    std::vector<T> read() const {
        cudaDeviceSynchronize();
        std::vector<T> v(size);
        cudaMemcpy(v.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost);
        return v;
    }
};

class DISABLED_Scene : public testing::Test {
protected:
    const int ranks = from_environment("TEST_RANKS"), rank = from_environment("TEST_RANK");
    ncclComm_t comm = nullptr;

    void SetUp() override { ASSERT_EQ(ncclCommInitRank(&comm, ranks, id_from_environment(), rank), ncclSuccess); }
    void TearDown() override {
        if (comm) ncclCommDestroy(comm);
    }

    // What rank r gives. Not whole numbers: float sums in another order have other bits.
    template <class T>
    static std::vector<T> input(int r, size_t n) {
        std::vector<T> v(n);
        for (size_t i = 0; i < n; i++) v[i] = T((double(i % 1013) + 1.1) * (r + 0.3) * (i % 3 ? 1 : 1000));
        return v;
    }
    template <class T>
    std::vector<T> reduced(size_t n, ncclRedOp_t op) const {
        std::vector<T> total = input<T>(0, n);
        for (int r = 1; r < ranks; r++) {
            const std::vector<T> next = input<T>(r, n);
            for (size_t i = 0; i < n; i++) {
                T &a = total[i], b = next[i];
                a = op == ncclProd ? a * b : op == ncclMax ? std::max(a, b) : op == ncclMin ? std::min(a, b) : a + b;
            }
        }
        if (op == ncclAvg)
            for (T& a : total) a /= T(ranks);
        return total;
    }
    template <class T>
    static std::vector<T> part(const std::vector<T>& v, int r, size_t n) {
        return {v.begin() + std::ptrdiff_t(size_t(r) * n), v.begin() + std::ptrdiff_t(size_t(r + 1) * n)};
    }

    template <class T>
    void check_reductions(ncclDataType_t type, size_t n, ncclRedOp_t op, bool in_place) {
        const size_t all = n * size_t(ranks);
        Memory<T> from(input<T>(rank, all)), to(all);
        T* out = in_place ? from.data + size_t(rank) * n : to.data;
        ASSERT_EQ(ncclReduceScatter(from.data, out, n, type, op, comm, nullptr), ncclSuccess);
        EXPECT_EQ(in_place ? part(from.read(), rank, n) : part(to.read(), 0, n), part(reduced<T>(all, op), rank, n));

        Memory<T> from2(input<T>(rank, n)), to2(n);
        out = in_place ? from2.data : to2.data;
        for (int root = 0; root < ranks; root++) {
            ASSERT_EQ(ncclReduce(from2.data, to2.data, n, type, op, root, comm, nullptr), ncclSuccess);
            if (root == rank) {
                EXPECT_EQ(to2.read(), reduced<T>(n, op)) << root;
            }
        }
        ASSERT_EQ(ncclAllReduce(from2.data, out, n, type, op, comm, nullptr), ncclSuccess);
        EXPECT_EQ((in_place ? from2 : to2).read(), reduced<T>(n, op));
    }
    template <class T>
    void check_copies(ncclDataType_t type, size_t n, bool in_place) {
        Memory<T> from(input<T>(rank, n)), to(n * size_t(ranks));
        const T* sent = from.data;
        if (in_place) {
            sent = to.data + size_t(rank) * n;
            cudaMemcpy(to.data + size_t(rank) * n, from.data, n * sizeof(T), cudaMemcpyDeviceToDevice);
        }
        ASSERT_EQ(ncclAllGather(sent, to.data, n, type, comm, nullptr), ncclSuccess);
        const std::vector<T> got = to.read();
        for (int r = 0; r < ranks; r++) EXPECT_EQ(part(got, r, n), input<T>(r, n)) << r;
        for (int root = 0; root < ranks; root++) {
            Memory<T> mine(input<T>(rank, n)), other(n);
            T* out = in_place ? mine.data : other.data;
            ASSERT_EQ(ncclBroadcast(mine.data, out, n, type, root, comm, nullptr), ncclSuccess);
            EXPECT_EQ((in_place ? mine : other).read(), input<T>(root, n)) << root;
        }
    }
    // Until this rank hears of an error, and gives up.
    void sum_until_error() {
        Memory<float> x(1000);
        const ncclComm_t used = comm;
        std::thread watchdog([this] {
            ncclResult_t error = ncclSuccess;
            while (ncclCommGetAsyncError(comm, &error) == ncclSuccess && error == ncclSuccess)
                std::this_thread::sleep_for(10ms);
            EXPECT_EQ(error, ncclRemoteError);
            printf("async error: %s\n", ncclGetErrorString(error));
            ncclCommAbort(std::exchange(comm, nullptr));
        });
        ncclAllReduce(x.data, x.data, 1000, ncclFloat32, ncclSum, used, nullptr);
        cudaDeviceSynchronize();  // one of the two does not end by itself
        watchdog.join();
        EXPECT_EQ(comm, nullptr);
    }
};

const size_t lengths[] = {0, 1, 3, 1000, 200001};  // the last one is more than a socket holds

TEST_F(DISABLED_Scene, Collectives) {
    for (size_t n : lengths)
        for (bool in_place : {false, true}) {
            check_copies<float>(ncclFloat32, n, in_place);
            check_copies<uint16_t>(ncclBfloat16, n, in_place);
            check_reductions<float>(ncclFloat32, n, ncclSum, in_place);
            check_reductions<double>(ncclFloat64, n, ncclAvg, in_place);
            if (n > 1000) continue;
            check_copies<double>(ncclFloat64, n, in_place);
            check_reductions<double>(ncclFloat64, n, ncclProd, in_place);
            check_reductions<int32_t>(ncclInt32, n, ncclSum, in_place);
            check_reductions<int64_t>(ncclInt64, n, ncclMin, in_place);
            check_reductions<uint32_t>(ncclUint32, n, ncclMax, in_place);
            check_reductions<uint64_t>(ncclUint64, n, ncclAvg, in_place);
        }
    Memory<uint16_t> half(8);
    EXPECT_EQ(ncclAllReduce(half.data, half.data, 8, ncclBfloat16, ncclSum, comm, nullptr), ncclInvalidUsage);
}

// Everybody to everybody, itself included, two letters each of lengths that depend on both; all at once.
TEST_F(DISABLED_Scene, Messages) {
    auto length = [&](int from, int to, int letter) { return size_t(from * 70000 + to * 3 + letter * 5); };
    std::vector<std::unique_ptr<Memory<int32_t>>> sent, got;
    ncclGroupStart();
    for (int letter : {0, 1})
        for (int r = 0; r < ranks; r++) {
            const int32_t mark = rank * 100 + r * 10 + letter;
            sent.push_back(std::make_unique<Memory<int32_t>>(std::vector<int32_t>(length(rank, r, letter), mark)));
            got.push_back(std::make_unique<Memory<int32_t>>(length(r, rank, letter)));
            EXPECT_EQ(ncclSend(sent.back()->data, sent.back()->size, ncclInt32, r, comm, nullptr), ncclSuccess);
            EXPECT_EQ(ncclRecv(got.back()->data, got.back()->size, ncclInt32, r, comm, nullptr), ncclSuccess);
        }
    ASSERT_EQ(ncclGroupEnd(), ncclSuccess);
    size_t i = 0;
    for (int letter : {0, 1})
        for (int r = 0; r < ranks; r++)
            EXPECT_EQ(got[i++]->read(), std::vector<int32_t>(length(r, rank, letter), r * 100 + rank * 10 + letter));
}

// Ranks in the other order, by an id that rank 0 makes; used in turn with the first.
TEST_F(DISABLED_Scene, TwoGroups) {
    ncclUniqueId id{};
    if (rank == 0) ncclGetUniqueId(&id);
    Memory<char> text(std::vector<char>(id.internal, id.internal + sizeof id.internal));
    ncclBroadcast(text.data, text.data, sizeof id.internal, ncclChar, 0, comm, nullptr);
    memcpy(id.internal, text.read().data(), sizeof id.internal);
    ncclComm_t turned = nullptr;
    ASSERT_EQ(ncclCommInitRank(&turned, ranks, id, ranks - 1 - rank), ncclSuccess);
    for (ncclComm_t group : {turned, comm, turned}) {
        Memory<int32_t> mine(std::vector<int32_t>{rank}), all(static_cast<size_t>(ranks));
        ncclAllGather(mine.data, all.data, 1, ncclInt32, group, nullptr);
        const std::vector<int32_t> got = all.read();
        for (int r = 0; r < ranks; r++) EXPECT_EQ(got[size_t(r)], group == turned ? ranks - 1 - r : r);
    }
    ncclCommDestroy(turned);
}

TEST_F(DISABLED_Scene, Disagree) {
    Memory<float> x(9);
    ncclAllReduce(x.data, x.data, rank == 1 ? 9 : 8, ncclFloat32, ncclSum, comm, nullptr);
}

TEST_F(DISABLED_Scene, OneDies) {
    if (rank == 1) std::this_thread::sleep_for(200ms), raise(SIGKILL);
    sum_until_error();
}

TEST_F(DISABLED_Scene, OneGivesUp) {
    if (rank == 1) ncclCommAbort(std::exchange(comm, nullptr));
    else sum_until_error();
}

TEST(DISABLED_Meeting, Waits) {
    ncclComm_t comm = nullptr;
    const ncclResult_t result = ncclCommInitRank(&comm, from_environment("TEST_RANKS"), id_from_environment(),
                                                 from_environment("TEST_RANK"));
    fprintf(stderr, "%s\n", ncclGetErrorString(result));
    if (result != ncclSuccess) _exit(3);
    ncclCommDestroy(comm);
}

// ------------------------------------------------------------------------------------------------ what must come of it
class EmulatedRanks : public testing::Test {
protected:
    TempDir dir;
    std::vector<pid_t> processes;

    void start(const std::string& scene, int rank, int ranks, const ncclUniqueId& id) {
        const std::string output = dir / std::to_string(processes.size()), filter = "--gtest_filter=DISABLED_" + scene;
        const pid_t process = fork();
        if (process == 0) {
            setenv("TEST_ID", id.internal, 1);
            setenv("TEST_RANK", std::to_string(rank).c_str(), 1);
            setenv("TEST_RANKS", std::to_string(ranks).c_str(), 1);
            if (!freopen(output.c_str(), "w", stdout) || dup2(1, 2) < 0) _exit(126);
            execl("/proc/self/exe", "ranks", filter.c_str(), "--gtest_also_run_disabled_tests", nullptr);
            _exit(127);
        }
        processes.push_back(process);
    }
    void start_all(const std::string& scene, int ranks) {
        ncclUniqueId id;
        ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
        for (int rank = 0; rank < ranks; rank++) start(scene, rank, ranks, id);
    }
    std::string said(size_t i) const {
        std::stringstream text;
        text << std::ifstream(dir / std::to_string(i)).rdbuf();
        return text.str();
    }
    void expect_says(size_t i, const std::string& part) const {
        EXPECT_NE(said(i).find(part), std::string::npos) << part << " is not in: " << said(i);
    }
    // The exit code, or killed_by(signal), of a process that ends by itself: within half a minute, or it is ended.
    int wait(size_t i) const {
        int status = 0;
        for (int tries = 0; waitpid(processes[i], &status, WNOHANG) == 0; tries++) {
            if (tries == 3000) ADD_FAILURE() << "does not end: " << said(i), kill(processes[i], SIGKILL);
            std::this_thread::sleep_for(10ms);
        }
        return ending_of(status);
    }
    void expect_all_pass(const std::string& scene, int ranks) {
        start_all(scene, ranks);
        for (size_t i = 0; i < processes.size(); i++) {
            EXPECT_EQ(wait(i), 0) << said(i);
            expect_says(i, "[  PASSED  ] 1 test");
        }
        processes.clear();
    }
};

TEST_F(EmulatedRanks, Collectives) {
    for (int ranks : {2, 3, 4}) expect_all_pass("Scene.Collectives", ranks);
}

TEST_F(EmulatedRanks, Messages) {
    for (int ranks : {2, 3}) expect_all_pass("Scene.Messages", ranks);
}

TEST_F(EmulatedRanks, TwoGroups) { expect_all_pass("Scene.TwoGroups", 3); }

TEST_F(EmulatedRanks, WhoDisagreesIsFoundOut) {
    start_all("Scene.Disagree", 2);
    for (size_t i : {0, 1}) EXPECT_EQ(wait(i), 97) << said(i);
    expect_says(0, "rank 1 sends 36 bytes where 32 are expected");
    expect_says(1, "rank 0 sends 32 bytes where 36 are expected");
}

TEST_F(EmulatedRanks, ADeadRankIsAnErrorOfTheOthers) {
    start_all("Scene.OneDies", 3);
    EXPECT_EQ(wait(1), killed_by(SIGKILL)) << said(1);
    for (size_t i : {0, 2}) {
        EXPECT_EQ(wait(i), 0) << said(i);
        expect_says(i, " of 3 is gone: ");  // rank 1, or who gave up because of it
        expect_says(i, "async error: remote process exited");
    }
    EXPECT_NE((said(0) + said(2)).find("emulated NCCL: rank 1 of 3 is gone: "), std::string::npos);
}

TEST_F(EmulatedRanks, AnAbortIsAnErrorOfTheOthers) {
    start_all("Scene.OneGivesUp", 2);
    EXPECT_EQ(wait(0), 0) << said(0);
    EXPECT_EQ(wait(1), 0) << said(1);
    expect_says(0, "emulated NCCL: rank 1 of 2 is gone: ");
}

TEST_F(EmulatedRanks, WhoDoesNotComeIsNamed) {
    ncclUniqueId id;
    ncclGetUniqueId(&id);
    setenv("EMU_PATIENCE", "1", 1);
    for (int rank : {1, 0}) start("Meeting.Waits", rank, 4, id);
    unsetenv("EMU_PATIENCE");
    for (size_t i : {0, 1}) {
        EXPECT_EQ(wait(i), 3) << said(i);
        expect_says(i, "emulated NCCL: rank 2 of 4 did not come within 1 seconds");
        expect_says(i, "system error");
    }
}

TEST_F(EmulatedRanks, TheSameRankTwiceIsRefused) {
    ncclUniqueId id;
    ncclGetUniqueId(&id);
    setenv("EMU_PATIENCE", "1", 1);
    start("Meeting.Waits", 0, 2, id), start("Meeting.Waits", 0, 2, id);
    unsetenv("EMU_PATIENCE");
    for (size_t i : {0, 1}) EXPECT_EQ(wait(i), 3) << said(i);
    EXPECT_NE((said(0) + said(1)).find("emulated NCCL: there is another rank 0 of 2"), std::string::npos);
}

}  // namespace
}  // namespace llmc::test
