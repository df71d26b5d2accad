// COMM=nccl: collectives between GPUs. They run on a stream of their own, beside the computation; the World carries
// NCCL's id. NCCL takes 64-bit counts and cuts long messages itself.
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstring>
#include <deque>
#include <exception>
#include <map>

#include "llmc/base/clock.h"
#include "llmc/comm/backend.h"
#include "llmc/ops/checks/common.h"
#include "llmc/ops/cuda/backend.h"

namespace llmc {

namespace {

void check_nccl(ncclResult_t status, const char* what, const World& world) {
    if (status != ncclSuccess) run_error(what, " on rank ", world.rank, ": NCCL says ", ncclGetErrorString(status));
}

ncclDataType_t nccl_type(DType dtype) {
    switch (dtype) {
        case DType::f32: return ncclFloat32;
        case DType::f64: return ncclFloat64;
        case DType::bf16: return ncclBfloat16;
        case DType::i32: return ncclInt32;
    }
    run_error("there is no dtype number ", int(dtype));
}

// Collectives that the GPU may not have ended yet, for the watchdog. Those inside a recorded graph are not among them.
class Unfinished {
public:
    ~Unfinished() {
        for (const Entry& e : entries) cudaEventDestroy(e.end);
        for (cudaEvent_t event : spare) cudaEventDestroy(event);
    }
    void add(const char* name, int64_t bytes, cudaStream_t stream) {
        cudaStreamCaptureStatus capturing;
        check_cuda(cudaStreamIsCapturing(stream, &capturing), "cudaStreamIsCapturing");
        if (capturing != cudaStreamCaptureStatusNone) return;
        std::lock_guard lock(mutex);
        drop_finished();
        cudaEvent_t event = nullptr;
        if (spare.empty()) check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
        else event = spare.back(), spare.pop_back();
        entries.push_back({name, bytes, event});
        check_cuda(cudaEventRecord(event, stream), "cudaEventRecord");
        if (entries.size() == 1) first_since = seconds_now();
    }
    std::string overdue(double timeout) {
        std::lock_guard lock(mutex);
        drop_finished();
        if (entries.empty() || seconds_now() - first_since <= timeout) return "";
        return str(entries.front().name, " of ", entries.front().bytes, " bytes between GPUs takes more than ", timeout,
                   " seconds (--comm-timeout)");
    }

private:
    struct Entry {
        const char* name;
        int64_t bytes;
        cudaEvent_t end;
    };
    std::mutex mutex;
    std::deque<Entry> entries;
    std::vector<cudaEvent_t> spare;
    double first_since = 0;  // when the first entry became the first

    void drop_finished() {
        while (!entries.empty() && cudaEventQuery(entries.front().end) == cudaSuccess) {
            spare.push_back(entries.front().end);
            entries.pop_front();
            first_since = seconds_now();
        }
    }
};

class NcclTransport final : public Transport {
public:
    NcclTransport(World& w, Context& c, Ranks ranks, Comm& owner) : world(w), ctx(c), size(owner.size) {
        // The first rank of every group invites the others.
        ncclUniqueId id{};
        if (owner.rank == 0) check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId", world);
        const std::vector<std::string> ids = world.all_gather(std::string(id.internal, sizeof id.internal));
        std::memcpy(id.internal, ids[size_t(ranks.first)].data(), sizeof id.internal);
        {
            const Waiting waiting(world.watchdog(), "ncclCommInitRank");
            check_nccl(ncclCommInitRank(&group, size, id, owner.rank), "ncclCommInitRank", world);
        }
        // All Comms of a device share one stream, so that all ranks begin their collectives in the same order.
        Backend& backend = *ctx.backend;
        if (!backend.communication)
            check_cuda(cudaStreamCreateWithFlags(&backend.communication, cudaStreamNonBlocking), "cudaStreamCreate");
        stream = backend.communication;
        for (cudaEvent_t* event : {&computed, &communicated})
            check_cuda(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "cudaEventCreate");
        for (cudaEvent_t& event : marked)
            check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
        if (world.watchdog())
            question = world.watchdog()->add([this](double timeout) { return what_is_wrong(timeout); });
    }
    ~NcclTransport() override {
        if (world.watchdog()) world.watchdog()->remove(question);
        const bool failing = std::uncaught_exceptions() > 0;  // then the others may never come
        if (!failing) cudaStreamSynchronize(stream);
        cudaEventDestroy(computed), cudaEventDestroy(communicated);
        for (cudaEvent_t event : marked) cudaEventDestroy(event);
        if (failing) ncclCommAbort(group);
        else ncclCommDestroy(group);
    }

    void broadcast(Tensor t, int root) override {
        check_nccl(ncclBroadcast(t.data, t.data, size_t(t.numel()), nccl_type(t.dtype), root, group, stream),
                   "broadcast", world);
        unfinished.add("broadcast", t.bytes(), stream);
    }
    void all_reduce(Tensor t, void*) override {
        check_nccl(ncclAllReduce(t.data, t.data, size_t(t.numel()), nccl_type(t.dtype), ncclSum, group, stream),
                   "all_reduce", world);
        unfinished.add("all_reduce", t.bytes(), stream);
    }
    void reduce_scatter(Tensor out, Tensor in, void*) override {
        check_nccl(ncclReduceScatter(in.data, out.data, size_t(out.numel()), nccl_type(in.dtype), ncclSum, group,
                                     stream),
                   "reduce_scatter", world);
        unfinished.add("reduce_scatter", in.bytes(), stream);
    }
    void all_gather(Tensor out, Tensor in) override {
        check_nccl(ncclAllGather(in.data, out.data, size_t(in.numel()), nccl_type(in.dtype), group, stream),
                   "all_gather", world);
        unfinished.add("all_gather", out.bytes(), stream);
    }
    void all_to_all(Tensor out, Tensor in) override {
        const std::vector<int64_t> counts(size_t(size), in.numel() / size);
        all_to_all_uneven(out, in, counts, counts);
    }
    void all_to_all_uneven(Tensor out, Tensor in, const std::vector<int64_t>& receive,
                           const std::vector<int64_t>& send) override {
        const int64_t element = size_of(in.dtype);
        const char* from = static_cast<const char*>(in.data);
        char* to = static_cast<char*>(out.data);
        check_nccl(ncclGroupStart(), "all_to_all", world);
        for (int r = 0; r < size; r++) {
            const int64_t out_count = send[size_t(r)], in_count = receive[size_t(r)];
            if (out_count)
                check_nccl(ncclSend(from, size_t(out_count), nccl_type(in.dtype), r, group, stream), "send", world);
            if (in_count)
                check_nccl(ncclRecv(to, size_t(in_count), nccl_type(in.dtype), r, group, stream), "receive", world);
            from += out_count * element, to += in_count * element;
        }
        check_nccl(ncclGroupEnd(), "all_to_all", world);
        unfinished.add("all_to_all", in.bytes(), stream);
    }

    void after_compute() override { order(ctx.backend->stream, computed, stream); }
    void before_compute() override { order(stream, communicated, ctx.backend->stream); }
    void mark(int i) override { check_cuda(cudaEventRecord(marked[i], stream), "cudaEventRecord"); }
    void before_compute(int i) override {
        check_cuda(cudaStreamWaitEvent(ctx.backend->stream, marked[i], 0), "cudaStreamWaitEvent");
    }

private:
    World& world;
    Context& ctx;
    const int size;
    ncclComm_t group = nullptr;
    cudaStream_t stream = nullptr;
    cudaEvent_t computed = nullptr, communicated = nullptr, marked[Comm::marks] = {};
    Unfinished unfinished;
    std::list<Watchdog::Question>::iterator question;
    double failed_since = 0;  // for the watchdog: when it first heard of an error of NCCL

    // What `second` gets from now on waits for what `first` has got.
    static void order(cudaStream_t first, cudaEvent_t event, cudaStream_t second) {
        check_cuda(cudaEventRecord(event, first), "cudaEventRecord");
        check_cuda(cudaStreamWaitEvent(second, event, 0), "cudaStreamWaitEvent");
    }

    // On the watchdog's thread. NCCL is the first to notice that a rank has given up; why, and with which exit code,
    // the World hears from that rank a little later.
    std::string what_is_wrong(double timeout) {
        constexpr double patience = 5;
        ncclResult_t error = ncclSuccess;
        if (ncclCommGetAsyncError(group, &error) == ncclSuccess && error != ncclSuccess && error != ncclInProgress) {
            if (failed_since == 0) failed_since = seconds_now();
            if (seconds_now() - failed_since > patience) return str("NCCL says ", ncclGetErrorString(error));
        }
        return unfinished.overdue(timeout);
    }
};

}  // namespace

std::unique_ptr<Transport> transport_create(World& world, Context& ctx, Ranks ranks, Comm& comm) {
    return std::make_unique<NcclTransport>(world, ctx, ranks, comm);
}

bool transport_needs_mpi() { return false; }
int64_t reduction_workspace(int64_t, int) { return 0; }  // NCCL has its own

int choose_device(World& world) {
    if (!world.processes()) return -1;
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess) cudaGetLastError(), devices = 0;
    int device = world.local_rank;
    if (devices == 1) device = 0;  // the launcher may have given each process a GPU of its own
    // Everybody hears of a problem of anybody, so that all ranks refuse.
    std::string mine = str("no GPU for process ", world.local_rank, " of ", world.local_size, " on ", world.host,
                           ", which shows it ", devices);
    cudaDeviceProp properties;
    const bool found = device < devices && cudaGetDeviceProperties(&properties, device) == cudaSuccess;
    if (found) mine = std::string(properties.uuid.bytes, sizeof properties.uuid.bytes);

    const std::vector<std::string> missing = world.all_gather(found ? "" : mine), uuids = world.all_gather(mine);
    std::map<std::string, size_t> user;
    for (size_t rank = 0; rank < uuids.size(); rank++) {
        if (!missing[rank].empty()) input_error(missing[rank], ": start one process per GPU");
        const auto [other, is_new] = user.insert({uuids[rank], rank});
        if (!is_new)
            input_error("ranks ", other->second, " and ", rank, " have the same GPU: start one process per GPU");
    }
    return device;
}

}  // namespace llmc
