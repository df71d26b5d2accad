// One training step: forward and backward of K micro-batches, then the gradient norm, step_decide and the
// optimizer's update.
//
// Micro-batches are numbered over all ranks. W of them are computed at the same time (Sharding::batches), and this
// rank's group b computes those with k mod W = b. A step is the same for any W, up to the rounding of sums.
//
// Nothing here waits for the device: what changes from step to step is in the StepState in device memory, which the
// host reads with state().
#pragma once
#include "llmc/ops/graph.h"
#include "llmc/step/config.h"
#include "llmc/step/optimizer.h"
#include "llmc/step/units.h"

namespace llmc {

class Step {
public:
    // Takes its small buffers (tokens, targets, losses, step state, metrics) from `arena` and keeps them. With
    // `graphs`, everything between two uploads is recorded once and launched as one CUDA graph; `hooks` are then called
    // only in the first run and in the recording. shared: the hooks of a divided model, used instead of `hooks`; all
    // ranks then make the same calls. optimizer: nullptr if it only evaluates.
    Step(Model& model, Optimizer* optimizer, const TrainConfig& config, Arena& arena, UnitHooks& hooks, Context& ctx,
         bool graphs = false, SharedUnits* shared = nullptr);

    // Begins a step with this learning rate. number: of the step in the whole run.
    void begin(double lr, int64_t number = 0);
    // Computes gradients. tokens, targets: this rank's [rows(), context] on the host. k: number of the micro-batch in
    // the step: b, b + W ... statistics: also compute the metrics.
    void micro_batch(const int32_t* tokens, const int32_t* targets, int64_t k, bool statistics);
    void update();  // gradient norm, decision, the optimizer's update

    StepState state();                       // waits for the device
    void set_state(const StepState& state);  // for a resume
    // The metrics (model.metric_slots()) of the last micro-batch of the last step with statistics. Called by all ranks.
    std::vector<double> metrics();

    // Sum of the losses of this rank's rows of a validation batch, and the number of their tokens.
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
    Optimizer* const optimizer;
    const TrainConfig config;
    Arena& arena;
    UnitHooks& hooks;
    Context& ctx;
    const bool graphs;
    SharedUnits* shared;  // nullptr: one rank
    Graph micro_batch_graphs[2][2], update_graph;  // [accumulate][statistics]
    Tensor tokens, targets, losses, step, eval_step, metric_values;
    Tensor draw;                 // for random groups only: random bits from the seed and the micro-batch
    int64_t first_of_step = 0;   // number in the whole run of the step's first micro-batch
};

}  // namespace llmc
