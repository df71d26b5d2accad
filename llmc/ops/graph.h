// Graph: a piece of the step that enqueues the same launches every time, so that a GPU can be given all of them at
// once.
//
//     graph.run(ctx, [&] { model.train(...); });
// The first run enqueues op by op. The second records what would be enqueued; from then on the record is launched, and
// the function is not called any more. So what the function passes to ops by value, addresses and sizes included, must
// not change between runs: what changes lies in device memory, in the StepState or in uploaded tensors. The function
// uploads, downloads and waits for nothing. On a backend without graphs every run calls the function.
#pragma once
#include <functional>
#include <memory>

#include "llmc/ops/context.h"

namespace llmc {

bool backend_has_graphs();

class Graph {
public:
    Graph();
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    void run(Context& ctx, const std::function<void()>& enqueue);

private:
    struct Recording;
    std::unique_ptr<Recording> recording;
    int64_t runs = 0;
};

}  // namespace llmc
