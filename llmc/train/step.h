// One training step: K micro-batches of forward and backward, then the gradient norm, the decision and AdamW.
//
// Nothing here waits for the device: what changes from step to step lives in the StepState in device memory, and the
// host learns of it when it asks.
#pragma once
#include "llmc/model/model.h"
#include "llmc/train/config.h"

namespace llmc {

class Step {
public:
    // Takes its small buffers (tokens, targets, losses, step state, metrics) from `arena`, for good.
    Step(Model& model, const TrainConfig& config, Arena& arena, UnitHooks& hooks, Context& ctx);

    void begin(double lr);
    // tokens, targets: micro_batch x context on the host. k: number of the micro-batch in the step, from 0.
    void micro_batch(const int32_t* tokens, const int32_t* targets, int64_t k, bool statistics);
    void update();

    StepState state();                       // waits for the device
    void set_state(const StepState& state);  // on resume
    std::vector<double> metrics();           // values of model.metric_slots(), of the last micro-batch with statistics

    // Mean loss of a batch that is not trained on.
    double evaluate(const int32_t* tokens, const int32_t* targets, const EvalOptions& options);

private:
    Model& model;
    const TrainConfig config;
    Arena& arena;
    UnitHooks& hooks;
    Context& ctx;
    Tensor tokens, targets, losses, step, eval_step, metric_values;
};

}  // namespace llmc
