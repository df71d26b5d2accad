// The optimizers by their names.
#pragma once
#include "llmc/step/optimizer.h"

namespace llmc {

// The one that the configuration names, with its state in memory, all zero. The model was allocated for training, and
// outlives it.
std::unique_ptr<Optimizer> make_optimizer(const TrainConfig& config, Model& model, Context& ctx);

}  // namespace llmc
