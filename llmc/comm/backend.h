// The two interfaces behind World and Comm: Processes (small messages, failures) and Transport (collectives on
// tensors). The implementation is chosen at link time (COMM=none, mpi, nccl): none.cpp; mpi_processes.cpp with mpi.cpp;
// mpi_processes.cpp with nccl.cpp. tcp_processes.cpp is always linked.
#pragma once
#include "llmc/comm/comm.h"
#include "llmc/comm/watchdog.h"
#include "llmc/ops/context.h"

namespace llmc {

// ------------------------------------------------------------------------------------------------------ the processes
// The processes of a run, connected by MPI or by TCP (rendezvous.h). World calls these functions; all ranks make the
// same calls in the same order. RunError if the connection fails.
class Processes {
public:
    virtual ~Processes() = default;
    virtual void barrier() = 0;  // returns when all ranks have called it
    // Copies `count` bytes in host memory from rank `root` to all ranks.
    virtual void broadcast(void* bytes, int64_t count, int root) = 0;
    virtual std::vector<std::string> all_gather(const std::string& mine) = 0;  // the strings of all ranks, by rank
    // What this rank and, if they share memory, the other ranks of its host are doing.
    virtual std::span<Activity> activities() = 0;
    // For the watchdog: a sentence that names a lost rank, or "" if there is none. If another rank has reported an
    // error and ends the run, this ends the process and does not return.
    virtual std::string problem() { return ""; }
    [[noreturn]] virtual void abort(int exit_code) = 0;  // ends all ranks
};

// Starts MPI and sets rank, size, local_rank and local_size of `world`. May return nullptr for a single process.
// InputError if the launcher started several processes and this build or its MPI cannot connect them.
std::unique_ptr<Processes> mpi_processes_start(World& world);

// ------------------------------------------------------------------------------------------------------- on tensors
// The collectives on tensors. Comm has checked the arguments: tensors are contiguous and not empty, there are at least
// two ranks, and the call is inside an Op. Shapes and meanings are those of Comm. `workspace` has
// reduction_workspace(...) bytes.
class Transport {
public:
    virtual ~Transport() = default;
    virtual void broadcast(Tensor t, int root) = 0;
    virtual void all_reduce(Tensor t, void* workspace) = 0;
    virtual void reduce_scatter(Tensor out, Tensor in, void* workspace) = 0;
    virtual void all_gather(Tensor out, Tensor in) = 0;
    virtual void all_to_all(Tensor out, Tensor in) = 0;
    // all_to_all with any sizes: receive[r] elements from rank r and send[r] to rank r, stored in the order of the
    // ranks.
    virtual void all_to_all_uneven(Tensor out, Tensor in, const std::vector<int64_t>& receive,
                                   const std::vector<int64_t>& send) = 0;
    // Order of collectives and ops on a GPU, see Comm. On the CPU a collective has finished when it returns.
    virtual void after_compute() {}
    virtual void before_compute() {}
    virtual void mark(int) {}
    virtual void before_compute(int) {}
};
// True if the linked transport needs processes that MPI started; false if any Processes will do.
bool transport_needs_mpi();
// The transport of `comm` among `ranks`; called by all ranks of the world. nullptr in a build without one.
std::unique_ptr<Transport> transport_create(World& world, Context& ctx, Ranks ranks, Comm& comm);

// Bytes of workspace for a sum over `size` ranks of a tensor of `bytes` bytes.
int64_t reduction_workspace(int64_t bytes, int size);

}  // namespace llmc
