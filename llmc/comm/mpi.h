// What the files that call MPI share.
#pragma once
#define OMPI_SKIP_MPICXX  // the C++ bindings, which MPI has given up
#include <mpi.h>

#include "llmc/comm/backend.h"

namespace llmc {

// All ranks of a world that MPI started; apart from MPI_COMM_WORLD, where libraries may send. RunError if it did not.
MPI_Comm mpi_comm(const World& world);

// RunError with the rank, what it did, and MPI's own words, if `status` is an error.
void check_mpi(int status, const char* what, const World& world);

}  // namespace llmc
