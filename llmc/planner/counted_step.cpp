#include "llmc/planner/counted_step.h"

namespace llmc {

CountedStep::CountedStep(const ModelConfig& config, const TrainConfig& train, bool training, int ranks, int threads,
                         int64_t group_size)
    : sharding(sharding_of(resolved(config), train, ranks, 0)), ctx({.threads = threads, .counting = true}),
      world(World::pretend(ranks, 0)), mesh(world, ctx, sharding),
      model(config, Precision::of(train.precision), train.decay == Decay::all, ctx, sharding, &mesh),
      shared(model, mesh, ctx), arena("activations", ctx) {
    model.check_rows(train.micro_batch, group_size);
    model.allocate(training);
    shared.allocate(training);
    step.emplace(model, train, arena, hooks, ctx, false, ranks > 1 ? &shared : nullptr);
}

}  // namespace llmc
