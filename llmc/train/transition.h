// Transition tuning: a trained Mixture of Tokens becomes a sparse Mixture of Experts and is trained on (Antoniak et al.
// 2023). The checkpoint is converted, saved as the first one of a new run, and resumed like any other:
// docs/transition.md.
//
// state.json of such a run carries "transition":
//   from, step, mode         the checkpoint it came from, and what it became: token-choice | expert-choice
//   mot_loss, sparse_loss    on the same validation batches at the switch; null without validation data
//   tokens                   how many tokens these batches have
//   recovered_at             step of the first validation not worse than mot_loss; null: none yet
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "llmc/train/evaluate.h"
#include "llmc/train/trainer.h"

namespace llmc {

struct TransitionCommand {
    std::string from, to;  // run or step directory; token-choice | expert-choice
    bool reset_optimizer = false, reset_schedule = false, dry_run = false;
};

// Converts, evaluates both modes, saves, and trains on; `model` and `config` hold what the user set (options.given).
// Returns the exit code of the training. InputError, before anything is made, for what cannot be converted (see
// converted()), fields that may not change, or a run directory that is in use.
int run_transition(const TransitionCommand& command, ModelConfig model, TrainConfig config, const RunOptions& options);

// True if this validation is the first one that is not worse than the Mixture of Tokens was; notes the step.
bool watch_recovery(nlohmann::json& transition, int64_t step, const EvalResult& result);

// The losses of both modes at the switch and now, and when the sparse one was back.
std::string transition_table(const nlohmann::json& transition, int64_t step, double mot_loss, double sparse_loss);

}  // namespace llmc
