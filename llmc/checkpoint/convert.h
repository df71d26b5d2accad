// One set of weights, several mixtures: Mixture of Tokens, token choice and expert choice have the same experts, and
// MoT's controller has the shape and the place of a router. docs/transition.md.
#pragma once
#include <memory>
#include <string>

#include "llmc/checkpoint/checkpoint.h"
#include "llmc/model/model.h"

namespace llmc {

enum class Mixture { mot, token_choice, expert_choice };
Mixture mixture_from_name(const std::string& name);  // mot | token-choice | expert-choice
const char* block_of(Mixture mixture);               // the word in a pattern

// The configuration `from` (resolved) with all its mixtures of the kind `to`.
//   MoT -> sparse    every block costs the same: top_k = experts / group_size (rounded, at least 1); for expert choice
//                    one of every group_size sequences for each expert, groups of that size, no output norm.
//                    The temperature becomes 1: the router has to be divided by it, see scale_routers.
//   sparse -> MoT    groups of group_size (0: what the configuration says, right for a run that was MoT once).
//   sparse -> sparse by way of MoT
// InputError naming `where` if there is no mixture, if there are MoT and sparse blocks, or if the one cannot be
// written as the other: learned temperatures, controllers or emit other than shared, a mixture norm, no softmax, groups
// within a sequence, a uniform router; shared experts.
ModelConfig converted(const ModelConfig& from, Mixture to, int64_t group_size, const std::string& where);

// A model of the configuration `other` that reads the parameters of `source` where they lie: same names, same offsets,
// controller and router being the same tensor. Parameters of `source` that it does not have are ignored. For
// evaluation only; `source` must outlive it. InputError naming a parameter that `source` does not have.
std::unique_ptr<Model> model_as(const ModelConfig& other, const Model& source, Context& ctx);

// As load_tensors, for the tensors of a model that was converted from the checkpoint's. Tensors of an output norm are
// new if the checkpoint has none: they stay as they are.
void load_converted(const Checkpoint& checkpoint, const char* file, const std::vector<NamedTensor>& tensors,
                    Context& ctx);

// Multiplies every controller and router among these tensors. A temperature t goes into the weights by 1 / t, since
// logits / t = x (controller / t)^T; the gradient of controller / t is t times as large, so m goes by t, v by t^2.
void scale_routers(const std::vector<NamedTensor>& tensors, double factor, Context& ctx);

}  // namespace llmc
