#include "llmc/step/make_optimizer.h"

#include "llmc/step/adamw.h"

namespace llmc {

std::unique_ptr<Optimizer> make_optimizer(const TrainConfig& config, Model& model, Context& ctx) {
    return std::make_unique<AdamWOptimizer>(config, model, ctx);
}

}  // namespace llmc
