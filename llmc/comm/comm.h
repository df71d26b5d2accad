// Several processes: World is the processes of a run, and Comm does collectives on their tensors.
//
// There is one process per device (or per share of a CPU), and one launcher starts all of them. With mpirun or
// srun --mpi=pmix MPI connects them; with plain srun or torchrun they connect by TCP (rendezvous.h). Without a launcher
// there is one rank, and nothing is started. The transport of tensors is chosen at link time (COMM=none, mpi or nccl).
//
// All ranks of a Comm must call the same collectives with the same shapes in the same order. This is not checked, but a
// rank that waits too long ends the job (World::set_timeout). Results have the same bits on all ranks and in every run
// with the same number of ranks: sums are taken in the order of the ranks, or in the order that NCCL chooses for the
// size.
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
// Create one World at the beginning of main. From then on the other ranks depend on this one: a rank that cannot
// continue must call abort.
//
// A watchdog ends the job when a collective takes too long, because a rank hangs or called another collective. It
// prints which collective this rank is in and what the other ranks of this host do, and ends its own process. The
// launcher then ends all others, as it does when a rank dies. If the launcher dies, the ranks end themselves.
class World {
public:
    // Starts MPI, or connects by TCP, if a launcher started this process. InputError if the launcher did and this build
    // cannot connect the ranks: it has no MPI, or the launcher supports no MPI and tensors on CPUs need it.
    World();
    explicit World(const Rendezvous& meeting);  // connects by TCP
    ~World();
    World(const World&) = delete;
    World& operator=(const World&) = delete;

    // A simulated world: rank `rank` of `size` ranks that do not exist, for plans and for tests. The functions below do
    // nothing, and collectives on tensors can only be counted.
    static World pretend(int size, int rank) { return World(size, rank); }
    static World& alone();  // the world of a process that works by itself, whatever started it

    int rank = 0, size = 1;
    int local_rank = 0, local_size = 1;  // among the ranks on this host
    std::string host;

    // Collectives on small data in host memory, called by all ranks. RunError if the connection fails.
    void barrier();
    void broadcast(void* bytes, int64_t count, int root = 0);
    std::vector<std::string> all_gather(const std::string& mine);  // the strings of all ranks [size], of any lengths

    // Prints "rank 3 (host): reason" and ends all ranks with the launcher's help. If all ranks fail for the same reason
    // (bad flags), only one of them prints it.
    [[noreturn]] void abort(const std::string& reason, int exit_code = 1);

    // The longest time that a collective may take, including the wait for ranks that still compute or save. Default:
    // 600.
    void set_timeout(double seconds);

    // For Comm and Transport.
    Processes* processes() const { return started.get(); }  // nullptr: one rank, or simulated
    Watchdog* watchdog() const { return guard.get(); }      // nullptr if there is nobody to wait for

private:
    World(int pretended_size, int pretended_rank);
    void watch();
    std::unique_ptr<Processes> started;
    std::unique_ptr<Watchdog> guard;  // uses memory of `started`, so it is declared after it and destroyed before it
};

// A warning if the ranks of this host use more threads than the CPUs they may use, else "". Called by all ranks, each
// with its own number of threads. (mpirun binds processes to cores: many threads on one core are slow.)
std::string thread_warning(World& world, int threads);

// The number of the GPU for this rank, for ContextOptions::device: the ranks of a host get one each, in order. -1 in a
// build for the CPU and for a single process. Called by all ranks. InputError if there are too few GPUs or two ranks
// have the same.
int choose_device(World& world);

// -------------------------------------------------------------------------------------------------- their collectives
// A group of ranks: first, first + stride, ... (count of them). For example, with 8 ranks and experts divided over 4:
// {rank / 4 * 4, 1, 4} have all experts together, and {rank % 4, 4, 2} have the same experts.
struct Ranks {
    int first = 0, stride = 1, count = 0;  // count 0: all ranks
};

// What all calls of one collective moved: number of calls, bytes of tensors, and bytes on the wire, which is what each
// rank must send at least, on average, with ring algorithms: for W ranks and n bytes of the whole tensor, 2 (W-1)/W n
// for all_reduce and (W-1)/W n for the others.
struct CommCost {
    int64_t calls = 0, bytes = 0, wire = 0;
    void add(const CommCost& o, int64_t times) {
        calls += times * o.calls, bytes += times * o.bytes, wire += times * o.wire;
    }
};

class Transport;

class Comm {
public:
    // Called by all ranks of the world at the same time, each with a group that it belongs to. RunError otherwise.
    Comm(World& world, Context& ctx, Ranks ranks = {});
    ~Comm();
    Comm(const Comm&) = delete;
    Comm& operator=(const Comm&) = delete;

    int rank, size;  // this rank's number in the Comm, and the number of its ranks
    Ranks ranks;     // its ranks in the world

    // Tensors must be contiguous and of equal dtype; their shapes do not matter. n is a number of elements and may be
    // 0. Sums are of f32 or f64; the other collectives copy any dtype. RunError with tensor and sizes if these do not
    // match.
    void broadcast(Tensor t, int root = 0);
    void all_reduce(Tensor t);                   // t [n] = sum over ranks, in place
    // out [n] = this rank's part of the sum of in [size*n]; out may be that part of in
    void reduce_scatter(Tensor out, Tensor in);
    void all_gather(Tensor out, Tensor in);  // out [size*n] = in [n] of all ranks; in may be this rank's part of out
    void all_to_all(Tensor out, Tensor in);      // part r of out [size*n] = rank r's part `rank` of in [size*n]

    // All-to-all with different numbers of rows of matrices [.., n]; the host gives the numbers. The first receive[0]
    // rows of out come from rank 0, the next receive[1] from rank 1, and so on. The first send[0] rows of in go to rank
    // 0, and so on. Further rows are not touched. `wire` counts what this rank sends. While counting, every rank gets
    // an equal share of the rows of in or out, whichever has fewer.
    void all_to_all_rows(Tensor out, Tensor in, const std::vector<int64_t>& receive, const std::vector<int64_t>& send);

    // On a GPU, communication runs beside computation, and these functions order the two. On the CPU they do nothing,
    // because a collective has finished when it returns. A Graph that contains collectives must call after_compute
    // first and before_compute last.
    void after_compute();   // later collectives wait for all earlier ops
    void before_compute();  // later ops and downloads wait for all earlier collectives
    // The same for some collectives only: later ops wait for the collectives before mark(i), while those after it go
    // on.
    static constexpr int marks = 4;
    void mark(int i);
    void before_compute(int i);

    std::map<std::string, CommCost> costs;  // by name of the collective; also while counting, when nothing is sent
    // Bytes that really came from other ranks (COMM=mpi). The sum over all ranks equals the sum of their `wire`.
    int64_t received = 0;
    int64_t largest_message = int64_t(1) << 30;  // in elements; longer messages are split

private:
    World& world;
    Context& ctx;
    std::unique_ptr<Transport> transport;  // nullptr: one rank, counting, or simulated
    void write_down(Event event);  // with the ranks of this Comm
    template <class Send>
    void run(const char* name, Tensor whole, int64_t passes, int64_t scratch, Tensor out, Tensor in, const Send& send);
};

}  // namespace llmc
