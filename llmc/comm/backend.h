// How processes find each other, and how their tensors travel. Chosen when linking: none.cpp; mpi_processes.cpp and
// mpi.cpp; mpi_processes.cpp and nccl.cpp. tcp_processes.cpp is always there.
#pragma once
#include "llmc/comm/comm.h"
#include "llmc/comm/watchdog.h"
#include "llmc/ops/context.h"

namespace llmc {

// ------------------------------------------------------------------------------------------------------ the processes
// What World asks of those who found each other, by MPI or by TCP (rendezvous.h).
class Processes {
public:
    virtual ~Processes() = default;
    virtual void barrier() = 0;
    virtual void broadcast(void* bytes, int64_t count, int root) = 0;
    virtual std::vector<std::string> all_gather(const std::string& mine) = 0;
    virtual std::span<Activity> activities() = 0;  // of this rank, and of others on its host if memory is shared
    // For the watchdog: which rank is gone, nothing if none is. Does not return if another rank, which has said why,
    // ends all of them.
    virtual std::string problem() { return ""; }
    [[noreturn]] virtual void abort(int exit_code) = 0;
};

// Under a launcher that MPI understands. Sets rank, size, local_rank, local_size of the world; may return nothing for a
// single process. InputError where this build cannot start any.
std::unique_ptr<Processes> mpi_processes_start(World& world);

// ------------------------------------------------------------------------------------------------------- on tensors
// Carries out what Comm has checked: contiguous tensors that are not empty, between at least two ranks, inside an Op.
class Transport {
public:
    virtual ~Transport() = default;
    virtual void broadcast(Tensor t, int root) = 0;
    virtual void all_reduce(Tensor t, void* workspace) = 0;
    virtual void reduce_scatter(Tensor out, Tensor in, void* workspace) = 0;
    virtual void all_gather(Tensor out, Tensor in) = 0;
    virtual void all_to_all(Tensor out, Tensor in) = 0;
    // Elements from and to each rank, one after another.
    virtual void all_to_all_uneven(Tensor out, Tensor in, const std::vector<int64_t>& receive,
                                   const std::vector<int64_t>& send) = 0;
    virtual void after_compute() {}
    virtual void before_compute() {}
    virtual void mark(int) {}
    virtual void before_compute(int) {}
};
bool transport_needs_mpi();  // or works with any Processes
std::unique_ptr<Transport> transport_create(World& world, Context& ctx, Ranks ranks, Comm& comm);

// Scratch that a sum of `bytes` over `size` ranks needs, all parts together.
int64_t reduction_workspace(int64_t bytes, int size);

}  // namespace llmc
