// NCCL for the emulator, put in at link time. One rank: all collectives are copies. More, where the build has MPI (the
// Makefile says EMU_MPI): every rank is a process with an emulated GPU of its own, and MPI carries the bytes. What is
// real are the rules: arguments are checked, work goes through the stream, a group does nothing before it ends, and a
// send meets its receive only inside a group.
#if __has_include(<nccl.h>)  // NCCL comes apart from the toolkit; without it nothing can call this
#include <limits.h>
#include <nccl.h>

#include <cstring>
#include <functional>
#include <vector>

#include "dev/emu/nccl_mpi.h"
#include "dev/emu/stream.h"

struct ncclComm {
    int rank, ranks;
    emu::Peers peers;  // with more than one rank
};

namespace {

using emu::Collective;

// Between ncclGroupStart and ncclGroupEnd: what ncclGroupEnd will enqueue, and sends that wait for their receives.
struct Message {
    void* data;
    size_t bytes;
    int peer;
    ncclComm_t comm;
    cudaStream_t stream;
};
struct Group {
    int depth = 0;
    std::vector<std::function<ncclResult_t()>> calls;
    std::vector<Message> sends, receives;
} group;

size_t size_of(ncclDataType_t type) {
    switch (type) {
        case ncclInt8: case ncclUint8: case ncclFloat8e4m3: case ncclFloat8e5m2: return 1;
        case ncclFloat16: case ncclBfloat16: return 2;
        case ncclInt32: case ncclUint32: case ncclFloat32: return 4;
        case ncclInt64: case ncclUint64: case ncclFloat64: return 8;
        default: return 0;
    }
}

ncclResult_t enqueue(cudaStream_t stream, std::function<void()> work) {
    return emu::post(stream, std::move(work)) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t enqueue_copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
    return enqueue(stream, [=] { if (to != from) memcpy(to, from, bytes); });
}

// What is sent and received may be the same memory where NCCL says so, else they lie apart.
bool alias_allowed(Collective kind, const char* from, size_t sent, const char* to, size_t received, int rank) {
    if (kind == Collective::reduce_scatter && to == from + size_t(rank) * received) return true;
    if (kind == Collective::all_gather && from == to + size_t(rank) * sent) return true;
    if (kind != Collective::reduce_scatter && kind != Collective::all_gather && from == to) return true;
    return from + sent <= to || to + received <= from;
}

// `count`: elements of the shorter side, a rank's own part in a reduce_scatter and in an all_gather.
ncclResult_t collective(Collective kind, const void* send, void* receive, size_t count, ncclDataType_t type, int root,
                        ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
    const size_t bytes = count * size_of(type);
    if (!comm || size_of(type) == 0 || op < 0 || op >= ncclNumOps || root < 0 || root >= comm->ranks)
        return ncclInvalidArgument;
    if (count > 0 && (!send || !receive)) return ncclInvalidArgument;
    const size_t ranks = size_t(comm->ranks), sent = kind == Collective::reduce_scatter ? bytes * ranks : bytes;
    const size_t received = kind == Collective::all_gather ? bytes * ranks : bytes;
    if (!alias_allowed(kind, static_cast<const char*>(send), sent, static_cast<const char*>(receive), received,
                       comm->rank))
        return ncclInvalidUsage;
    const bool reduces = kind != Collective::all_gather && kind != Collective::broadcast;
    if (ranks > 1 && (count > INT_MAX || (reduces && !emu::can_reduce(type)))) return ncclInvalidUsage;  // not emulated
    auto call = [=] {
        if (ranks == 1) return enqueue_copy(receive, send, bytes, stream);
        return enqueue(stream, [=] { emu::carry_out(kind, send, receive, count, type, root, op, comm->peers); });
    };
    if (group.depth == 0) return call();
    group.calls.push_back(call);
    return ncclSuccess;
}

ncclResult_t message(std::vector<Message>& list, void* data, size_t count, ncclDataType_t type, int peer,
                     ncclComm_t comm, cudaStream_t stream) {
    if (!comm || size_of(type) == 0 || peer < 0 || peer >= comm->ranks || (count > 0 && !data))
        return ncclInvalidArgument;
    // Alone, one waits for itself, and NCCL would hang; to another rank it is a group of its own, not emulated.
    if (group.depth == 0) return ncclInvalidUsage;
    list.push_back({data, count * size_of(type), peer, comm, stream});
    return ncclSuccess;
}

// The i-th send of a group meets its i-th receive.
ncclResult_t deliver_to_oneself(const std::vector<Message>& sends, const std::vector<Message>& receives) {
    if (sends.size() != receives.size()) return ncclInvalidUsage;
    for (size_t i = 0; i < sends.size(); i++) {
        const Message &from = sends[i], &to = receives[i];
        if (from.bytes != to.bytes || from.comm != to.comm || from.stream != to.stream) return ncclInvalidUsage;
        if (const ncclResult_t result = enqueue_copy(to.data, from.data, to.bytes, to.stream)) return result;
    }
    return ncclSuccess;
}

ncclResult_t deliver(const std::vector<Message>& sends, const std::vector<Message>& receives) {
    if (sends.empty() && receives.empty()) return ncclSuccess;
    const Message& first = sends.empty() ? receives[0] : sends[0];
    if (first.comm->ranks == 1) return deliver_to_oneself(sends, receives);
    std::vector<emu::Letter> out, in;
    for (auto* list : {&sends, &receives})
        for (const Message& m : *list) {
            if (m.comm != first.comm || m.stream != first.stream || m.bytes > INT_MAX)
                return ncclInvalidUsage;  // not emulated
            (list == &sends ? out : in).push_back({m.data, m.bytes, m.peer});
        }
    return enqueue(first.stream, [=, peers = first.comm->peers] { emu::exchange(out, in, peers); });
}

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
    switch (result) {
        case ncclSuccess: return "no error";
        case ncclUnhandledCudaError: return "unhandled cuda error";
        case ncclInvalidArgument: return "invalid argument";
        case ncclInvalidUsage: return "invalid usage";
        default: return "another ncclResult_t";
    }
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    memset(id, 0, sizeof *id);
    emu::invite(id->internal);
    return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
    if (!comm || rank < 0 || rank >= ranks) return ncclInvalidArgument;
    emu::Peers peers{};
    if (ranks > 1 && !emu::join(id.internal, ranks, rank, peers)) return ncclInvalidUsage;
    *comm = new ncclComm{rank, ranks, peers};
    return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (comm && comm->ranks > 1) emu::leave(comm->peers);
    delete comm;
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {  // waits for nobody
    delete comm;
    return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
    if (!comm || !error) return ncclInvalidArgument;
    *error = ncclSuccess;
    return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t comm, int* ranks) {
    if (!comm) return ncclInvalidArgument;
    *ranks = comm->ranks;
    return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) {
    if (!comm) return ncclInvalidArgument;
    *rank = comm->rank;
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
    return collective(Collective::all_reduce, send, receive, count, type, 0, op, comm, stream);
}
ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
    return collective(Collective::reduce_scatter, send, receive, count, type, 0, op, comm, stream);
}
ncclResult_t ncclReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, cudaStream_t stream) {
    return collective(Collective::reduce, send, receive, count, type, root, op, comm, stream);
}
ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
    return collective(Collective::all_gather, send, receive, count, type, 0, ncclSum, comm, stream);
}
ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
    return collective(Collective::broadcast, send, receive, count, type, root, ncclSum, comm, stream);
}

ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return message(group.sends, const_cast<void*>(data), count, type, peer, comm, stream);
}
ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
    return message(group.receives, data, count, type, peer, comm, stream);
}

ncclResult_t ncclGroupStart() {
    group.depth++;
    return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
    if (group.depth == 0) return ncclInvalidUsage;
    if (--group.depth > 0) return ncclSuccess;
    Group done;
    std::swap(done, group);
    for (auto& call : done.calls)
        if (const ncclResult_t result = call()) return result;
    return deliver(done.sends, done.receives);
}

}  // extern "C"
#endif
