// FLOPs and bytes of one training step, op by op, from a run that only counts.
#pragma once
#include "llmc/train/step.h"

namespace llmc {

inline std::map<std::string, OpCost> count_step(const ModelConfig& model_config, const TrainConfig& train) {
    Context ctx({.counting = true});
    Model model(model_config, Precision::from_name(train.precision), true, ctx);
    model.allocate(true);
    Arena arena("activations", ctx);
    UnitHooks hooks;
    Step step(model, train, arena, hooks, ctx);
    ctx.costs.clear();
    step.begin(1e-4);
    for (int64_t k = 0; k < train.grad_accumulation; k++) step.micro_batch(nullptr, nullptr, k, false);
    step.update();
    return ctx.costs;
}

}  // namespace llmc
