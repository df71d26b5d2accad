// Streams and events. Without EMU_LAZY the work is done at once; with it, while the host waits, with the streams taking
// turns at random as far as events allow.
#include "dev/emu/stream.h"

#include <algorithm>
#include <chrono>

#include "dev/emu/memory.h"
#include "dev/emu/queue.h"
#include "dev/emu/settings.h"

namespace emu {
namespace {

CUstream_st& default_stream() {
    static CUstream_st only;
    return only;
}

std::vector<CUstream_st*>& streams() {
    static std::vector<CUstream_st*> all{&default_stream()};
    return all;
}

// Whether this thread ever enqueued anything. A thread that only looks at events, as a watchdog does, does no work: a
// collective whose other ranks do not come would hold it up.
thread_local bool gives_work = false;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

bool can_run(const Item& item) {
    return std::all_of(item.after.begin(), item.after.end(), [](const auto& mark) { return mark->reached; });
}

// Does the first piece of work of some stream. False if there is none that could be done.
bool run_one() {
    std::vector<CUstream_st*> ready;
    for (CUstream_st* s : streams())
        if (!s->items.empty() && can_run(s->items.front())) ready.push_back(s);
    if (ready.empty()) return false;
    static Random random(static_cast<unsigned long>(settings().seed));
    const long seed = settings().seed;
    CUstream_st* s = seed == 0 ? ready.front() : seed == 1 ? ready.back() : ready[random.below(ready.size())];
    const Item item = std::move(s->items.front());
    s->items.pop_front();
    if (item.work) {
        const DeviceAccess access;
        item.work();
    }
    item.end->reached = true;
    item.end->seconds = now();
    return true;
}

void finish(const std::shared_ptr<Mark>& mark) {
    while (mark && !mark->reached)
        if (!run_one()) fail("streams wait for each other in a circle");
}

// The default stream and the blocking streams wait for each other.
std::vector<std::shared_ptr<Mark>> legacy_dependencies(const CUstream_st& stream) {
    std::vector<std::shared_ptr<Mark>> after;
    if (!stream.blocking) return after;
    for (const CUstream_st* s : streams()) {
        const bool one_is_default = (s == &default_stream()) != (&stream == &default_stream());
        if (one_is_default && s->blocking && s->end && !s->end->reached) after.push_back(s->end);
    }
    return after;
}

std::shared_ptr<Mark> push(CUstream_st& stream, Work work, std::vector<std::shared_ptr<Mark>> after) {
    gives_work = true;
    for (auto& mark : legacy_dependencies(stream)) after.push_back(std::move(mark));
    stream.end = std::make_shared<Mark>();
    stream.items.push_back({std::move(work), std::move(after), stream.end});
    const auto end = stream.end;
    if (!settings().lazy) finish(end);
    return end;
}

bool default_stream_is_blocked_by_capture(const CUstream_st& stream) {
    if (&stream != &default_stream()) return false;
    return std::any_of(streams().begin(), streams().end(), [](auto* s) { return s->blocking && s->capture; });
}

cudaError_t create_stream(cudaStream_t* stream, bool blocking) {
    if (settings().devices == 0) return cudaErrorNoDevice;
    *stream = new CUstream_st{};
    (*stream)->blocking = blocking;
    streams().push_back(*stream);
    return cudaSuccess;
}

}  // namespace

std::recursive_mutex& runtime_mutex() {
    static std::recursive_mutex mutex;
    return mutex;
}

const std::vector<CUstream_st*>& all_streams() { return streams(); }

CUstream_st* find_stream(cudaStream_t handle) {
    if (handle == nullptr || handle == cudaStreamLegacy) return &default_stream();
    const auto at = std::find(streams().begin(), streams().end(), handle);
    return at == streams().end() ? nullptr : *at;
}

cudaError_t enqueue(cudaStream_t stream, cudaGraphNodeType kind, Work work) {
    CUstream_st* s = find_stream(stream);
    if (!s) return cudaErrorInvalidResourceHandle;
    if (s->capture) return record(*s, kind, std::move(work));
    if (default_stream_is_blocked_by_capture(*s)) return unsafe_in_capture(), cudaErrorStreamCaptureImplicit;
    push(*s, std::move(work), {});
    return cudaSuccess;
}

cudaError_t post(cudaStream_t stream, Work work) {
    const std::scoped_lock lock(runtime_mutex());
    return enqueue(stream, cudaGraphNodeTypeKernel, std::move(work));
}

void finish_everything() {
    for (const CUstream_st* s : all_streams()) finish(s->end);
}

void finish_legacy_streams() {
    for (const CUstream_st* s : all_streams())
        if (s->blocking) finish(s->end);
}

}  // namespace emu

using namespace emu;

// -------------------------------------------------------------------------------------------------------- the runtime
extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    const std::scoped_lock lock(runtime_mutex());
    return error(create_stream(stream, true));
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    const std::scoped_lock lock(runtime_mutex());
    return error(create_stream(stream, !(flags & cudaStreamNonBlocking)));
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0, *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    const std::scoped_lock lock(runtime_mutex());
    CUstream_st* s = find_stream(stream);
    if (!s || !stream) return error(cudaErrorInvalidResourceHandle);
    finish(s->end);
    streams().erase(std::find(streams().begin(), streams().end(), s));
    delete s;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    const std::scoped_lock lock(runtime_mutex());
    CUstream_st* s = find_stream(stream);
    if (!s) return error(cudaErrorInvalidResourceHandle);
    if (s->capture) return error(unsafe_in_capture());
    if (s == &default_stream()) finish_legacy_streams();
    finish(s->end);
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    const std::scoped_lock lock(runtime_mutex());
    CUstream_st* s = find_stream(stream);
    if (!s) return error(cudaErrorInvalidResourceHandle);
    if (s->capture) return error(unsafe_in_capture());
    if (!s->end || s->end->reached) return cudaSuccess;
    run_one();  // whoever asks again and again gets there
    return cudaErrorNotReady;
}
cudaError_t cudaDeviceSynchronize(void) {
    const std::scoped_lock lock(runtime_mutex());
    if (const cudaError_t refused = unsafe_in_capture(); refused != cudaSuccess) return error(refused);
    finish_everything();
    return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
    const std::scoped_lock lock(runtime_mutex());
    return error(enqueue(stream, cudaGraphNodeTypeHost, [=] { function(data); }));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    const std::scoped_lock lock(runtime_mutex());
    CUstream_st* s = find_stream(stream);
    if (!s || !event) return error(cudaErrorInvalidResourceHandle);
    if (s->capture || event->capture) return error(wait_event_in_capture(*s, *event));
    if (event->mark) push(*s, {}, {event->mark});
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    *event = new CUevent_st{};
    (*event)->timing = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    if (!event) return error(cudaErrorInvalidResourceHandle);
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    const std::scoped_lock lock(runtime_mutex());
    CUstream_st* s = find_stream(stream);
    if (!s || !event) return error(cudaErrorInvalidResourceHandle);
    if (s->capture) return error(record_event(*s, *event));
    event->capture = nullptr;
    event->mark = push(*s, {}, {});
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    const std::scoped_lock lock(runtime_mutex());
    if (!event) return error(cudaErrorInvalidResourceHandle);
    if (event->capture) return error(unsafe_in_capture());
    finish(event->mark);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    const std::unique_lock lock(runtime_mutex(), std::try_to_lock);
    if (!lock) return cudaErrorNotReady;  // another thread does work, perhaps for ever: whoever only asks must not wait
    if (!event) return error(cudaErrorInvalidResourceHandle);
    if (event->capture) return error(unsafe_in_capture());
    if (!event->mark || event->mark->reached) return cudaSuccess;
    if (gives_work) run_one();
    return cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    const std::scoped_lock lock(runtime_mutex());
    for (const cudaEvent_t event : {start, end}) {
        if (!event || !event->timing || !event->mark) return error(cudaErrorInvalidResourceHandle);
        if (!event->mark->reached) return cudaErrorNotReady;
    }
    *milliseconds = float((end->mark->seconds - start->mark->seconds) * 1e3);
    return cudaSuccess;
}

}  // extern "C"
