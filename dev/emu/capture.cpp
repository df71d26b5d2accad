// Capturing a stream into a graph, and running graphs. A graph is the list of what was recorded, in that order.
#include <algorithm>

#include "dev/emu/queue.h"
#include "dev/emu/settings.h"
#include "dev/emu/stream.h"

namespace emu {

cudaError_t record(CUstream_st& stream, cudaGraphNodeType kind, Work work) {
    Capture& capture = *stream.capture;
    if (!capture.valid) return cudaErrorStreamCaptureInvalidated;
    capture.graph->nodes.push_back(std::make_unique<CUgraphNode_st>(CUgraphNode_st{kind, std::move(work)}));
    stream.captured++;
    if (&stream != capture.origin) capture.joined[&stream] = false;
    return cudaSuccess;
}

cudaError_t record_event(CUstream_st& stream, CUevent_st& event) {
    if (!stream.capture->valid) return cudaErrorStreamCaptureInvalidated;
    event.capture = stream.capture;
    event.stream = &stream;
    event.captured = stream.captured;
    return cudaSuccess;
}

// A stream that waits for a captured event joins the capture; when its origin waits for an event of such a stream, what
// was recorded there is joined to the rest.
cudaError_t wait_event_in_capture(CUstream_st& stream, CUevent_st& event) {
    if (!event.capture || (stream.capture && stream.capture != event.capture)) {
        stream.capture->valid = false;
        return cudaErrorStreamCaptureIsolation;
    }
    Capture& capture = *event.capture;
    if (!capture.valid) return cudaErrorStreamCaptureInvalidated;
    if (!stream.capture) {
        if (!stream.items.empty()) return cudaErrorStreamCaptureUnsupported;
        stream.capture = event.capture;
        capture.joined[&stream] = false;
    } else if (event.stream != capture.origin && event.captured == event.stream->captured) {
        capture.joined[event.stream] = true;
    }
    return cudaSuccess;
}

cudaError_t unsafe_in_capture() {
    cudaError_t result = cudaSuccess;
    for (const CUstream_st* s : all_streams()) {
        if (!s->capture || s->capture->mode == cudaStreamCaptureModeRelaxed) continue;
        s->capture->valid = false;
        result = cudaErrorStreamCaptureUnsupported;
    }
    return result;
}

namespace {

cudaError_t end_capture(CUstream_st& stream, cudaGraph_t* graph) {
    const std::shared_ptr<Capture> capture = stream.capture;
    const auto joined = [](const auto& stream_and_flag) { return stream_and_flag.second; };
    const bool all_joined = std::all_of(capture->joined.begin(), capture->joined.end(), joined);
    for (CUstream_st* s : all_streams())
        if (s->capture == capture) s->capture = nullptr;
    *graph = capture->graph;
    if (capture->valid && all_joined) return cudaSuccess;
    delete capture->graph;
    *graph = nullptr;
    return capture->valid ? cudaErrorStreamCaptureUnjoined : cudaErrorStreamCaptureInvalidated;
}

}  // namespace
}  // namespace emu

using namespace emu;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    const std::scoped_lock lock(runtime_mutex());
    CUstream_st* s = find_stream(stream);
    if (!s) return error(cudaErrorInvalidResourceHandle);
    if (s == find_stream(nullptr)) return error(cudaErrorStreamCaptureUnsupported);
    if (s->capture) return error(cudaErrorIllegalState);
    s->capture = std::make_shared<Capture>(Capture{s, mode, new CUgraph_st{}, true, {}});
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    const std::scoped_lock lock(runtime_mutex());
    CUstream_st* s = find_stream(stream);
    if (!s || !s->capture) return error(cudaErrorIllegalState);
    if (s->capture->origin != s) return error(cudaErrorStreamCaptureUnmatched);
    return error(end_capture(*s, graph));
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    const std::scoped_lock lock(runtime_mutex());
    CUstream_st* s = find_stream(stream);
    if (!s) return error(cudaErrorInvalidResourceHandle);
    *status = !s->capture         ? cudaStreamCaptureStatusNone
              : s->capture->valid ? cudaStreamCaptureStatusActive
                                  : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
    if (!graph || !count) return error(cudaErrorInvalidValue);
    if (!nodes) return *count = graph->nodes.size(), cudaSuccess;
    for (size_t i = 0; i < *count; i++) nodes[i] = i < graph->nodes.size() ? graph->nodes[i].get() : nullptr;
    *count = std::min(*count, graph->nodes.size());
    return cudaSuccess;
}
cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
    *type = node->kind;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
    if (!graph) return error(cudaErrorInvalidValue);
    *exec = new CUgraphExec_st{};
    for (const auto& node : graph->nodes) (*exec)->works.push_back(node->work);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    const std::scoped_lock lock(runtime_mutex());
    if (!exec) return error(cudaErrorInvalidValue);
    return error(enqueue(stream, cudaGraphNodeTypeGraph, [works = exec->works] {
        for (const Work& work : works) work();
    }));
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}

}  // extern "C"
