// What one rank does in a training step, in its order, and how long that takes on a Cluster.
//
// The real step is run on a Context that only counts and writes down every op, every collective, and where the one
// waits for the other. A GPU works off ops and collectives in two queues side by side (comm.h). Replaying the list with
// two clocks tells what hides behind what, without a rule of thumb for any way of sharding.
#pragma once
#include "llmc/planner/cluster.h"
#include "llmc/step/config.h"

namespace llmc {

struct StepTrace {
    int64_t micro_batches = 1;                       // of this rank in a step
    std::vector<Event> first, middle, last, update;  // of the first (if there are two), the ones between, the last
};

// Of rank 0 of `ranks`. InputError as make_plan.
StepTrace record_step(const ModelConfig& model, const TrainConfig& train, int ranks);

struct StepTime {
    double compute = 0;                                 // seconds of all ops
    double communication = 0;                           // of all collectives
    double total = 0;                                   // of the step
    double exposed() const { return total - compute; }  // while which nothing is computed, but communicated or waited
};

// Ops follow each other, collectives too; each begins when the one before it in its queue is over, and not before what
// it was told to wait for:
//   after_compute    collectives from here on begin when the ops so far are over
//   before_compute   ops from here on begin when the collectives so far are over (mark: those up to the mark)
//   download         the host reads a number, and only then starts what comes next
// Not modelled: launches, and what collectives take from the ops beside them (memory bandwidth, multiprocessors).
StepTime replay(const StepTrace& trace, DType act, const Cluster& cluster);

}  // namespace llmc
