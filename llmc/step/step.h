// One training step: K micro-batches of forward and backward, then the gradient norm, the decision and AdamW.
//
// Micro-batches are numbered over all ranks of a run: of the W that are worked on at a time (Sharding::batches), number
// b does those with k mod W = b, and a step is the same whatever W is, up to the rounding of sums.
//
// Nothing here waits for the device: what changes from step to step lives in the StepState in device memory, and the
// host learns of it when it asks.
#pragma once
#include "llmc/ops/graph.h"
#include "llmc/step/config.h"
#include "llmc/step/units.h"

namespace llmc {

class Step {
public:
    // Takes its small buffers (tokens, targets, losses, step state, metrics) from `arena`, for good. With `graphs`,
    // everything between two uploads is recorded once and launched as a whole; `hooks` are then called only in the
    // first run of each piece and for its recording. shared: the hooks of a model that several ranks share, all of
    // which make the same calls; then `hooks` are not called.
    Step(Model& model, const TrainConfig& config, Arena& arena, UnitHooks& hooks, Context& ctx, bool graphs = false,
         SharedUnits* shared = nullptr);

    // number: of the step, over the whole run.
    void begin(double lr, int64_t number = 0);
    // tokens, targets: this rank's rows() x context on the host. k: number of the micro-batch in the step, b, b + W ...
    void micro_batch(const int32_t* tokens, const int32_t* targets, int64_t k, bool statistics);
    void update();

    StepState state();                       // waits for the device
    void set_state(const StepState& state);  // on resume
    // Values of model.metric_slots(), of the last micro-batch of the last step with statistics. Called by all ranks.
    std::vector<double> metrics();

    // Loss of this rank's rows of a batch that is not trained on, as a sum over so many tokens.
    struct LossSum {
        double sum = 0, count = 0;
        double mean() const { return sum / count; }
    };
    LossSum evaluate(const int32_t* tokens, const int32_t* targets, const EvalOptions& options);

    int64_t rows() const { return tokens.shape[0]; }  // this rank's sequences of a micro-batch
    const Sharding& sharding() const { return model.sharding; }

private:
    void enqueue_micro_batch(bool accumulate, bool statistics);
    void enqueue_update();
    void sum_squares();

    Model& model;
    const TrainConfig config;
    Arena& arena;
    UnitHooks& hooks;
    Context& ctx;
    const bool graphs;
    SharedUnits* shared;  // nullptr: one rank
    Graph micro_batch_graphs[2][2], update_graph;  // [accumulate][statistics]
    Tensor tokens, targets, losses, step, eval_step, metric_values;
    Tensor draw;                 // for random groups only: number of the micro-batch over the whole run
    int64_t first_of_step = 0;   // number of the step's first micro-batch
};

}  // namespace llmc
