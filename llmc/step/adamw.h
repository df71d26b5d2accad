// AdamW (Loshchilov & Hutter 2019): a moving average of the gradient, "m.", and one of its square, "v.".
#pragma once
#include "llmc/step/optimizer.h"

namespace llmc {

class AdamWOptimizer : public Optimizer {
public:
    AdamWOptimizer(const TrainConfig& config, Model& model, Context& ctx);
    void update(const UnitSlice& slice, Tensor step, Arena& arena) override;

protected:
    // For an optimizer that uses AdamW for some parameters: those that have both of the first two kinds of `state`.
    AdamWOptimizer(const TrainConfig& config, const std::vector<StateKind>& state, Model& model, Context& ctx);
    // Updates elements [from, to) of the unit, which are in the slice.
    void update_range(const UnitSlice& slice, int64_t from, int64_t to, Tensor step);

    AdamW options;
};

}  // namespace llmc
