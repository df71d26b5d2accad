// How the processes of a run find each other without MPI: rank 0 listens at a TCP port, all others connect to it.
#pragma once
#include <memory>
#include <optional>
#include <string>

namespace llmc {

class Processes;
class World;

struct Rendezvous {
    int rank = 0, size = 1;
    std::string host;      // where rank 0 listens
    int port = 0;
    std::string job;       // processes that name another job are refused
    double seconds = 300;  // how long to wait for all others
};

// What the launcher has told this process, nothing if it was started alone. In this order:
//   RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT    as torchrun sets them
//   SLURM_PROCID, SLURM_STEP_NUM_TASKS            as srun does: the host is the first of SLURM_STEP_NODELIST, or
//                                                 SLURM_LAUNCH_NODE_IPADDR; the port is made from the job's number;
//                                                 MASTER_ADDR and MASTER_PORT choose others
// MOT_START_TIMEOUT replaces the 300 seconds. InputError, which names the variable, where one is missing or impossible.
std::optional<Rendezvous> rendezvous_from_environment();

// The first host of Slurm's short form: "node03" of "node[03-05,9],login1".
std::string first_host(const std::string& hosts);

// Waits until all have come and sets the world's ranks; those whose hosts have the same name are local to each other.
// RunError that says who did not come, or that rank 0 does not answer. While the processes live, one that ends without
// a word, or cannot be reached any more, ends all of them.
std::unique_ptr<Processes> tcp_processes_start(const Rendezvous& meeting, World& world);

}  // namespace llmc
