#include "llmc/planner/counted_step.h"

namespace llmc {

CountedStep::CountedStep(const ModelConfig& config, const TrainConfig& train, bool training, int ranks, int threads,
                         int64_t group_size)
    : world(World::pretend(ranks, 0)), session(config, train, world, {.threads = threads, .counting = true}) {
    session.model.check_rows(train.micro_batch, group_size);
    session.allocate(training);
}

}  // namespace llmc
