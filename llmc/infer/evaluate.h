// Validation on fixed batches: the same sequences in the same groups at every call, so that losses can be compared.
#pragma once
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>

#include "llmc/data/eval_sequences.h"
#include "llmc/step/step.h"

namespace llmc {

inline constexpr uint64_t eval_seed = 1912;  // for the order of validation sequences, independent of the run's seed

struct EvalResult {
    double loss = 0;           // nats per token, the mean over all tokens
    double perplexity = 0;     // exp(loss)
    double bits_per_byte = 0;  // 0 if the number of bytes of the data is unknown
    int64_t tokens = 0;
    bool abandoned = false;    // asked to stop before the end: there are no numbers
    std::string text() const;  // for the console
    // Adds the numbers to `json` with keys that begin with `prefix`.
    void add_to(nlohmann::json& json, const std::string& prefix) const;
};

// An additional evaluation of a MoT model: with another group size, or with one-hot weights.
struct ExtraEvaluation {
    std::string name;  // "group_8", "discrete": the log says val_loss_group_8
    EvalOptions options;
};
// The evaluations of config.eval_group_sizes ("8,16,32") and config.eval_discrete. InputError naming the flag if the
// list does not parse, a size does not divide the micro-batch (or the context, for groups within a sequence), or there
// is no MoT.
std::vector<ExtraEvaluation> extra_evaluations(const ModelConfig& model, const TrainConfig& config);

// The loss of a split does not depend on how it is cut into micro-batches. MoT groups are formed of sequences that
// follow each other, so they are the same for every micro-batch too. (Of mixtures with a capacity, and of expert choice
// among all tokens, a micro-batch is a part of what they compute.)
class Evaluator {
public:
    // Uses as many sequences of `split` (nullptr: the data's `val`) as config.eval_batches micro-batches have, or all
    // of them if that is 0 or more than there are.
    Evaluator(const Dataset& data, const ModelConfig& model, const TrainConfig& config, const Split* split = nullptr);
    int64_t batches() const { return (count + micro_batch - 1) / micro_batch; }  // 0 if there is no validation data
    // Evaluates the model of `step`. world: the processes that divide the batches; all of them call this, and their
    // number does not change the result. All evaluate the same number of batches, some of which may not count, because
    // a divided model needs all ranks. stop: asked before every micro-batch on all ranks, which must get one answer.
    using Stop = std::function<bool()>;
    EvalResult run(Step& step, const EvalOptions& options, World& world, const Stop& stop = {}) const;
    // Evaluates a model that is not in training: its buffers are on `arena` during the call only.
    EvalResult run(Model& model, const TrainConfig& config, const EvalOptions& options, Arena& arena, Context& ctx,
                   World& world, const Stop& stop = {}) const;

    // Sequences [context] of the training data, as many as a group has (rows_together), to fill groups in generation.
    const std::vector<std::vector<int32_t>>& fillers() const { return filler_rows; }

private:
    int64_t count = 0, micro_batch = 0;  // sequences that count, in a micro-batch
    double bytes_per_token = 0;
    std::optional<EvalSequences> sequences;  // of the split
    std::vector<std::vector<int32_t>> filler_rows;
};

}  // namespace llmc
