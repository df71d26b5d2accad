// The sub-commands info, eval and generate of train_mot. Each run_ function returns the exit code.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "llmc/checkpoint/convert.h"
#include "llmc/infer/generate.h"
#include "llmc/step/config.h"

namespace llmc {

// Prints units, parameters, FLOPs per token and memory, for one process of a run with `ranks` processes. Allocates
// nothing, so it also works for models larger than this machine. Returns the exit code.
int show_info(const ModelConfig& model, const TrainConfig& train, int threads, int ranks = 1);

struct EvalCommand {
    std::string checkpoint, data, split = "val";
    int64_t batches = 0, micro_batch = 0;   // 0: all of the split; as in training
    int64_t group_size = 0;                 // MoT group size; 0: as in training
    std::string group_sizes;                // not empty: print a table of the losses at these sizes, "8,16,32"
    bool discrete = false;
    std::optional<Mixture> as;            // use the weights in this kind of mixture
    std::optional<GroupFill> group_fill;  // evaluate single sequences in groups filled by this rule
    int threads = 0;
    bool profile = false;
};
int run_eval(const EvalCommand& command, World& world);

struct GenerateCommand {
    std::string checkpoint, tokenizer;  // tokenizer: rank file; empty: that of the run
    std::vector<std::string> prompts;
    GenerateOptions options;
    int threads = 0;
    bool profile = false;
};
int run_generate(const GenerateCommand& command, World& world);

}  // namespace llmc
