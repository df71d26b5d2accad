// World: what is the same however processes are started.
#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <thread>

#include "llmc/comm/backend.h"
#include "llmc/comm/rendezvous.h"

namespace llmc {

namespace {

std::string host_name() {
    char name[256] = "";
    ::gethostname(name, sizeof name - 1);
    return *name ? name : "unnamed host";
}

// Whether a launcher that MPI understands started this process: Open MPI's mpirun, or anything with PMIx or PMI.
bool under_mpi_launcher() {
    for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"})
        if (std::getenv(variable)) return true;
    return false;
}

}  // namespace

World::World() : host(host_name()) {
    if (under_mpi_launcher()) {
        started = mpi_processes_start(*this);
    } else if (const std::optional<Rendezvous> meeting = rendezvous_from_environment()) {
        if (transport_needs_mpi())
            input_error(std::getenv("RANK") ? "torchrun" : "srun", " started ", meeting->size,
                        " processes that cannot find each other: use srun --mpi=pmix, or mpirun");
        started = tcp_processes_start(*meeting, *this);
    }
    watch();
}

World::World(const Rendezvous& meeting) : host(host_name()) {
    started = tcp_processes_start(meeting, *this);
    watch();
}

void World::watch() {
    if (!started || size == 1) return;
    guard = std::make_unique<Watchdog>(*this, started->activities());
    guard->add([this](double) { return started->problem(); });
}

World::World(int pretended_size, int pretended_rank)
    : rank(pretended_rank), size(pretended_size), local_rank(rank), local_size(size), host(host_name()) {
    if (size < 1 || rank < 0 || rank >= size) run_error("there is no rank ", rank, " among ", size);
}

World& World::alone() {
    static World one(1, 0);
    return one;
}

World::~World() {
    // Unwinding past the World means that nobody called abort, and the others would wait for this rank.
    if (!started) return;
    if (std::uncaught_exceptions() > 0) abort("ended by an exception");
    try {
        const Waiting waiting(watchdog(), "waiting at the end");
        barrier();  // MPI's end also waits for all ranks, but without a watchdog
    } catch (const std::exception& error) {
        abort(error.what());
    }
}

void World::set_timeout(double seconds) {
    if (guard) guard->set_timeout(seconds);
}

void World::barrier() {
    const Waiting waiting(watchdog(), "barrier");
    if (started) started->barrier();
}

void World::broadcast(void* bytes, int64_t count, int root) {
    if (root < 0 || root >= size) run_error("broadcast: there is no rank ", root, " among ", size);
    const Waiting waiting(watchdog(), "broadcast", count);
    if (started && count > 0) started->broadcast(bytes, count, root);
}

std::vector<std::string> World::all_gather(const std::string& mine) {
    if (!started) return std::vector<std::string>(size_t(size), mine);
    const Waiting waiting(watchdog(), "all_gather of text");
    return started->all_gather(mine);
}

void World::abort(const std::string& reason, int exit_code) {
    // What hits all ranks at once is said once: the others leave rank 0 the time to end them, which the launcher does
    // by SIGTERM (a training that saves before it stops must not, now) or problem() on its word.
    std::signal(SIGTERM, SIG_DFL);
    if (started && rank > 0) {
        std::this_thread::sleep_for(std::chrono::seconds(1));
        started->problem();
    }
    std::fflush(stdout);
    if (size > 1) std::fprintf(stderr, "rank %d (%s): %s\n", rank, host.c_str(), reason.c_str());
    else std::fprintf(stderr, "error: %s\n", reason.c_str());
    std::fflush(stderr);
    if (started) started->abort(exit_code);
    std::_Exit(exit_code);
}

std::string thread_warning(World& world, int threads) {
    struct Mine {
        cpu_set_t cpus;
        int threads;
    } mine{};
    if (sched_getaffinity(0, sizeof mine.cpus, &mine.cpus) != 0) return "";
    mine.threads = threads;
    std::string bytes(reinterpret_cast<const char*>(&mine), sizeof mine);

    // Ranks of this host that share any CPU with this one, and the CPUs they have together.
    const std::vector<std::string> hosts = world.all_gather(world.host), all = world.all_gather(bytes);
    cpu_set_t together = mine.cpus;
    int ranks = 0, wanted = 0;
    for (size_t i = 0; i < all.size(); i++) {
        Mine other;
        if (all[i].size() != sizeof other) continue;  // another build's
        std::memcpy(&other, all[i].data(), sizeof other);
        cpu_set_t shared;
        CPU_AND(&shared, &other.cpus, &mine.cpus);
        if (hosts[i] != world.host || CPU_COUNT(&shared) == 0) continue;
        CPU_OR(&together, &together, &other.cpus);
        ranks++, wanted += other.threads;
    }
    const int cpus = CPU_COUNT(&together);
    if (wanted <= cpus) return "";
    return str(wanted, " threads of ", ranks, ranks == 1 ? " process" : " processes", " share ", cpus,
               cpus == 1 ? " CPU" : " CPUs", " of ", world.host, ": give fewer --threads",
               world.size > 1 ? ", or each process more CPUs (mpirun --map-by slot:PE=N, or --bind-to none)" : "");
}

}  // namespace llmc
