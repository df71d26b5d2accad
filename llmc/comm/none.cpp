// COMM=none: a build that knows one process.
#include <cstdlib>

#include "llmc/comm/backend.h"

namespace llmc {

// A launcher that starts a single process may do so.
Processes* processes_start(World&) {
    for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
        const char* size = std::getenv(variable);
        if (size && std::atoi(size) > 1)
            input_error("this is one of ", size, " processes, but the program was built without MPI: install "
                        "libopenmpi-dev and build again, or start it without a launcher");
    }
    return nullptr;
}

void ProcessesDeleter::operator()(Processes*) const {}
void processes_abort(int exit_code, Processes*) { std::_Exit(exit_code); }

// Never called: there are no Processes.
void processes_barrier(Processes&) {}
void processes_broadcast(void*, int64_t, int, Processes&) {}
std::vector<std::string> processes_all_gather(const std::string& mine, Processes&) { return {mine}; }
std::span<Activity> processes_activities(Processes&) { return {}; }
std::unique_ptr<Transport> transport_create(World&, Context&, Ranks, Comm&) { return nullptr; }
int64_t reduction_workspace(int64_t, int) { return 0; }
int choose_device(World&) { return -1; }

}  // namespace llmc
