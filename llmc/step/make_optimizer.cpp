#include "llmc/step/make_optimizer.h"

#include "llmc/step/adamw.h"
#include "llmc/step/muon.h"

namespace llmc {

std::unique_ptr<Optimizer> make_optimizer(const TrainConfig& config, Model& model, Context& ctx) {
    if (config.optimizer == OptimizerName::muon) return std::make_unique<MuonOptimizer>(config, model, ctx);
    return std::make_unique<AdamWOptimizer>(config, model, ctx);
}

}  // namespace llmc
