// The model and step of one rank on a Context that only counts: the real code runs without memory and data, and shows
// what a run will need and do.
#pragma once
#include "llmc/step/session.h"

namespace llmc {

struct CountedStep {
    World world;  // simulated
    Session session;

    // Rank 0 of `ranks`. training: with gradients and the optimizer's state. InputError as sharding_of and check_rows.
    CountedStep(const ModelConfig& model, const TrainConfig& train, bool training = true, int ranks = 1,
                int threads = 1, int64_t group_size = 0);
};

}  // namespace llmc
