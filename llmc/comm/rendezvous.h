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
    std::string job;       // number of the job; rank 0 refuses processes of another job
    double seconds = 300;  // how long to wait for all others
    double patience = 5;   // how long a connection has to say who it is; who comes has something to say
};

// The settings that the launcher put into the environment, or nothing if there is no launcher. Read in this order:
//   RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT    as torchrun sets them
//   SLURM_PROCID, SLURM_STEP_NUM_TASKS            as srun does: the host is the first of SLURM_STEP_NODELIST, or
//                                                 SLURM_LAUNCH_NODE_IPADDR; the port follows from the job's number;
//                                                 MASTER_ADDR and MASTER_PORT set others
// MOT_START_TIMEOUT replaces the 300 seconds. InputError naming the variable if one is missing or invalid.
std::optional<Rendezvous> rendezvous_from_environment();

// The first host of Slurm's short form: "node03" of "node[03-05,9],login1".
std::string first_host(const std::string& hosts);

// Waits until all processes are connected, and sets rank, size and host ranks of `world`; processes whose hosts have
// the same name are on one host. RunError that names the processes that did not come in time, or says that rank 0 does
// not answer. Strangers, and connections that stall, use up nobody's time. Later, if a process ends without a report or
// cannot be reached, all of them end.
std::unique_ptr<Processes> tcp_processes_start(const Rendezvous& meeting, World& world);

}  // namespace llmc
