// One training step: K micro-batches of forward and backward, then the gradient norm, the decision and AdamW.
//
// Nothing here waits for the device: what changes from step to step lives in the StepState in device memory, and the
// host learns of it when it asks.
#pragma once
#include "llmc/model/model.h"
#include "llmc/ops/graph.h"
#include "llmc/train/config.h"

namespace llmc {

class Step {
public:
    // Takes its small buffers (tokens, targets, losses, step state, metrics) from `arena`, for good. With `graphs`,
    // everything between two uploads is recorded once and launched as a whole; `hooks` are then called only in the
    // first run of each piece and for its recording.
    Step(Model& model, const TrainConfig& config, Arena& arena, UnitHooks& hooks, Context& ctx, bool graphs = false);

    // number: of the step, over the whole run.
    void begin(double lr, int64_t number = 0);
    // tokens, targets: micro_batch x context on the host. k: number of the micro-batch in the step, from 0.
    void micro_batch(const int32_t* tokens, const int32_t* targets, int64_t k, bool statistics);
    void update();

    StepState state();                       // waits for the device
    void set_state(const StepState& state);  // on resume
    std::vector<double> metrics();           // values of model.metric_slots(), of the last micro-batch with statistics

    // Mean loss of a batch that is not trained on.
    double evaluate(const int32_t* tokens, const int32_t* targets, const EvalOptions& options);

private:
    void enqueue_micro_batch(bool accumulate, bool statistics);
    void enqueue_update();

    Model& model;
    const TrainConfig config;
    Arena& arena;
    UnitHooks& hooks;
    Context& ctx;
    const bool graphs;
    Graph micro_batch_graphs[2][2], update_graph;  // [accumulate][statistics]
    Tensor tokens, targets, losses, step, eval_step, metric_values;
    Tensor draw;                 // for random groups only: number of the micro-batch over the whole run
    int64_t first_of_step = 0;   // number of the step's first micro-batch
};

}  // namespace llmc
