// NCCL for the emulator, put in at link time. One rank: all collectives are copies. More: every rank is a process with
// an emulated GPU of its own, and sockets carry the bytes (nccl_peers.h). What is real are the rules: arguments are
// checked, work goes through the stream, a group does nothing before it ends, a send meets its receive only inside a
// group, and a collective that lost a rank never ends, which only ncclCommGetAsyncError tells.
#include <nccl.h>

#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "dev/emu/nccl_peers.h"
#include "dev/emu/stream.h"

struct ncclComm {
    int rank, ranks;
    std::shared_ptr<emu::Peers> peers;  // with more than one rank; recorded graphs have them too
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
    if (ranks > 1 && reduces && !emu::can_reduce(type)) return ncclInvalidUsage;  // not emulated
    auto call = [=, peers = comm->peers] {
        if (!peers) return enqueue_copy(receive, send, bytes, stream);
        return enqueue(stream, [=] { emu::carry_out(kind, send, receive, bytes, type, root, op, *peers); });
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

// The i-th send of a group to oneself meets its i-th receive.
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
    std::vector<Message> own[2], others;
    std::vector<emu::Letter> letters[2];
    for (int way : {0, 1})
        for (const Message& m : way == 0 ? sends : receives) {
            if (m.peer == m.comm->rank) {
                own[way].push_back(m);
                continue;
            }
            others.push_back(m);
            letters[way].push_back({m.data, m.bytes, m.peer});
            if (m.comm != others[0].comm || m.stream != others[0].stream) return ncclInvalidUsage;  // not emulated
        }
    if (const ncclResult_t result = deliver_to_oneself(own[0], own[1]); result || others.empty()) return result;
    return enqueue(others[0].stream, [peers = others[0].comm->peers, out = letters[0], in = letters[1]] {
        peers->exchange(out, in);
    });
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
        case ncclSystemError: return "unhandled system error";
        case ncclRemoteError: return "remote process exited or there was a network error";
        default: return "another ncclResult_t";
    }
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    memset(id, 0, sizeof *id);
    emu::random_name().copy(id->internal, sizeof id->internal - 1);
    return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
    if (!comm || rank < 0 || rank >= ranks) return ncclInvalidArgument;
    const auto peers = ranks > 1 ? emu::Peers::meet(id.internal, ranks, rank) : nullptr;
    if (ranks > 1 && !peers) return ncclSystemError;
    *comm = new ncclComm{rank, ranks, peers};
    return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    delete comm;
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {  // waits for nobody, and ends what does
    if (comm && comm->peers) comm->peers->abort();
    delete comm;
    return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
    if (!comm || !error) return ncclInvalidArgument;
    *error = comm->peers ? comm->peers->error() : ncclSuccess;
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
