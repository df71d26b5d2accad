// FLOPs and bytes of one training step, op by op, from a run that only counts.
#pragma once
#include "llmc/planner/counted_step.h"

namespace llmc {

inline std::map<std::string, OpCost> count_step(const ModelConfig& model, const TrainConfig& train) {
    CountedStep counted(model, train);
    Session& session = counted.session;
    session.ctx.costs.clear();
    session.step->begin(1e-4);
    for (int64_t k = 0; k < train.grad_accumulation; k++) session.step->micro_batch(nullptr, nullptr, k, false);
    session.step->update();
    return session.ctx.costs;
}

}  // namespace llmc
