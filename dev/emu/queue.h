// What stands behind the runtime's handles: streams are queues of work, events are marks in them, graphs are lists of
// recorded work. Used by stream.cpp and capture.cpp.
#pragma once
#include <cuda_runtime_api.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

namespace emu {

using Work = std::function<void()>;

// A point in a stream's queue: reached or not.
struct Mark {
    bool reached = false;
    double seconds = 0;  // when
};

struct Item {
    Work work;                                 // may be empty: then the item is only a point to wait for
    std::vector<std::shared_ptr<Mark>> after;  // what has to be reached before
    std::shared_ptr<Mark> end;                 // reached when the work is done
};

// A capture in progress: work of the stream where it began, and of others that joined it through events.
struct Capture {
    cudaStream_t origin;
    cudaStreamCaptureMode mode;
    cudaGraph_t graph;
    bool valid = true;
    std::map<cudaStream_t, bool> joined;  // other streams; true: the origin has waited for all they did
};

}  // namespace emu

struct CUstream_st {
    bool blocking = true;  // waits for the default stream, and that for it
    std::deque<emu::Item> items;
    std::shared_ptr<emu::Mark> end;  // of the last item
    std::shared_ptr<emu::Capture> capture;
    long captured = 0;  // pieces of work recorded from this stream
};

struct CUevent_st {
    bool timing;
    std::shared_ptr<emu::Mark> mark;        // null: never recorded
    std::shared_ptr<emu::Capture> capture;  // recorded in a capture instead,
    cudaStream_t stream = nullptr;          // from this stream,
    long captured = 0;                      // when it had recorded so much
};

struct CUgraphNode_st {
    cudaGraphNodeType kind;
    emu::Work work;
};
struct CUgraph_st {
    std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
};
struct CUgraphExec_st {
    std::vector<emu::Work> works;
};

namespace emu {

CUstream_st* find_stream(cudaStream_t handle);  // null: no such stream
const std::vector<CUstream_st*>& all_streams();

// In capture.cpp.
cudaError_t record(CUstream_st& stream, cudaGraphNodeType kind, Work work);
cudaError_t record_event(CUstream_st& stream, CUevent_st& event);
cudaError_t wait_event_in_capture(CUstream_st& stream, CUevent_st& event);

}  // namespace emu
