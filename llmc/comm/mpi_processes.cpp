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

class MpiProcesses final : public Processes {
public:
    MPI_Comm all = MPI_COMM_NULL;

    explicit MpiProcesses(World& w) : world(w) {
        int threads = 0;  // only the thread that made the World calls MPI
        if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &threads) != MPI_SUCCESS)
            run_error("MPI could not be initialised");
        check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &all), "MPI_Comm_dup", world);
        check_mpi(MPI_Comm_set_errhandler(all, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", world);
        MPI_Comm_rank(all, &world.rank);
        MPI_Comm_size(all, &world.size);
        for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"})
            if (const char* said = std::getenv(variable); said && world.size == 1 && std::atoi(said) > 1)
                input_error("the launcher started ", said, " processes (", variable,
                            ") that this MPI cannot connect to each other: use Open MPI's mpirun, or "
                            "srun --mpi=pmix");

        MPI_Comm on_host;
        check_mpi(MPI_Comm_split_type(all, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &on_host), "MPI_Comm_split_type",
                  world);
        MPI_Comm_rank(on_host, &world.local_rank);
        MPI_Comm_size(on_host, &world.local_size);
        share_activities(on_host);
        MPI_Comm_free(&on_host);
    }
    ~MpiProcesses() override {
        MPI_Win_free(&shared);
        MPI_Comm_free(&all);
        MPI_Finalize();
    }

    void barrier() override { check_mpi(MPI_Barrier(all), "barrier", world); }

    void broadcast(void* bytes, int64_t count, int root) override {
        constexpr int64_t largest = int64_t(1) << 30;
        for (int64_t done = 0; done < count; done += largest)
            check_mpi(MPI_Bcast(static_cast<char*>(bytes) + done, int(std::min(largest, count - done)), MPI_BYTE, root,
                                all),
                      "broadcast", world);
    }

    std::vector<std::string> all_gather(const std::string& mine) override {
        const int size = int(mine.size());
        std::vector<int> sizes(size_t(world.size)), begins(size_t(world.size));
        check_mpi(MPI_Allgather(&size, 1, MPI_INT, sizes.data(), 1, MPI_INT, all), "all_gather", world);
        int64_t total = 0;
        for (size_t r = 0; r < sizes.size(); r++) begins[r] = int(total), total += sizes[r];
        if (total > 0x7fffffff) run_error("all_gather of ", total, " bytes of text is too long: at most 2147483647");
        std::string joined(size_t(total), '\0');
        check_mpi(MPI_Allgatherv(mine.data(), size, MPI_BYTE, joined.data(), sizes.data(), begins.data(), MPI_BYTE,
                                 all),
                  "all_gather", world);
        std::vector<std::string> texts;
        for (size_t r = 0; r < sizes.size(); r++) texts.push_back(joined.substr(size_t(begins[r]), size_t(sizes[r])));
        return texts;
    }

    std::span<Activity> activities() override { return on_this_host; }

    [[noreturn]] void abort(int exit_code) override {
        MPI_Abort(all, exit_code);
        std::_Exit(exit_code);
    }

private:
    World& world;
    MPI_Win shared = MPI_WIN_NULL;  // memory of the ranks on this host: `on_this_host`, one for each
    std::span<Activity> on_this_host{};

    // One array on each host, which all its ranks see.
    void share_activities(MPI_Comm on_host) {
        void* base = nullptr;
        MPI_Aint bytes = MPI_Aint(world.local_rank == 0 ? sizeof(Activity) * size_t(world.local_size) : 0);
        int unit = 1;
        check_mpi(MPI_Win_allocate_shared(bytes, unit, MPI_INFO_NULL, on_host, &base, &shared),
                  "MPI_Win_allocate_shared", world);
        check_mpi(MPI_Win_shared_query(shared, 0, &bytes, &unit, &base), "MPI_Win_shared_query", world);
        on_this_host = {static_cast<Activity*>(base), size_t(world.local_size)};
        new (&on_this_host[size_t(world.local_rank)]) Activity{world.rank};
        check_mpi(MPI_Barrier(on_host), "barrier", world);
    }
};

}  // namespace

std::unique_ptr<Processes> mpi_processes_start(World& world) { return std::make_unique<MpiProcesses>(world); }

MPI_Comm mpi_comm(const World& world) {
    const auto* processes = dynamic_cast<const MpiProcesses*>(world.processes());
    if (!processes) run_error("MPI did not start these processes, so it cannot transfer their tensors");
    return processes->all;
}

}  // namespace llmc
