// What is chosen when linking: none.cpp; mpi_processes.cpp and mpi.cpp; mpi_processes.cpp and nccl.cpp.
#pragma once
#include "llmc/comm/comm.h"
#include "llmc/comm/watchdog.h"
#include "llmc/ops/context.h"

namespace llmc {

// ------------------------------------------------------------------------------------------------------ the processes
// Sets rank, size, local_rank, local_size of the world. InputError where this build cannot start any.
Processes* processes_start(World& world);
void processes_barrier(Processes& processes);
void processes_broadcast(void* bytes, int64_t count, int root, Processes& processes);
std::vector<std::string> processes_all_gather(const std::string& mine, Processes& processes);
std::span<Activity> processes_activities(Processes& processes);  // of the ranks on this host, in memory that they share
[[noreturn]] void processes_abort(int exit_code, Processes* processes);

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
std::unique_ptr<Transport> transport_create(World& world, Context& ctx, Ranks ranks, Comm& comm);

// Scratch that a sum of `bytes` over `size` ranks needs, all parts together.
int64_t reduction_workspace(int64_t bytes, int size);

}  // namespace llmc
