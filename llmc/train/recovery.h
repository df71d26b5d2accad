// What a run watches that was a Mixture of Tokens before (transition.h): is its loss back at the one before the switch?
//
// state.json of such a run carries "transition":
//   from, step, mode         the checkpoint it came from, and what it became: token-choice | expert-choice
//   mot_loss, sparse_loss    on the same validation batches at the switch; null without validation data, mot_loss also
//                            if the micro-batch cannot be cut into the old groups
//   tokens                   how many tokens these batches have
//   recovered_at             step of the first validation not worse than mot_loss; null: none yet
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "llmc/infer/evaluate.h"

namespace llmc {

// True if this validation is the first one that is not worse than the Mixture of Tokens was; notes the step.
bool watch_recovery(nlohmann::json& transition, int64_t step, const EvalResult& result);

// What a run that was a Mixture of Tokens is evaluated as besides: `model` converted back. Nothing if the micro-batch
// cannot be cut into the old groups: the two would see other batches.
std::optional<ModelConfig> twin_of(const ModelConfig& model, const TrainConfig& config, const std::string& where);

// run.json of a transition in this directory; null if there is none.
nlohmann::json run_of_transition(const std::string& run_dir);

// InputError if a transition in this directory ended before its first checkpoint: nothing there can be resumed.
void refuse_interrupted_transition(const std::string& run_dir);

// The losses of both modes at the switch and now, and when the sparse one was back, unless the validation batches
// (`sparse.tokens`) are no longer those of the switch. mot_loss: null if it was not measured.
std::string transition_table(const nlohmann::json& transition, int64_t step, const nlohmann::json& mot_loss,
                             const EvalResult& sparse);

}  // namespace llmc
