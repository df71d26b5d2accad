// CUDA graphs: one launch for all kernels of a piece of the step.
#include "llmc/ops/graph.h"

#include "llmc/ops/cuda/cuda.cuh"

namespace llmc {

bool backend_has_graphs() { return true; }

struct Graph::Recording {
    cudaGraphExec_t executable = nullptr;
    ~Recording() {
        if (executable) cudaGraphExecDestroy(executable);
    }
};
Graph::Graph() = default;
Graph::~Graph() = default;

void Graph::run(Context& ctx, const std::function<void()>& enqueue) {
    // The first run loads kernels and chooses matmul algorithms, which a recording must not do. Profiling waits after
    // every op, which a graph cannot.
    if (ctx.counting || ctx.profile || runs++ == 0) return enqueue();

    const cudaStream_t stream = ctx.backend->stream;
    if (!recording) {
        cudaGraph_t graph = nullptr;
        check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
        try {
            enqueue();
        } catch (...) {  // leave the stream usable
            if (cudaStreamEndCapture(stream, &graph) == cudaSuccess) cudaGraphDestroy(graph);
            throw;
        }
        check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
        recording = std::make_unique<Recording>();
        const cudaError_t made = cudaGraphInstantiate(&recording->executable, graph, 0);
        cudaGraphDestroy(graph);
        check_cuda(made, "cudaGraphInstantiate");
    }
    check_cuda(cudaGraphLaunch(recording->executable, stream), "cudaGraphLaunch");
}

}  // namespace llmc
