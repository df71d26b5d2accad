// Text from a trained model: several prompts advance together, one position at a time, with a cache of each row's K and
// V.
//
// A MoT model mixes the tokens of g rows at every position, so a batch that is not a multiple of g must be filled up.
// The rule:
//   data   sequences of the training data, saved with the checkpoint, as in training
//   self   copies of the prompts and of what they generate
//   zero   zero vectors inside the MoT blocks (as the model's port to a public model library did)
// docs/mot.md has the perplexities for each rule.
#pragma once
#include <functional>

#include "llmc/data/eval_sequences.h"
#include "llmc/infer/sampling.h"
#include "llmc/model/model.h"

namespace llmc {

enum class GroupFill { data, self, zero };
template <>
inline constexpr std::array words_of<GroupFill> = {"data", "self", "zero"};

struct GenerateOptions {
    int64_t max_tokens = 128;  // new tokens per prompt, as far as the context allows
    SamplingOptions sampling;
    uint64_t seed = 1;
    GroupFill fill = GroupFill::data;
    bool discrete = false;
    int32_t end_of_text = -1;  // a row ends when this token is sampled
};

// Number of rows for this many prompts: rounded up to a multiple of the group size if the model has MoT blocks.
int64_t rows_with_fill(const ModelConfig& config, int64_t prompts);

// Continues each prompt (token ids, not empty, shorter than the context). fillers: sequences for GroupFill::data.
// on_token, if given, is called with (prompt number, token) as tokens appear. Returns the new tokens of each prompt,
// without end_of_text.
using TokenCallback = std::function<void(int64_t prompt, int32_t token)>;
std::vector<std::vector<int32_t>> generate(Model& model, const std::vector<std::vector<int32_t>>& prompts,
                                           const std::vector<std::vector<int32_t>>& fillers,
                                           const GenerateOptions& options, Context& ctx,
                                           const TokenCallback& on_token = {});

// Mean loss of the first `count` sequences, each evaluated alone in a group that is filled up by the rule.
double evaluate_filled(Model& model, const EvalSequences& sequences, int64_t count,
                       const std::vector<std::vector<int32_t>>& fillers, GroupFill fill, Context& ctx);

}  // namespace llmc
