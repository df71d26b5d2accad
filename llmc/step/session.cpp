#include "llmc/step/session.h"

namespace llmc {

Session::Session(const ModelConfig& config, const TrainConfig& t, World& w, const ContextOptions& options)
    : world(w), ctx(options), mesh(world, ctx, sharding_of(resolved(config), t, world.size, world.rank)),
      model(config, Precision::of(t.precision), t.decay == Decay::all, ctx,
            sharding_of(resolved(config), t, world.size, world.rank), &mesh),
      shared(model, mesh, ctx), arena("activations", ctx), train(t) {}

void Session::allocate(bool training, int64_t activation_bytes, int64_t workspace_bytes, bool graphs) {
    if (!ctx.counting) {
        reserve_workspace(workspace_bytes, ctx);
        arena.allocate(activation_bytes);
    }
    model.allocate(training);
    shared.allocate(training);
    step.emplace(model, train, arena, hooks, ctx, graphs, world.size > 1 ? &shared : nullptr);
}

void Session::initialize() {
    model.initialize(uint64_t(train.seed));
    shared.spread_parameters();
}

}  // namespace llmc
