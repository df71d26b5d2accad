// The sub-commands of train_mot beside `train`.
#pragma once
#include <string>
#include <vector>

#include "llmc/infer/generate.h"
#include "llmc/step/config.h"

namespace llmc {

// Tables: units, parameters, FLOPs a token, memory. Allocates nothing, so models larger than this machine are fine.
// ranks: of a run of so many processes, for one of them.
int show_info(const ModelConfig& model, const TrainConfig& train, int threads, int ranks = 1);

struct EvalCommand {
    std::string checkpoint, data, split = "val";
    int64_t batches = 10, micro_batch = 0;  // 0: as in training
    int64_t group_size = 0;                 // MoT: another group size; 0: as in training
    std::string group_sizes;                // not empty: a table of the losses at these, "8,16,32"
    bool discrete = false;
    std::string as;          // not empty: as this kind of mixture, see mixture_from_name
    std::string group_fill;  // not empty: single sequences in groups filled up by this rule
    int threads = 0;
    bool profile = false;
};
int run_eval(const EvalCommand& command);

struct GenerateCommand {
    std::string checkpoint, tokenizer;  // tokenizer: a rank file; empty: the training data's
    std::vector<std::string> prompts;
    std::string group_fill = "data";
    GenerateOptions options;
    int threads = 0;
    bool profile = false;
};
int run_generate(const GenerateCommand& command);

}  // namespace llmc
