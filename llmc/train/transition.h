// Transition tuning (Antoniak et al. 2023): a trained Mixture of Tokens is converted to a sparse mixture of experts and
// trained further. The converted checkpoint becomes the first one of a new run, which is resumed like any other:
// docs/transition.md.
#pragma once
#include <string>

#include "llmc/checkpoint/convert.h"
#include "llmc/train/trainer.h"

namespace llmc {

struct TransitionCommand {
    std::string from;  // run or checkpoint directory
    Mixture to = Mixture::token_choice;
    bool reset_optimizer = false, reset_schedule = false, dry_run = false;
};

// Converts the checkpoint, evaluates both models, saves, and trains. `model` and `config` hold what the user set
// (options.given). Returns the exit code of the training. InputError before anything is written if the model cannot be
// converted (see converted()), for fields that may not change or have no effect on this kind, or for a run directory
// that is in use. What a transition left that was killed before its first checkpoint is replaced.
int run_transition(const TransitionCommand& command, ModelConfig model, TrainConfig config, const RunOptions& options,
                   World& world);

}  // namespace llmc
