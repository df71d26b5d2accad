// NCCL for the emulator, put in at link time: one rank, in this process. All collectives of one rank are copies; what
// is real are the rules: arguments are checked, work goes through the stream, a group does nothing before it ends, and
// a send meets its receive only inside a group.
#if __has_include(<nccl.h>)  // NCCL comes apart from the toolkit; without it nothing can call this
#include <nccl.h>

#include <cstring>
#include <functional>
#include <vector>

#include "dev/emu/stream.h"

struct ncclComm {
    int rank, ranks;
};

namespace {

// Between ncclGroupStart and ncclGroupEnd: what ncclGroupEnd will enqueue, and sends that wait for their receives.
struct Message {
    void* data;
    size_t bytes;
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

ncclResult_t enqueue_copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
    const cudaError_t status = emu::post(stream, [=] { if (to != from) memcpy(to, from, bytes); });
    return status == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

// A collective of one rank. Sum, product, extremes and mean of one number are that number.
ncclResult_t collective(const void* send, void* receive, size_t count, ncclDataType_t type, int root, ncclRedOp_t op,
                        ncclComm_t comm, cudaStream_t stream) {
    const size_t bytes = count * size_of(type);
    if (!comm || size_of(type) == 0 || op < 0 || op >= ncclNumOps || root != 0) return ncclInvalidArgument;
    if (count > 0 && (!send || !receive)) return ncclInvalidArgument;
    const char *from = static_cast<const char*>(send), *to = static_cast<const char*>(receive);
    if (from != to && from < to + bytes && to < from + bytes) return ncclInvalidUsage;  // in place, or apart
    auto call = [=] { return enqueue_copy(receive, send, bytes, stream); };
    if (group.depth == 0) return call();
    group.calls.push_back(call);
    return ncclSuccess;
}

ncclResult_t message(std::vector<Message>& list, void* data, size_t count, ncclDataType_t type, int peer,
                     ncclComm_t comm, cudaStream_t stream) {
    if (!comm || size_of(type) == 0 || peer != 0 || (count > 0 && !data)) return ncclInvalidArgument;
    if (group.depth == 0) return ncclInvalidUsage;  // a rank that waits for itself: NCCL would hang
    list.push_back({data, count * size_of(type), comm, stream});
    return ncclSuccess;
}

// The i-th send of a group meets its i-th receive.
ncclResult_t deliver(const std::vector<Message>& sends, const std::vector<Message>& receives) {
    if (sends.size() != receives.size()) return ncclInvalidUsage;
    for (size_t i = 0; i < sends.size(); i++) {
        const Message &from = sends[i], &to = receives[i];
        if (from.bytes != to.bytes || from.comm != to.comm || from.stream != to.stream) return ncclInvalidUsage;
        if (const ncclResult_t result = enqueue_copy(to.data, from.data, to.bytes, to.stream)) return result;
    }
    return ncclSuccess;
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
    return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId, int rank) {
    if (!comm || rank < 0 || rank >= ranks) return ncclInvalidArgument;
    if (ranks != 1) return ncclInvalidUsage;  // more than one rank is not emulated
    *comm = new ncclComm{rank, ranks};
    return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    delete comm;
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) { return ncclCommDestroy(comm); }
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
    return collective(send, receive, count, type, 0, op, comm, stream);
}
ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
    return collective(send, receive, count, type, 0, op, comm, stream);
}
ncclResult_t ncclReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, cudaStream_t stream) {
    return collective(send, receive, count, type, root, op, comm, stream);
}
ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
    return collective(send, receive, count, type, 0, ncclSum, comm, stream);
}
ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
    return collective(send, receive, count, type, root, ncclSum, comm, stream);
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
