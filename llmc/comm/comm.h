// Many processes: World, the processes of a run, and Comm, collectives on their tensors.
//
// One process per device (or per share of a CPU), all started by one launcher: mpirun or srun --mpi=pmix, where MPI
// introduces them, or plain srun or torchrun, where they meet by TCP (rendezvous.h). Without a launcher there is one
// rank and nothing is started. How the bytes of tensors travel is chosen when linking (COMM=none, mpi or nccl).
//
// All ranks of a Comm call the same collectives with the same shapes in the same order; nobody checks that, but whoever
// waits too long ends the job (World::set_timeout). Results are the same bits on all ranks and in every run with the
// same number of ranks: sums are taken in the order of the ranks, or in the order that NCCL has chosen for the size.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "llmc/base/tensor.h"

namespace llmc {

struct Context;
struct Event;
class Watchdog;
class Processes;
struct Rendezvous;

// ------------------------------------------------------------------------------------------------------ the processes
// Made once, first thing in main. While it lives, other ranks depend on this one: who cannot go on calls abort.
//
// A watchdog ends the job when a collective takes too long, because a rank hangs or has gone another way: it prints who
// waits in what, and what the other ranks of this host do, and ends its own process. The launcher then ends all others,
// as it does when a rank dies. If the launcher dies, the ranks end themselves.
class World {
public:
    // Starts MPI, or meets the others by TCP, if a launcher did start this process. InputError if it did and that is
    // impossible: no MPI in this build, or no MPI under this launcher while tensors of the CPU need it.
    World();
    explicit World(const Rendezvous& meeting);  // by TCP
    ~World();
    World(const World&) = delete;
    World& operator=(const World&) = delete;

    // The rank-th of `size` ranks that do not exist: for plans, and for tests of who owns what. Talks to nobody: the
    // functions below do nothing, and collectives on tensors can only be counted.
    static World pretend(int size, int rank) { return World(size, rank); }

    int rank = 0, size = 1;
    int local_rank = 0, local_size = 1;  // among the ranks on this host
    std::string host;

    // On the host's memory, by all ranks. RunError if MPI fails.
    void barrier();
    void broadcast(void* bytes, int64_t count, int root = 0);
    std::vector<std::string> all_gather(const std::string& mine);  // of any lengths; [size]
    bool all_equal(const std::string& mine);  // whether all ranks gave the same; the same answer everywhere

    // Ends all ranks: prints "rank 3 (host): reason" and lets the launcher kill the others. Where all ranks fail alike
    // (bad flags), only one of them speaks.
    [[noreturn]] void abort(const std::string& reason, int exit_code = 1);

    // How long this rank may be in one collective. It includes waiting for a rank that still computes, or saves.
    void set_timeout(double seconds);  // 600 at first

    // For Comm and what carries out its collectives.
    Processes* processes() const { return started.get(); }  // nullptr: one rank, or pretended
    Watchdog* watchdog() const { return guard.get(); }      // nullptr: nobody to wait for

private:
    World(int pretended_size, int pretended_rank);
    void watch();
    std::unique_ptr<Processes> started;
    std::unique_ptr<Watchdog> guard;  // reads memory that the processes share: after them, so that it goes first
};

// A sentence if the ranks of this host want more threads than there are CPUs that they may use, else nothing. Called by
// all ranks, each with its own number. mpirun binds processes to cores: a rank bound to one runs many threads slowly.
std::string thread_warning(World& world, int threads);

// The GPU of this rank, for ContextOptions::device: the ranks of a host take one each, in order. -1: this build is for
// the CPU, or there is one process. Called by all ranks. InputError if there are too few, or two ranks got the same.
int choose_device(World& world);

// -------------------------------------------------------------------------------------------------- their collectives
// Some of the ranks: first, first + stride, ... (count of them). E.g. with 8 ranks and experts divided over 4:
// {rank / 4 * 4, 1, 4} hold one copy of all experts, {rank % 4, 4, 2} hold the same experts.
struct Ranks {
    int first = 0, stride = 1, count = 0;  // count 0: all
};

// What all calls of one collective moved. `wire` is what each rank must send at least, on average, by the formulae of
// rings: with W ranks and n bytes of the whole tensor, all_reduce 2 (W-1)/W n, the others (W-1)/W n.
struct CommCost {
    int64_t calls = 0, bytes = 0, wire = 0;
    void add(const CommCost& o, int64_t times) {
        calls += times * o.calls, bytes += times * o.bytes, wire += times * o.wire;
    }
};

class Transport;

class Comm {
public:
    // Made by all ranks of the world at once, each with the Ranks it is one of. RunError if it is none of them.
    Comm(World& world, Context& ctx, Ranks ranks = {});
    ~Comm();
    Comm(const Comm&) = delete;
    Comm& operator=(const Comm&) = delete;

    int rank, size;  // in this Comm
    Ranks ranks;     // its ranks in the world

    // Contiguous tensors of any shape and equal dtype; n is a number of elements and may be 0. Sums are of f32 or f64,
    // the others move bytes of any dtype. RunError with tensor and sizes if they do not fit together.
    void broadcast(Tensor t, int root = 0);
    void all_reduce(Tensor t);                   // t [n] = sum over ranks, in place
    void reduce_scatter(Tensor out, Tensor in);  // out [n] = my part of the sum of in [size*n]; may lie in its place
    void all_gather(Tensor out, Tensor in);      // out [size*n] = all in [n], by rank; in may lie in its place
    void all_to_all(Tensor out, Tensor in);      // part r of out [size*n] = rank r's part `rank` of in [size*n]

    // Rows of matrices [.., n], as many to each rank as the host says: the first rows of out are the receive[0] from
    // rank 0, then those from rank 1, and so on; those of in are the send[0] to rank 0, ... Rows behind them are left
    // alone. `wire` counts what this rank sends. While counting, every rank gets an equal share of the rows of in or
    // out, whichever has fewer.
    void all_to_all_rows(Tensor out, Tensor in, const std::vector<int64_t>& receive, const std::vector<int64_t>& send);

    // A GPU communicates beside its computation; these order the two. On the CPU, a collective that returns is over.
    // A Graph with collectives in it begins with the first and ends with the second.
    void after_compute();   // collectives from here on wait for what has been computed so far
    void before_compute();  // ops from here on, and downloads, wait for all collectives so far
    // The same for the collectives up to a point, while later ones go on: mark(i) is the point, before_compute(i)
    // waits.
    static constexpr int marks = 4;
    void mark(int i);
    void before_compute(int i);

    std::map<std::string, CommCost> costs;  // by collective, also while counting, when nothing is sent
    int64_t received = 0;  // bytes that really came from other ranks (COMM=mpi); over all ranks, as many as `wire`
    int64_t largest_message = int64_t(1) << 30;  // elements; more are split

private:
    World& world;
    Context& ctx;
    std::unique_ptr<Transport> transport;  // nullptr: one rank, counting, or pretended
    void write_down(Event event);  // with the ranks of this Comm
    template <class Send>
    void run(const char* name, Tensor whole, int64_t passes, int64_t scratch, Tensor out, Tensor in, const Send& send);
};

}  // namespace llmc
