// Transition tuning: a trained Mixture of Tokens becomes a sparse Mixture of Experts and is trained on (Antoniak et al.
// 2023). The checkpoint is converted, saved as the first one of a new run, and resumed like any other:
// docs/transition.md.
#pragma once
#include <string>

#include "llmc/train/trainer.h"

namespace llmc {

struct TransitionCommand {
    std::string from, to;  // run or step directory; token-choice | expert-choice
    bool reset_optimizer = false, reset_schedule = false, dry_run = false;
};

// Converts, evaluates both modes, saves, and trains on; `model` and `config` hold what the user set (options.given).
// Returns the exit code of the training. InputError, before anything is made, for what cannot be converted (see
// converted()), fields that may not change or mean nothing to this kind, or a run directory that is in use; what a
// transition left there that was killed before its first checkpoint is replaced.
int run_transition(const TransitionCommand& command, ModelConfig model, TrainConfig config, const RunOptions& options);

}  // namespace llmc
