// The processes of a run, by MPI.
#include <algorithm>
#include <cstdlib>

#include "llmc/comm/mpi.h"

namespace llmc {

void check_mpi(int status, const char* what, const World& world) {
    if (status == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(status, text, &length);
    run_error(what, " on rank ", world.rank, ": MPI says ", text);
}

namespace {

// One array on each host, which all its ranks see.
void share_activities(Processes& processes, MPI_Comm on_host) {
    const World& world = processes.world;
    void* base = nullptr;
    MPI_Aint bytes = MPI_Aint(world.local_rank == 0 ? sizeof(Activity) * size_t(world.local_size) : 0);
    int unit = 1;
    check_mpi(MPI_Win_allocate_shared(bytes, unit, MPI_INFO_NULL, on_host, &base, &processes.shared),
              "MPI_Win_allocate_shared", world);
    check_mpi(MPI_Win_shared_query(processes.shared, 0, &bytes, &unit, &base), "MPI_Win_shared_query", world);
    processes.activities = {static_cast<Activity*>(base), size_t(world.local_size)};
    new (&processes.activities[size_t(world.local_rank)]) Activity{world.rank};
    check_mpi(MPI_Barrier(on_host), "barrier", world);
}

}  // namespace

Processes* processes_start(World& world) {
    int threads = 0;  // only the thread that made the World calls MPI
    if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &threads) != MPI_SUCCESS)
        run_error("MPI does not start");
    std::unique_ptr<Processes, ProcessesDeleter> processes(new Processes{world});
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &processes->all), "MPI_Comm_dup", world);
    check_mpi(MPI_Comm_set_errhandler(processes->all, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", world);
    MPI_Comm_rank(processes->all, &world.rank);
    MPI_Comm_size(processes->all, &world.size);

    MPI_Comm on_host;
    check_mpi(MPI_Comm_split_type(processes->all, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &on_host),
              "MPI_Comm_split_type", world);
    MPI_Comm_rank(on_host, &world.local_rank);
    MPI_Comm_size(on_host, &world.local_size);
    share_activities(*processes, on_host);
    MPI_Comm_free(&on_host);
    return processes.release();
}

void ProcessesDeleter::operator()(Processes* processes) const {
    if (processes->shared != MPI_WIN_NULL) MPI_Win_free(&processes->shared);
    if (processes->all != MPI_COMM_NULL) MPI_Comm_free(&processes->all);
    MPI_Finalize();
    delete processes;
}

void processes_abort(int exit_code, Processes* processes) {
    if (processes) MPI_Abort(processes->all, exit_code);
    std::_Exit(exit_code);
}

std::span<Activity> processes_activities(Processes& processes) { return processes.activities; }

void processes_barrier(Processes& processes) { check_mpi(MPI_Barrier(processes.all), "barrier", processes.world); }

void processes_broadcast(void* bytes, int64_t count, int root, Processes& processes) {
    constexpr int64_t largest = int64_t(1) << 30;
    for (int64_t done = 0; done < count; done += largest)
        check_mpi(MPI_Bcast(static_cast<char*>(bytes) + done, int(std::min(largest, count - done)), MPI_BYTE, root,
                            processes.all),
                  "broadcast", processes.world);
}

std::vector<std::string> processes_all_gather(const std::string& mine, Processes& processes) {
    const World& world = processes.world;
    const int size = int(mine.size());
    std::vector<int> sizes(size_t(world.size)), begins(size_t(world.size));
    check_mpi(MPI_Allgather(&size, 1, MPI_INT, sizes.data(), 1, MPI_INT, processes.all), "all_gather", world);
    int64_t total = 0;
    for (size_t r = 0; r < sizes.size(); r++) begins[r] = int(total), total += sizes[r];
    if (total > 0x7fffffff) run_error("all_gather of ", total, " bytes of text: that is no small string");
    std::string all(size_t(total), '\0');
    check_mpi(MPI_Allgatherv(mine.data(), size, MPI_BYTE, all.data(), sizes.data(), begins.data(), MPI_BYTE,
                             processes.all),
              "all_gather", world);
    std::vector<std::string> texts;
    for (size_t r = 0; r < sizes.size(); r++) texts.push_back(all.substr(size_t(begins[r]), size_t(sizes[r])));
    return texts;
}

}  // namespace llmc
