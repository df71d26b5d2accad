#include "llmc/comm/rendezvous.h"

#include <cstdlib>

#include "llmc/base/errors.h"
#include "llmc/base/rng.h"

namespace llmc {

namespace {

std::string variable(const char* name) {
    const char* value = std::getenv(name);
    return value ? value : "";
}

int64_t number(const char* name, int64_t least, int64_t most) {
    const std::string text = variable(name);
    if (text.empty()) input_error("the launcher did not set ", name, ", which the processes need to find each other");
    char* end = nullptr;
    const long long value = std::strtoll(text.c_str(), &end, 10);
    if (*end || value < least || value > most)
        input_error(name, "=", text, " is not a number from ", least, " to ", most);
    return value;
}

// Below the range of ports that Linux gives to clients; different jobs get different ports.
int port_of(const std::string& job) {
    constexpr int first_port = 20000, ports = 10000;
    return first_port + int(hash_of(job) % ports);
}

Rendezvous of_torchrun() {
    Rendezvous r;
    r.size = int(number("WORLD_SIZE", 1, 1 << 20));
    r.rank = int(number("RANK", 0, r.size - 1));
    r.host = variable("MASTER_ADDR");
    if (r.size > 1 && r.host.empty())
        input_error("RANK and WORLD_SIZE are set, but not MASTER_ADDR, the host of rank 0");
    r.job = "torchrun " + variable("TORCHELASTIC_RUN_ID");
    if (r.size == 1) return r;
    r.port = int(number("MASTER_PORT", 1, 65535));
    // torchrun itself listens on the port that it tells its processes, unless it says otherwise.
    if (variable("TORCHELASTIC_USE_AGENT_STORE") == "True") r.port = port_of(str(r.job, " ", r.port));
    return r;
}

// Only srun's own variables: SLURM_NTASKS and SLURM_PROCID are also seen by a batch script and by what it runs alone.
Rendezvous of_srun() {
    Rendezvous r;
    r.size = int(number("SLURM_STEP_NUM_TASKS", 1, 1 << 20));
    if (r.size == 1) return r;
    r.rank = int(number("SLURM_PROCID", 0, r.size - 1));
    r.job = "slurm " + variable("SLURM_JOB_ID") + "." + variable("SLURM_STEP_ID");
    r.host = variable("MASTER_ADDR");
    if (r.host.empty()) r.host = first_host(variable("SLURM_STEP_NODELIST"));
    if (r.host.empty()) r.host = variable("SLURM_LAUNCH_NODE_IPADDR");
    if (r.host.empty()) input_error("srun did not set SLURM_STEP_NODELIST: set MASTER_ADDR to the host of rank 0");
    r.port = variable("MASTER_PORT").empty() ? port_of(r.job) : int(number("MASTER_PORT", 1, 65535));
    return r;
}

}  // namespace

std::optional<Rendezvous> rendezvous_from_environment() {
    Rendezvous r;
    if (!variable("RANK").empty() && !variable("WORLD_SIZE").empty()) r = of_torchrun();
    else if (!variable("SLURM_STEP_NUM_TASKS").empty()) r = of_srun();
    if (r.size == 1) return std::nullopt;
    if (!variable("MOT_START_TIMEOUT").empty()) r.seconds = double(number("MOT_START_TIMEOUT", 1, 86400));
    return r;
}

std::string first_host(const std::string& hosts) {
    std::string host;
    for (size_t i = 0; i < hosts.size() && hosts[i] != ','; i++) {
        if (hosts[i] != '[') {
            host += hosts[i];
            continue;
        }
        while (++i < hosts.size() && std::string("-,]").find(hosts[i]) == std::string::npos) host += hosts[i];
        i = std::min(hosts.find(']', i), hosts.size());
    }
    return host;
}

}  // namespace llmc
