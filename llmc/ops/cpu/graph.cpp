// The CPU has no launches to save.
#include "llmc/ops/graph.h"

namespace llmc {

bool backend_has_graphs() { return false; }

struct Graph::Recording {};
Graph::Graph() = default;
Graph::~Graph() = default;
void Graph::run(Context&, const std::function<void()>& enqueue) { enqueue(); }

}  // namespace llmc
