// How the emulated NCCL reaches other ranks: all are processes of this machine, and every two share a Unix socket. It
// needs no MPI, so it serves every launcher.
#pragma once
#include <nccl.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace emu {

struct Letter {
    void* data;
    size_t bytes;
    int peer;
};

class Peers {
public:
    const int ranks, rank;

    // Waits until all that were told this name have come. Null, and a sentence on stderr, if one does not within
    // EMU_PATIENCE seconds.
    static std::shared_ptr<Peers> meet(const std::string& name, int ranks, int rank);
    ~Peers();
    Peers(const Peers&) = delete;
    Peers& operator=(const Peers&) = delete;

    // Sends and receives all of these; letters between two ranks arrive in the order in which they were sent. When a
    // peer is gone it waits for abort(), as a kernel of NCCL does, and then returns false.
    bool exchange(const std::vector<Letter>& out, const std::vector<Letter>& in);

    // Both may be called while another thread is in an exchange.
    ncclResult_t error() const { return lost ? ncclRemoteError : ncclSuccess; }
    void abort();

private:
    std::vector<int> sockets;  // by rank; -1: this one
    std::atomic<bool> lost = false, aborted = false;

    Peers(int ranks, int rank) : ranks(ranks), rank(rank), sockets(size_t(ranks), -1) {}
    bool call_lower(const std::string& name, double end);
    bool admit_higher(int listener, double end);
    bool miss(int peer) const;
    bool lose(int peer);
};

std::string random_name();  // that no other job has

// ------------------------------------------------------------------------- what is made of it, in nccl_collectives.cpp
enum class Collective { all_reduce, reduce, reduce_scatter, all_gather, broadcast };

bool can_reduce(ncclDataType_t type);
// As in `collective` of nccl.cpp, with the bytes of a rank's own part; all ranks call it.
void carry_out(Collective kind, const void* send, void* receive, size_t bytes, ncclDataType_t type, int root,
               ncclRedOp_t op, Peers& peers);

}  // namespace emu
