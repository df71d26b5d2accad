// The trainer: a whole run from its flags to its last checkpoint.
//
// A run directory holds
//   run.json             the resolved configuration, the data's identity, the version that wrote it
//   log.jsonl            one JSON object for every console line, validation and event
//   step-00001000/ ...   checkpoints; `latest` names the newest
//   lock                 locked while a process trains here: see run_directory.h
#pragma once
#include <set>
#include <string>

#include "llmc/comm/comm.h"
#include "llmc/data/shards.h"
#include "llmc/planner/plan.h"
#include "llmc/step/config.h"
#include "llmc/step/schedule.h"
#include "llmc/train/run_directory.h"

namespace llmc {

enum class Resume { never, must, if_there };

struct RunOptions {
    std::string data, run_dir;
    Resume resume = Resume::never;
    bool extend = false;           // begin a new schedule if the saved one ends before --steps
    std::set<std::string> given;   // fields that the user set; on resume they must agree with the saved run
    int threads = 0, device = -1;  // device: see choose_device
    bool profile = false;  // time every op, see profile.h
    std::string trace;     // with profile: file for the last steps, see trace.h
    bool cuda_graph = false;  // launch each micro-batch, and the update, as a CUDA graph
};

// The learning rate schedule of the flags.
Schedule schedule_of(const TrainConfig& config);

// Checks a run that starts at step `first_step` before anything is allocated or written. Resolves `model` and returns
// the plan. InputError if the run is impossible. twin: see make_plan.
Plan check_run(ModelConfig& model, const TrainConfig& config, const RunOptions& options, const Dataset& data,
               int64_t first_step, const std::optional<ModelConfig>& twin, const World& world);

// Trains. Returns the exit code: 0 all steps done; 1 the last step was skipped, or the last checkpoint could not be
// saved; 129, 130, 143 interrupted and saved (or not, if the last steps were skipped). InputError for bad input, before
// anything large is allocated; RunError after too many skipped steps, or an update that is not finite. All processes of
// `world` call this; only rank 0 writes to the run directory. lock: what a transition holds already.
int train(ModelConfig model, TrainConfig config, const RunOptions& options, World& world, RunLock lock = {});

}  // namespace llmc
