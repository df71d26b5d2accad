// Graph: a part of the step that enqueues the same launches every time, so that a GPU can launch all of them at once.
//
//     graph.run(ctx, [&] { model.train(...); });
// The first run enqueues op by op. The second run records the launches as a CUDA graph. From then on the graph is
// launched and the function is not called any more. So everything that the function passes to ops by value, including
// addresses and sizes, must not change between runs; what changes must be in device memory, in the StepState or in
// uploaded tensors. The function may not upload, download or wait. On a backend without graphs every run calls the
// function.
#pragma once
#include <functional>
#include <memory>

#include "llmc/ops/context.h"

namespace llmc {

bool backend_has_graphs();  // true for CUDA

class Graph {
public:
    Graph();
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    // Runs `enqueue`, or launches its recording, see above.
    void run(Context& ctx, const std::function<void()>& enqueue);

private:
    struct Recording;
    std::unique_ptr<Recording> recording;
    int64_t runs = 0;
};

}  // namespace llmc
