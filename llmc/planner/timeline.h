// The ops and collectives of one rank in a training step, in their order, and the time they take on a Cluster.
//
// The real step is run on a Context that only counts and records every op, every collective, and where one waits for
// the other. A GPU executes ops and collectives in two queues side by side (comm.h). Replaying the list with two clocks
// shows what overlaps, for any way of dividing a model.
#pragma once
#include "llmc/planner/cluster.h"
#include "llmc/step/config.h"

namespace llmc {

struct StepTrace {
    int64_t micro_batches = 1;                       // number of micro-batches of this rank in a step
    std::vector<Event> first, middle, last, update;  // first micro-batch (if there are two), those between, the last
};

// The step of rank 0 of `ranks` ranks. InputError as make_plan.
StepTrace record_step(const ModelConfig& model, const TrainConfig& train, int ranks);

struct StepTime {
    double compute = 0;                                 // seconds of all ops
    double communication = 0;                           // seconds of all collectives
    double total = 0;                                   // seconds of the step
    double exposed() const { return total - compute; }  // seconds of communication or waiting without computation
};

// The time of a recorded step. Ops run one after the other, and so do collectives. Each begins when the one before it
// in its queue is done, and not before the event that it must wait for:
//   after_compute    later collectives begin when all earlier ops are done
//   before_compute   later ops begin when all earlier collectives are done (mark: those before the mark)
//   download         the host reads a number, and then starts what comes next
// Not modelled: launches, and how collectives slow down the ops beside them (memory bandwidth, multiprocessors).
StepTime replay(const StepTrace& trace, DType act, const Cluster& cluster);

}  // namespace llmc
