// Validation on batches that never change: the same sequences in the same groups at every call, so that losses compare.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>

#include "llmc/data/loader.h"
#include "llmc/step/step.h"

namespace llmc {

inline constexpr uint64_t eval_seed = 1912;  // of the order of validation sequences: does not depend on the run's seed

struct EvalResult {
    double loss = 0;           // nats a token
    double perplexity = 0;     // exp(loss)
    double bits_per_byte = 0;  // 0 if the data does not know its bytes
    int64_t tokens = 0;
    std::string text() const;
    void add_to(nlohmann::json& json, const std::string& prefix) const;
};

// What a validation of a MoT model can measure besides: the same weights in groups of another size, and one-hot.
struct ExtraEvaluation {
    std::string name;  // "group_8", "discrete": the log says val_loss_group_8
    EvalOptions options;
};
// As config.eval_group_sizes ("8,16,32") and config.eval_discrete want it. InputError naming the flag if the list does
// not parse, a size does not fit the micro-batch (or the context, for groups within a sequence), or there is no MoT.
std::vector<ExtraEvaluation> extra_evaluations(const ModelConfig& model, const TrainConfig& config);

class Evaluator {
public:
    // Takes up to config.eval_batches micro-batches of the validation split (split = nullptr: the data's `val`).
    Evaluator(const Dataset& data, const ModelConfig& model, const TrainConfig& config, const Split* split = nullptr);
    int64_t batches() const { return count; }  // 0 if there is nothing to validate on
    // world: the processes that share the batches, all of which call this; their number does not change the result.
    // All of them evaluate equally often, if need be a batch that does not count: a divided model needs them all.
    EvalResult run(Step& step, const EvalOptions& options, World* world = nullptr) const;
    // Of a model that is not the one in training: its step's buffers lie on `arena` only during the call.
    EvalResult run(Model& model, const TrainConfig& config, const EvalOptions& options, Arena& arena,
                   Context& ctx, World* world = nullptr) const;

    // As many sequences [context] of the training data as a group has (rows_together): generation fills up groups.
    const std::vector<std::vector<int32_t>>& fillers() const { return filler_rows; }

private:
    int64_t count = 0, micro_batch = 0, context = 0;
    double bytes_per_token = 0;
    std::optional<Loader> loader;  // of the split
    std::vector<std::vector<int32_t>> filler_rows;
};

}  // namespace llmc
