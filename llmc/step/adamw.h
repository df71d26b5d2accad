// AdamW (Loshchilov & Hutter 2019): a moving average of the gradient, "m.", and one of its square, "v.".
#pragma once
#include "llmc/step/optimizer.h"

namespace llmc {

class AdamWOptimizer : public Optimizer {
public:
    AdamWOptimizer(const TrainConfig& config, Model& model, Context& ctx);
    void update(const UnitSlice& slice, Tensor step, Arena& arena) override;

private:
    AdamW options;
};

}  // namespace llmc
