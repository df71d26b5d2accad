// How the emulated NCCL reaches other ranks: by MPI. Without EMU_MPI there are none.
#pragma once
#include <nccl.h>

#include <cstddef>
#include <vector>

#ifdef EMU_MPI
#define OMPI_SKIP_MPICXX
#include <mpi.h>
#endif

namespace emu {

enum class Collective { all_reduce, reduce, reduce_scatter, all_gather, broadcast };

struct Peers {
#ifdef EMU_MPI
    MPI_Comm comm = MPI_COMM_NULL;
#endif
};
struct Letter {
    void* data;
    size_t bytes;
    int peer;
};

// A unique id says which process invites. False if the others cannot be reached: MPI is not there or was not started.
void invite(char* id);
bool join(const char* id, int ranks, int rank, Peers& peers);
void leave(Peers& peers);

bool can_reduce(ncclDataType_t type);
// As in `collective` of nccl.cpp; all ranks call it, between at least two.
void carry_out(Collective kind, const void* send, void* receive, size_t count, ncclDataType_t type, int root,
               ncclRedOp_t op, const Peers& peers);
void exchange(const std::vector<Letter>& out, const std::vector<Letter>& in, const Peers& peers);

}  // namespace emu
