// The plan of a run: memory and FLOPs, known before anything is allocated.
#pragma once
#include <optional>

#include "llmc/model/model.h"
#include "llmc/step/config.h"

namespace llmc {

// The result of running the real code once on a Context that only counts, so it cannot disagree with the run. Memory in
// bytes.
struct Plan {
    int64_t parameter_bytes = 0, copy_bytes = 0, gradient_bytes = 0, optimizer_bytes = 0;
    int64_t unit_bytes = 0;        // buffers of SharedUnits: gathered parameters, gradients that are not summed yet
    int64_t activation_bytes = 0;  // activations, and workspace of ops inside forward and backward
    int64_t workspace_bytes = 0;   // workspace of ops outside of them
    double step_flops = 0;         // of everything in a step, recomputation included
    double forward_flops = 0;      // of one evaluation of a micro-batch
    int64_t total() const {
        return parameter_bytes + copy_bytes + gradient_bytes + optimizer_bytes + unit_bytes + activation_bytes +
               workspace_bytes;
    }

    std::map<std::string, OpCost> ops;  // of one rank's step, by op
    // What it sends, by the group of ranks that it sends to: see Mesh.
    struct Traffic {
        std::string group;  // "all", "experts", "replicas", "group"
        Ranks ranks;
        std::map<std::string, CommCost> costs;
    };
    std::vector<Traffic> traffic;
};

// Counts one training step and one evaluation of every kind (extra_evaluations), or with training = false evaluations
// only. With `twin`, also an evaluation of the same parameters as that other model (model_as in convert.h). Bytes are
// those of one of `ranks` processes, FLOPs those of the whole step. InputError as sharding_of.
Plan make_plan(const ModelConfig& model, const TrainConfig& train, bool training, int threads,
               const EvalOptions& eval = {}, const std::optional<ModelConfig>& twin = {}, int ranks = 1);

// InputError "needs ... available ..." if the plan needs more than the free memory of the device, or than one of
// `sharers` equal parts of it.
void check_memory(const Plan& plan, Context& ctx, int sharers = 1);

// Tables for people: units with the sizes of their tensors; FLOPs per token; memory by purpose.
std::string describe_units(const Model& model);
std::string describe_plan(const Plan& plan, const Model& model, const TrainConfig& train, int ranks = 1);

std::string bytes_text(double bytes);  // "1.25 GiB"
std::string count_text(double count);  // "336.9M"

}  // namespace llmc
