// One training step: K micro-batches of forward and backward, then the gradient norm, the decision and AdamW.
//
// Micro-batches are numbered over all processes of a run: rank r of W does those with k mod W = r, and a step is the
// same whatever W is, up to the rounding of sums.
//
// Nothing here waits for the device: what changes from step to step lives in the StepState in device memory, and the
// host learns of it when it asks.
#pragma once
#include <optional>

#include "llmc/comm/comm.h"
#include "llmc/model/model.h"
#include "llmc/ops/graph.h"
#include "llmc/train/config.h"

namespace llmc {

// Gradients of all ranks become their sum, unit by unit, as the last micro-batch of a step completes them.
class SumGradients final : public UnitHooks {
public:
    SumGradients(Model& model, Comm& comm) : model(model), comm(comm) {}
    void after(const Unit& unit, Phase phase) override;
    bool last = false;  // this is the rank's last micro-batch of the step

private:
    Model& model;
    Comm& comm;
};

class Step {
public:
    // Takes its small buffers (tokens, targets, losses, step state, metrics) from `arena`, for good. With `graphs`,
    // everything between two uploads is recorded once and launched as a whole; `hooks` are then called only in the
    // first run of each piece and for its recording. comm: the ranks that share the step's micro-batches; then `hooks`
    // are not called.
    Step(Model& model, const TrainConfig& config, Arena& arena, UnitHooks& hooks, Context& ctx, bool graphs = false,
         Comm* comm = nullptr);

    // number: of the step, over the whole run.
    void begin(double lr, int64_t number = 0);
    // tokens, targets: micro_batch x context on the host. k: number of the micro-batch in the step: rank, rank + W, ...
    void micro_batch(const int32_t* tokens, const int32_t* targets, int64_t k, bool statistics);
    void update();

    StepState state();                       // waits for the device
    void set_state(const StepState& state);  // on resume
    // Values of model.metric_slots(), of the last micro-batch of the last step with statistics. Called by all ranks.
    std::vector<double> metrics();

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
    Comm* comm;  // nullptr: one rank
    std::optional<SumGradients> sum_gradients;
    Graph micro_batch_graphs[2][2], update_graph;  // [accumulate][statistics]
    Tensor tokens, targets, losses, step, eval_step, metric_values;
    Tensor draw;                 // for random groups only: number of the micro-batch over the whole run
    int64_t first_of_step = 0;   // number of the step's first micro-batch
};

}  // namespace llmc
