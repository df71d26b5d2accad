// Helpers of the files that call MPI.
#pragma once
#define OMPI_SKIP_MPICXX  // the C++ bindings, which MPI no longer has
#include <mpi.h>

#include "llmc/comm/backend.h"

namespace llmc {

// The communicator of all ranks of `world`. It is not MPI_COMM_WORLD, where other libraries may send. RunError if MPI
// did not start the world.
MPI_Comm mpi_comm(const World& world);

// RunError with rank, `what` and MPI's message if `status` is an error.
void check_mpi(int status, const char* what, const World& world);

}  // namespace llmc
