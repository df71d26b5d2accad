// Validation on batches that never change: the same sequences in the same groups at every call, so that losses compare.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>

#include "llmc/data/loader.h"
#include "llmc/train/step.h"

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

class Evaluator {
public:
    // Takes up to config.eval_batches micro-batches of the validation split (split = nullptr: the data's `val`).
    Evaluator(const Dataset& data, const ModelConfig& model, const TrainConfig& config, const Split* split = nullptr);
    int64_t batches() const { return count; }  // 0 if there is nothing to validate on
    EvalResult run(Step& step, const EvalOptions& options) const;

    // Token sequences [group_size][context] of the training data, for filling up groups in generation.
    const std::vector<std::vector<int32_t>>& fillers() const { return filler_rows; }

private:
    int64_t count = 0, micro_batch = 0, context = 0;
    double bytes_per_token = 0;
    std::optional<Loader> loader;  // of the split
    std::vector<std::vector<int32_t>> filler_rows;
};

}  // namespace llmc
