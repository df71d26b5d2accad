#include "llmc/step/session.h"

#include "llmc/step/make_optimizer.h"

namespace llmc {

Session::Session(const ModelConfig& m, const TrainConfig& train, World& w, const ContextOptions& options)
    : Session(m, train, w, options, sharding_of(resolved(m), train, w.size, w.rank)) {}

Session::Session(const ModelConfig& m, const TrainConfig& train, World& w, const ContextOptions& options,
                 const Sharding& sharding)
    : world(w), config(train), ctx(options), mesh(world, ctx, sharding),
      model(m, Precision::of(config.precision), config.decay == Decay::all, ctx, sharding, &mesh),
      shared(model, mesh, ctx), arena("activations", ctx) {}

void Session::allocate(bool training, int64_t activation_bytes, int64_t workspace_bytes, bool graphs) {
    if (!ctx.counting) {
        reserve_workspace(workspace_bytes, ctx);
        arena.allocate(activation_bytes);
    }
    model.allocate(training);
    shared.allocate(training);
    if (training) optimizer = make_optimizer(config, model, ctx);
    step.emplace(model, optimizer.get(), config, arena, hooks, ctx, graphs, world.size > 1 ? &shared : nullptr);
}

void Session::initialize() {
    model.initialize(uint64_t(config.seed));
    shared.spread_parameters();
}

}  // namespace llmc
