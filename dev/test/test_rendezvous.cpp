// Processes that meet by TCP: everyone comes, says the same, and ends together, with a sentence that names the rank.
#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>

#include <atomic>
#include <thread>

#include "dev/test/program_test.h"
#include "llmc/base/rng.h"
#include "llmc/base/socket.h"
#include "llmc/comm/backend.h"
#include "llmc/comm/messages.h"
#include "llmc/comm/rendezvous.h"
#include "llmc/ops/ops.h"

namespace llmc::test {
namespace {

using namespace std::chrono_literals;
using Environment = std::vector<std::pair<std::string, std::string>>;

// -------------------------------------------------------------------------- what the ranks do, each in its own process
const char* const ready_variable = "RENDEZVOUS_TEST_READY";

// As train_mot's main does: what goes wrong is said on stderr, by all who are in the world.
template <class Body>
void in_world(Body&& body) {
    std::optional<World> world;
    try {
        world.emplace(*rendezvous_from_environment());
        world->set_timeout(20);
        body(*world);
    } catch (const std::exception& error) {
        if (world) world->abort(error.what(), 2);
        std::fprintf(stderr, "error: %s\n", error.what());
        ::_exit(1);
    }
}

void ready() { write_file_atomic(std::string(std::getenv(ready_variable)), ""); }

TEST(DISABLED_Scene, Talks) {
    in_world([](World& w) {
        for (int round = 0; round < 3; round++) {
            w.barrier();
            std::vector<std::string> want;
            for (int r = 0; r < w.size; r++) want.push_back(std::string(size_t(r * 100000), char('a' + r)));
            if (w.all_gather(want[size_t(w.rank)]) != want) run_error("all_gather is wrong");
            for (int root = 0; root < w.size; root++) {
                std::string bytes(1 << 20, char('a' + w.rank));
                w.broadcast(bytes.data(), int64_t(bytes.size()), root);
                if (bytes != std::string(1 << 20, char('a' + root))) run_error("broadcast from ", root, " is wrong");
            }
        }
        std::printf("rank %d of %d, %d of %d here\n", w.rank, w.size, w.local_rank, w.local_size);
    });
}

TEST(DISABLED_Scene, WaitsInABarrier) {
    in_world([](World& w) {
        ready();
        if (w.rank == 1) std::this_thread::sleep_for(1h);
        w.barrier();
    });
}

TEST(DISABLED_Scene, WaitsElsewhere) {  // as in a collective of GPUs
    in_world([](World&) {
        ready();
        std::this_thread::sleep_for(1h);
    });
}

TEST(DISABLED_Scene, OneThrows) {
    in_world([](World& w) {
        if (w.rank == 1) run_error("the shard is gone");
        std::this_thread::sleep_for(1h);
    });
}

TEST(DISABLED_Scene, AllThrow) {
    in_world([](World&) { run_error("no such flag"); });
}

TEST(DISABLED_Scene, LeaveOneAfterTheOther) {
    World world = World::pretend(1, 0);
    auto processes = tcp_processes_start(*rendezvous_from_environment(), world);
    processes->barrier();
    if (world.rank == 1) std::this_thread::sleep_for(1s);  // rank 0 has left
    std::printf("problem: \"%s\"\n", processes->problem().c_str());
}

TEST(DISABLED_Scene, CarriesNoTensorOfTheCpu) {
    in_world([](World& w) {
        Context ctx({.threads = 1});
        if (transport_needs_mpi()) Comm comm(w, ctx);
        else run_error("MPI did not start these processes");  // NCCL does without
    });
}

// Rank 1 does five steps, the others go on.
void sum_on_gpus(World& w) {
    Context ctx({.threads = 1, .device = choose_device(w)});
    Comm comm(w, ctx);
    Tensor t(device_alloc(4000, ctx), DType::f32, {1000}, "t");
    fill(t, 0, ctx);
    for (int step = 0; w.rank != 1 || step < 5; step++) {
        comm.after_compute();
        comm.all_reduce(t);
        comm.before_compute();
        synchronize(ctx);
    }
}

TEST(DISABLED_Scene, OneThrowsWhileGpusSum) {
    in_world([](World& w) {
        sum_on_gpus(w);
        run_error("the shard is gone");
    });
}

TEST(DISABLED_Scene, OneLeavesWhileGpusSum) {
    in_world([](World& w) {
        sum_on_gpus(w);
        std::this_thread::sleep_for(1h);
    });
}

// ------------------------------------------------------------------------------------------------ what must come of it
Socket connect_here(int port) {
    std::string why;
    for (int i = 0; i < 300; i++) {
        if (Socket socket = connect_to("127.0.0.1", port, 1, why)) return socket;
        std::this_thread::sleep_for(100ms);
    }
    return {};
}

class TcpProcesses : public testing::Test {
protected:
    TempDir dir;
    std::vector<Process> ranks;
    int port = 0;

    void SetUp() override {  // a port that is free now
        const Socket any(::socket(AF_INET, SOCK_STREAM, 0));
        sockaddr_in address{};
        socklen_t size = sizeof address;
        address.sin_family = AF_INET;
        ASSERT_EQ(::bind(any.descriptor(), reinterpret_cast<sockaddr*>(&address), size), 0);
        ::getsockname(any.descriptor(), reinterpret_cast<sockaddr*>(&address), &size);
        port = ntohs(address.sin_port);
    }
    void TearDown() override {
        for (const Process& rank : ranks)
            if (::kill(rank.id, 0) == 0) ::kill(rank.id, SIGKILL), rank.wait();
    }

    Environment slurm(int rank, int size) const {
        return {{"SLURM_PROCID", str(rank)}, {"SLURM_STEP_NUM_TASKS", str(size)}, {"SLURM_JOB_ID", "77"},
                {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NODELIST", "127.0.0.[1-2]"}, {"MASTER_PORT", str(port)}};
    }
    Environment torchrun(int rank, int size) const {
        return {{"RANK", str(rank)}, {"WORLD_SIZE", str(size)}, {"MASTER_ADDR", "127.0.0.1"},
                {"MASTER_PORT", str(port)}};
    }
    // One more process of this program, which plays the scene.
    void start(const std::string& scene, Environment environment) {
        const std::string number = str(ranks.size());
        std::vector<std::string> words = {"/usr/bin/env", ready_variable + str("=", dir / "ready", number),
                                          "MOT_START_TIMEOUT=60", "EMU_DEVICES=4", "ASAN_OPTIONS=detect_leaks=0"};
        for (const auto& [name, value] : environment) words.push_back(name + "=" + value);
        words.insert(words.end(), {std::filesystem::read_symlink("/proc/self/exe"),
                                   "--gtest_filter=DISABLED_Scene." + scene, "--gtest_also_run_disabled_tests"});
        ranks.emplace_back(words, dir / number);
    }
    void start_all(const std::string& scene, int size = 3) {
        for (int rank = 0; rank < size; rank++) start(scene, slurm(rank, size));
    }
    std::string said(size_t rank) const { return read_file(dir / str(rank)); }
    bool says(size_t rank, const std::string& part) const { return said(rank).find(part) != std::string::npos; }
    void wait_until_ready() {
        for (size_t rank = 0; rank < ranks.size(); rank++)
            for (int i = 0; i < 300 && !path_exists(dir / str("ready", rank)); i++) std::this_thread::sleep_for(100ms);
    }
    // Waits for a rank that must end by itself: a hang is a failure, not a hang of the test.
    void expect_end(size_t rank, int code, const std::string& part) {
        siginfo_t ended{};
        for (int i = 0; i < 600 && !ended.si_pid; i++) {
            if (i) std::this_thread::sleep_for(100ms);
            ::waitid(P_PID, id_t(ranks[rank].id), &ended, WEXITED | WNOHANG | WNOWAIT);
        }
        ASSERT_NE(ended.si_pid, 0) << "rank " << rank << " does not end: " << said(rank);
        EXPECT_EQ(ranks[rank].wait(), code) << said(rank);
        EXPECT_TRUE(says(rank, part)) << "rank " << rank << " says: " << said(rank);
    }
};

TEST_F(TcpProcesses, TellEachOtherEverything) {
    start_all("Talks");
    for (size_t rank = 0; rank < 3; rank++) expect_end(rank, 0, str("rank ", rank, " of 3, ", rank, " of 3 here"));
}

TEST_F(TcpProcesses, MeetAsTorchrunStartsThem) {
    for (int rank : {1, 0}) start("Talks", torchrun(rank, 2));
    for (size_t rank = 0; rank < 2; rank++) expect_end(rank, 0, " of 2 here");
}

// By default torchrun listens on the port that it tells its processes.
TEST_F(TcpProcesses, MeetWhileTorchrunHasItsPort) {
    const Socket taken = listen_on(port);
    for (int rank : {1, 0}) {
        Environment environment = torchrun(rank, 2);
        environment.push_back({"TORCHELASTIC_USE_AGENT_STORE", "True"});
        start("Talks", environment);
    }
    for (size_t rank = 0; rank < 2; rank++) expect_end(rank, 0, " of 2 here");
}

TEST_F(TcpProcesses, WhoDoesNotComeIsNamed) {
    for (int rank : {0, 2}) {
        Environment environment = slurm(rank, 5);
        environment.push_back({"MOT_START_TIMEOUT", "3"});
        start("Talks", environment);
    }
    expect_end(0, 1, "ranks 1, 3, 4 of 5 did not connect to rank 0");
    expect_end(1, 1, "rank 0 (127.0.0.1) is gone");
}

TEST_F(TcpProcesses, ARank0ThatDoesNotComeIsNamed) {
    Environment environment = slurm(1, 2);
    environment.push_back({"MOT_START_TIMEOUT", "2"});
    start("Talks", environment);
    expect_end(0, 1, "could not reach rank 0 at 127.0.0.1, port " + str(port));
    EXPECT_TRUE(says(0, "Connection refused"));
}

TEST_F(TcpProcesses, AKilledRankEndsAll) {
    for (const char* scene : {"WaitsElsewhere", "WaitsInABarrier"})
        for (size_t killed : {1, 0}) {
            SCOPED_TRACE(str(scene, ", kill ", killed));
            start_all(scene);
            wait_until_ready();
            ::kill(ranks[killed].id, SIGKILL);
            for (size_t rank = 0; rank < 3; rank++) {
                if (rank == killed) {
                    EXPECT_EQ(ranks[rank].wait(), killed_by(SIGKILL));
                    continue;
                }
                expect_end(rank, 1, str("): rank ", killed, " ("));
                EXPECT_TRUE(says(rank, ") is gone: ")) << said(rank);
            }
            ranks.clear();
            for (int rank = 0; rank < 3; rank++) std::filesystem::remove(dir / str("ready", rank));
        }
}

TEST_F(TcpProcesses, WhoFailsSpeaksForAll) {
    start_all("OneThrows");
    expect_end(1, 2, "): the shard is gone");
    for (size_t rank : {0, 2}) {
        expect_end(rank, 2, "");
        EXPECT_FALSE(says(rank, "gone")) << said(rank);
    }
}

// NCCL notices it too, and sooner, but does not know why.
TEST_F(TcpProcesses, WhoFailsSpeaksForAllGpus) {
    if (transport_needs_mpi()) GTEST_SKIP() << "for GPUs";
    start_all("OneThrowsWhileGpusSum");
    expect_end(1, 2, "): the shard is gone");
    for (size_t rank : {0, 2}) {
        expect_end(rank, 2, "");
        EXPECT_FALSE(says(rank, "NCCL says")) << said(rank);
    }
}

TEST_F(TcpProcesses, WhatOnlyNcclNoticesEndsAll) {
    if (transport_needs_mpi()) GTEST_SKIP() << "for GPUs";
    start_all("OneLeavesWhileGpusSum");
    for (size_t rank : {0, 1, 2}) expect_end(rank, 1, "");
    EXPECT_TRUE(says(0, "NCCL says remote process exited") || says(2, "NCCL says remote process exited")) << said(0);
}

TEST_F(TcpProcesses, WhatHitsAllIsSaidOnce) {
    start_all("AllThrow");
    expect_end(0, 2, "): no such flag");
    for (size_t rank : {1, 2}) {
        expect_end(rank, 2, "");
        EXPECT_FALSE(says(rank, "no such flag")) << said(rank);
    }
}

TEST_F(TcpProcesses, StrangersAreTurnedAway) {
    start("Talks", slurm(0, 2));
    const Socket garbage = connect_here(port), silent = connect_here(port);
    ASSERT_TRUE(garbage && silent);
    const std::string text(4096, 'x');
    garbage.send(text.data(), text.size());
    Environment other = slurm(1, 2);
    other[2].second = "78";  // a process of another job
    other.push_back({"MOT_START_TIMEOUT", "3"});
    start("Talks", other);
    expect_end(1, 1, "another program answers there");
    start("Talks", slurm(1, 2));
    expect_end(0, 0, "rank 0 of 2");
    expect_end(2, 0, "rank 1 of 2");
}

// A connection that stalls is dropped after a while of its own, and meanwhile others are heard.
TEST_F(TcpProcesses, WhoStallsHoldsNobodyUp) {
    start("Talks", slurm(0, 2));
    std::vector<Socket> silent;
    for (int i = 0; i < 40; i++) silent.push_back(connect_here(port));
    const Socket slow = connect_here(port);
    ASSERT_TRUE(slow);
    std::atomic<bool> met = false;
    std::thread drip([&] {  // a byte at a time
        for (const char byte : bytes_of(Hello{})) {
            if (met || !slow.send(&byte, 1)) return;
            for (int i = 0; i < 10 && !met; i++) std::this_thread::sleep_for(100ms);
        }
    });
    start("Talks", slurm(1, 2));
    expect_end(0, 0, "rank 0 of 2");
    expect_end(1, 0, "rank 1 of 2");
    met = true;
    drip.join();
}

// The test plays a rank that does not do as the others expect.
class Impostor {
public:
    Socket data, life;

    // Comes as this rank of two to a rank 0 that listens. Nothing else is certain if rank 0 is out of time already.
    Impostor(int port, int rank) : data(knock(port, rank, 0)), life(knock(port, rank, 1)) {}
    // Is rank 0 for the one that comes.
    explicit Impostor(int port) {
        const Socket listener = listen_on(port);
        for (Socket* line : {&data, &life}) {
            *line = accept_from(listener, 60);
            std::string said(hello_bytes, '\0');
            if (!*line || !line->receive(said.data(), said.size())) return;
            const std::optional<Hello> hello = read_hello(said);
            if (hello) say(*line, bytes_of(Welcome{hello->job}));
        }
    }
    static void say(const Socket& line, const std::string& bytes) { line.send(bytes.data(), bytes.size()); }
    static void say(const Socket& line, int64_t length) { say(line, bytes_of(std::span<const int64_t>(&length, 1))); }

private:
    static Socket knock(int port, int rank, int line) {
        Socket socket = connect_here(port);
        std::string answer(welcome_bytes, '\0');
        if (socket) say(socket, bytes_of(Hello{hash_of("slurm 77.0"), rank, 2, line, "elsewhere"}));
        if (socket) socket.receive(answer.data(), answer.size());
        return socket;
    }
};

TEST_F(TcpProcesses, WhoComesAndFallsSilentIsNamed) {
    Environment environment = slurm(0, 2);
    environment.push_back({"MOT_START_TIMEOUT", "3"});
    start("Talks", environment);
    const Impostor silent(port, 1);
    expect_end(0, 1, "rank 1 of 2 ");
    EXPECT_TRUE(says(0, "within 3 seconds")) << said(0);
}

TEST_F(TcpProcesses, ARank0ThatFallsSilentIsNamed) {
    Environment environment = slurm(1, 2);
    environment.push_back({"MOT_START_TIMEOUT", "3"});
    start("Talks", environment);
    const Impostor silent(port);
    expect_end(0, 1, "127.0.0.1, port " + str(port));
}

TEST_F(TcpProcesses, LengthsAreNotBelieved) {
    for (const int64_t length : {int64_t(10) << 30, int64_t(-1)}) {
        SCOPED_TRACE(length);
        start("Talks", slurm(0, 2));
        const Impostor liar(port, 1);
        Impostor::say(liar.data, length);
        expect_end(0, 1, "rank 1 (elsewhere) sent the length of a text that is not between 0 and");
        ranks.clear();
        start("Talks", slurm(1, 2));
        const Impostor other(port);
        for (const int64_t one : {int64_t(4), length}) Impostor::say(other.data, one);
        expect_end(0, 1, "rank 0 (127.0.0.1) sent the length of a text that is not between 0 and");
        ranks.clear();
    }
}

TEST_F(TcpProcesses, LastWordsWithoutAnEndAreNone) {
    start("WaitsElsewhere", slurm(0, 2));
    const Impostor impostor(port, 1);
    Impostor::say(impostor.data, int64_t(4));
    Impostor::say(impostor.data, "east");
    Impostor::say(impostor.life, std::string(last_words_bytes, 'x'));
    expect_end(0, 1, "rank 1 (elsewhere) is gone");
    EXPECT_FALSE(says(0, "xxxx")) << said(0);
}

TEST_F(TcpProcesses, TheSameRankTwiceOrAnotherNumberIsRefused) {
    start("Talks", slurm(0, 3));
    start("Talks", slurm(1, 3));
    start("Talks", slurm(1, 3));
    expect_end(0, 1, "two processes say that they are rank 1");
    TearDown();
    ranks.clear();
    start("Talks", slurm(0, 3));
    start("Talks", slurm(1, 4));
    expect_end(0, 1, "was started as one of 4 processes, rank 0");
}

TEST_F(TcpProcesses, APortInUseIsNamed) {
    const Socket taken = listen_on(port);
    start("Talks", slurm(0, 2));
    expect_end(0, 1, str("cannot listen on port ", port, ": Address already in use; set MASTER_PORT"));
}

TEST_F(TcpProcesses, AGoodEndIsNoProblem) {
    start_all("LeaveOneAfterTheOther", 2);
    for (size_t rank : {0, 1}) expect_end(rank, 0, "problem: \"\"");
}

TEST_F(TcpProcesses, MpiIsNeededForTensorsOfTheCpu) {
    start_all("CarriesNoTensorOfTheCpu", 2);
    expect_end(0, 2, "MPI did not start these processes");
}

// ------------------------------------------------------------------------------------------------- the environment
TEST(Rendezvous, FirstHost) {
    for (const auto& [hosts, first] : {std::pair("node3", "node3"), {"a,b", "a"}, {"node[03-05,07]", "node03"},
                                       {"node[7]", "node7"}, {"gpu[1,3-4]-ib,login", "gpu1-ib"},
                                       {"rack[0-1]node[08-15]", "rack0node08"}, {"", ""}})
        EXPECT_EQ(first_host(hosts), first);
}

struct Variables {
    Environment all;
    explicit Variables(Environment e) : all(std::move(e)) {
        for (const auto& [name, value] : all) ::setenv(name.c_str(), value.c_str(), 1);
    }
    ~Variables() {
        for (const auto& [name, value] : all) ::unsetenv(name.c_str());
    }
};

TEST(Rendezvous, ReadsSlurmsVariables) {
    const Variables batch_script({{"SLURM_JOB_ID", "4"}, {"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}});
    EXPECT_FALSE(rendezvous_from_environment()) << "what a batch script runs without srun is one process";
    const Variables step(
        {{"SLURM_STEP_NUM_TASKS", "8"}, {"SLURM_STEP_ID", "1"}, {"SLURM_LAUNCH_NODE_IPADDR", "10.0.0.7"}});
    {
        const Variables nodes(Environment{{"SLURM_STEP_NODELIST", "node[3-4]"}});
        EXPECT_EQ(rendezvous_from_environment()->host, "node3");
        const Variables master({{"MASTER_ADDR", "other"}, {"MASTER_PORT", "29500"}});
        EXPECT_EQ(rendezvous_from_environment()->host, "other");
        EXPECT_EQ(rendezvous_from_environment()->port, 29500);
    }
    const std::optional<llmc::Rendezvous> first = rendezvous_from_environment();
    EXPECT_EQ(first->host, "10.0.0.7");
    EXPECT_EQ(first->rank, 0);
    EXPECT_EQ(first->size, 8);
    EXPECT_GE(first->port, 20000);
    EXPECT_LT(first->port, 30000);
    const Variables next_step(Environment{{"SLURM_STEP_ID", "2"}});
    EXPECT_NE(rendezvous_from_environment()->port, first->port);
    EXPECT_NE(rendezvous_from_environment()->job, first->job);
}

TEST(Rendezvous, WhatIsMissingOrImpossibleIsNamed) {
    auto refused = [](Environment environment, const std::string& part) {
        const Variables variables(std::move(environment));
        try {
            rendezvous_from_environment();
            ADD_FAILURE() << "expected: " << part;
        } catch (const InputError& error) {
            EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
        }
    };
    refused({{"SLURM_STEP_NUM_TASKS", "2"}}, "SLURM_PROCID");
    refused({{"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_PROCID", "2"}}, "SLURM_PROCID=2 is not a number from 0 to 1");
    refused({{"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_PROCID", "1"}}, "MASTER_ADDR");
    refused({{"RANK", "0"}, {"WORLD_SIZE", "2"}}, "MASTER_ADDR");
    refused({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}}, "MASTER_PORT");
    refused({{"RANK", "0"}, {"WORLD_SIZE", "2x"}}, "WORLD_SIZE=2x");
    refused({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "99999"}}, "MASTER_PORT=99999");
}

}  // namespace
}  // namespace llmc::test
