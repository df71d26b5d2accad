// Recovery after a transition (transition.h): is the loss of the sparse run back at the loss of the Mixture of Tokens?
//
// state.json of such a run has the key "transition":
//   from, step, mode         the checkpoint that was converted, and the new kind: token-choice | expert-choice
//   mot_loss, sparse_loss    on the same validation batches at the transition; null without validation data;
//                            mot_loss also if the micro-batch cannot be cut into the old groups
//   tokens                   number of tokens of these batches
//   recovered_at             step of the first validation that is not worse than mot_loss; null: none yet
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "llmc/infer/evaluate.h"

namespace llmc {

// True if this validation is the first one that is not worse than mot_loss; then sets recovered_at.
bool watch_recovery(nlohmann::json& transition, int64_t step, const EvalResult& result);

// `model` converted back to a Mixture of Tokens, which such a run is also evaluated as. Nothing if the micro-batch
// cannot be cut into the old groups, because the two models would then see different batches.
std::optional<ModelConfig> twin_of(const ModelConfig& model, const TrainConfig& config, const std::string& where);

// run.json of a transition in this directory; null if there is none.
nlohmann::json run_of_transition(const std::string& run_dir);

// InputError if a transition in this directory ended before its first checkpoint, so that there is nothing to resume.
void refuse_interrupted_transition(const std::string& run_dir);

// A table of the losses of both models at the transition and now, and of the step of recovery. The latter is left out
// if the validation batches (`sparse.tokens`) are no longer the same. mot_loss: null if it was not measured.
std::string transition_table(const nlohmann::json& transition, int64_t step, const nlohmann::json& mot_loss,
                             const EvalResult& sparse);

}  // namespace llmc
