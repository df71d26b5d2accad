// What the files that call MPI share.
#pragma once
#define OMPI_SKIP_MPICXX  // the C++ bindings, which MPI has given up
#include <mpi.h>

#include "llmc/comm/backend.h"

namespace llmc {

struct Processes {
    World& world;
    MPI_Comm all = MPI_COMM_NULL;  // all ranks; apart from MPI_COMM_WORLD, where libraries may send
    MPI_Win shared = MPI_WIN_NULL;  // memory of the ranks on this host: `activities`, one for each
    std::span<Activity> activities{};
};

// RunError with the rank, what it did, and MPI's own words, if `status` is an error.
void check_mpi(int status, const char* what, const World& world);

}  // namespace llmc
