// One process's part of a model in use, in the order in which its members depend on each other.
#pragma once
#include <memory>
#include <optional>

#include "llmc/step/step.h"

namespace llmc {

struct Session {
    World& world;
    const TrainConfig config;
    Context ctx;
    Mesh mesh;
    Model model;
    SharedUnits shared;  // used if there are several ranks
    UnitHooks hooks;
    Arena arena;                           // of activations
    std::unique_ptr<Optimizer> optimizer;  // see allocate; nullptr unless training
    std::optional<Step> step;

    // Declares all of it, and takes no memory. All ranks of the world call it at the same time. InputError as
    // sharding_of, and as Model for a configuration that no model can have.
    Session(const ModelConfig& model, const TrainConfig& train, World& world, const ContextOptions& options);
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    // Gets the memory of parameters, for training also of gradients and the optimizer's state, and, unless the Context
    // only counts, of one step's activations and its ops' workspace (bytes, from the plan). Then there is a step.
    // graphs: see Step.
    void allocate(bool training, int64_t activation_bytes = 0, int64_t workspace_bytes = 0, bool graphs = false);
    // Of everything that allocate() got.
    int64_t bytes() const {
        return model.buffers.bytes() + (optimizer ? optimizer->bytes() : 0) + shared.bytes() + arena.bytes() +
               ctx.workspace.bytes;
    }

    // Random weights from config.seed, the same for any number of ranks.
    void initialize();

private:
    Session(const ModelConfig& model, const TrainConfig& train, World& world, const ContextOptions& options,
            const Sharding& sharding);
};

}  // namespace llmc
