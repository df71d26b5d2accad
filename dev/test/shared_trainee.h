// A tiny model in training on all ranks of the world, as `Trainee` is on one.
#pragma once
#include "dev/test/ranks.h"
#include "dev/test/trainee.h"

namespace llmc::test {

// A training run with exactly the memory that its plan asks for, on every rank.
struct SharedTrainee {
    TrainConfig train;
    Plan plan;
    Context ctx;
    Mesh mesh;
    Model model;
    SharedUnits units;
    Arena arena;
    UnitHooks no_hooks;
    std::unique_ptr<Step> step;

    SharedTrainee(const ModelConfig& config, const TrainConfig& train_config)
        : train(train_config), plan(make_plan(config, train, true, 1, {}, {}, world().size)),
          ctx({.threads = 1, .device = choose_device(world())}), mesh(world(), ctx, sharding(config)),
          model(config, Precision::of(train.precision), train.decay == Decay::all, ctx, sharding(config), &mesh),
          units(model, mesh, ctx), arena("activations", ctx) {
        model.allocate(true);
        units.allocate(true);
        arena.allocate(plan.activation_bytes);
        reserve_workspace(plan.workspace_bytes, ctx);
        model.initialize(uint64_t(train.seed));
        units.spread_parameters();
        step = std::make_unique<Step>(model, train, arena, no_hooks, ctx, false, world().size > 1 ? &units : nullptr);
    }
    Sharding sharding(const ModelConfig& config) const {
        return sharding_of(resolved(config), train, world().size, world().rank);
    }
    int64_t bytes() const { return model.buffers.bytes() + units.bytes() + arena.bytes() + ctx.workspace.bytes; }

    // This rank's part of one step on grad_accumulation x micro_batch rows; the state after it, equal on all ranks.
    StepState operator()(const Tokens& tokens, const Tokens& targets, int64_t number, bool statistics = false) {
        const Sharding& s = model.sharding;
        const int64_t row = model.config.context;
        step->begin(train.lr, number);
        for (int64_t k = s.batch(); k < train.grad_accumulation; k += s.batches()) {
            const auto first = size_t((k * train.micro_batch + s.batch_part() * step->rows()) * row);
            step->micro_batch(tokens.data() + first, targets.data() + first, k, statistics);
        }
        step->update();
        return step->state();
    }
};

}  // namespace llmc::test
