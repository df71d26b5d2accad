// COMM=none: a build that knows one process.
#include <cstdlib>

#include "llmc/comm/backend.h"

namespace llmc {

// A launcher that starts a single process may do so.
std::unique_ptr<Processes> mpi_processes_start(World&) {
    for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
        const char* size = std::getenv(variable);
        if (size && std::atoi(size) > 1)
            input_error("this is one of ", size, " processes, but the program was built without MPI: install "
                        "libopenmpi-dev and build again, or start it without a launcher");
    }
    return nullptr;
}

bool transport_needs_mpi() { return true; }
std::unique_ptr<Transport> transport_create(World&, Context&, Ranks, Comm&) { return nullptr; }
int64_t reduction_workspace(int64_t, int) { return 0; }
int choose_device(World&) { return -1; }

}  // namespace llmc
