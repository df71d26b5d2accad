// Errors of MPI end the job: that is its default.
#if __has_include(<nccl.h>)
#include "dev/emu/nccl_mpi.h"

#ifdef EMU_MPI
#include <algorithm>
#include <cstring>

namespace emu {
namespace {

struct Invitation {
    int host = 0, number = 0;  // rank in MPI_COMM_WORLD, and which of its invitations
};

bool mpi_runs() {
    int started = 0, over = 0;
    MPI_Initialized(&started), MPI_Finalized(&over);
    return started && !over;
}

struct Element {
    MPI_Datatype type;
    bool sums;
};
Element element(ncclDataType_t type) {
    switch (type) {
        case ncclFloat32: return {MPI_FLOAT, true};
        case ncclFloat64: return {MPI_DOUBLE, true};
        case ncclInt32: return {MPI_INT32_T, true};
        case ncclInt64: return {MPI_INT64_T, true};
        case ncclUint32: return {MPI_UINT32_T, true};
        case ncclUint64: return {MPI_UINT64_T, true};
        case ncclFloat16: case ncclBfloat16: return {MPI_UINT16_T, false};
        default: return {MPI_UINT8_T, false};
    }
}

MPI_Op operation(ncclRedOp_t op) {
    return op == ncclProd ? MPI_PROD : op == ncclMax ? MPI_MAX : op == ncclMin ? MPI_MIN : MPI_SUM;
}

void divide(void* data, size_t count, ncclDataType_t type, int by) {
    for (size_t i = 0; i < count; i++) {
        if (type == ncclFloat32) static_cast<float*>(data)[i] /= float(by);
        else if (type == ncclFloat64) static_cast<double*>(data)[i] /= by;
        else if (type == ncclInt32) static_cast<int*>(data)[i] /= by;
    }
}

}  // namespace

void invite(char* id) {
    static int invitations = 0;
    if (!mpi_runs()) return;
    Invitation mine{0, invitations++};
    MPI_Comm_rank(MPI_COMM_WORLD, &mine.host);
    memcpy(id, &mine, sizeof mine);
}

// Everyone tells the host its two ranks, and the host tells everyone who they are.
bool join(const char* id, int ranks, int rank, Peers& peers) {
    if (!mpi_runs()) return false;
    Invitation invitation;
    memcpy(&invitation, id, sizeof invitation);
    const int tag = 1 + invitation.number % 30000;
    int mine[2] = {rank, 0};
    MPI_Comm_rank(MPI_COMM_WORLD, &mine[1]);
    std::vector<int> members(static_cast<size_t>(ranks));
    if (mine[1] == invitation.host) {
        members[size_t(rank)] = mine[1];
        for (int i = 1; i < ranks; i++) {
            int other[2];
            MPI_Recv(other, 2, MPI_INT, MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            members[size_t(other[0])] = other[1];
        }
        for (int member : members)
            if (member != mine[1]) MPI_Send(members.data(), ranks, MPI_INT, member, tag, MPI_COMM_WORLD);
    } else {
        MPI_Send(mine, 2, MPI_INT, invitation.host, tag, MPI_COMM_WORLD);
        MPI_Recv(members.data(), ranks, MPI_INT, invitation.host, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    MPI_Group all, group;
    MPI_Comm_group(MPI_COMM_WORLD, &all);
    MPI_Group_incl(all, ranks, members.data(), &group);
    MPI_Comm_create_group(MPI_COMM_WORLD, group, tag, &peers.comm);
    MPI_Group_free(&group), MPI_Group_free(&all);
    return true;
}

void leave(Peers& peers) {
    if (mpi_runs()) MPI_Comm_free(&peers.comm);
}

bool can_reduce(ncclDataType_t type) { return element(type).sums; }

void carry_out(Collective kind, const void* send, void* receive, size_t count, ncclDataType_t type, int root,
               ncclRedOp_t op, const Peers& peers) {
    int ranks = 0, rank = 0, size = 0;
    MPI_Comm_size(peers.comm, &ranks), MPI_Comm_rank(peers.comm, &rank);
    const MPI_Datatype t = element(type).type;
    MPI_Type_size(t, &size);
    // A result of its own, as what is sent and received may be the same memory.
    const size_t bytes = count * size_t(size) * (kind == Collective::all_gather ? size_t(ranks) : 1);
    std::vector<char> result(bytes);
    const int n = int(count);
    bool receives = true;
    switch (kind) {
        case Collective::all_reduce: MPI_Allreduce(send, result.data(), n, t, operation(op), peers.comm); break;
        case Collective::reduce:
            MPI_Reduce(send, result.data(), n, t, operation(op), root, peers.comm);
            receives = rank == root;
            break;
        case Collective::reduce_scatter:
            MPI_Reduce_scatter_block(send, result.data(), n, t, operation(op), peers.comm);
            break;
        case Collective::all_gather: MPI_Allgather(send, n, t, result.data(), n, t, peers.comm); break;
        case Collective::broadcast:
            if (rank == root && bytes > 0) memcpy(result.data(), send, bytes);
            MPI_Bcast(result.data(), n, t, root, peers.comm);
            break;
    }
    const bool reduces = kind != Collective::all_gather && kind != Collective::broadcast;
    if (reduces && op == ncclAvg) divide(result.data(), count, type, ranks);
    if (receives && bytes > 0) memcpy(receive, result.data(), bytes);
}

void exchange(const std::vector<Letter>& out, const std::vector<Letter>& in, const Peers& peers) {
    std::vector<MPI_Request> requests(out.size() + in.size());
    size_t i = 0;
    for (const Letter& l : in) MPI_Irecv(l.data, int(l.bytes), MPI_BYTE, l.peer, 0, peers.comm, &requests[i++]);
    for (const Letter& l : out) MPI_Isend(l.data, int(l.bytes), MPI_BYTE, l.peer, 0, peers.comm, &requests[i++]);
    MPI_Waitall(int(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
}

}  // namespace emu

#else
namespace emu {

void invite(char*) {}
bool join(const char*, int, int, Peers&) { return false; }
void leave(Peers&) {}
bool can_reduce(ncclDataType_t) { return false; }
void carry_out(Collective, const void*, void*, size_t, ncclDataType_t, int, ncclRedOp_t, const Peers&) {}
void exchange(const std::vector<Letter>&, const std::vector<Letter>&, const Peers&) {}

}  // namespace emu
#endif
#endif
