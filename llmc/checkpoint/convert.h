// Conversion between mixtures: Mixture of Tokens, token choice and expert choice have the same experts, and MoT's
// controller has the shape and the role of a router. docs/transition.md.
#pragma once
#include <memory>
#include <string>

#include "llmc/checkpoint/checkpoint.h"
#include "llmc/model/model.h"

namespace llmc {

enum class Mixture { mot, token_choice, expert_choice };
template <>
inline constexpr std::array words_of<Mixture> = {"mot", "token-choice", "expert-choice"};
const char* block_of(Mixture mixture);               // the word in a pattern

// The configuration `from` (resolved) with all its mixtures converted to the kind `to`.
//   MoT -> sparse    same FLOPs: top_k = experts / group_size (rounded, at least 1); for expert choice
//                    one of every group_size sequences for each expert, groups of that size, no output norm.
//                    The temperature becomes 1; the router must be divided by the old one, see scale_routers.
//   sparse -> MoT    groups of group_size (0: that of the configuration, which is right for a run that was MoT).
//   sparse -> sparse through MoT
// InputError naming `where` if there is no mixture, if there are both MoT and sparse blocks, or if the conversion is
// impossible: learned temperatures, controllers or emit other than shared, a mixture norm, no softmax, groups within a
// sequence, a uniform router, shared experts.
ModelConfig converted(const ModelConfig& from, Mixture to, int64_t group_size, const std::string& where);

// A model of configuration `other` that uses the parameters of `source` in place: names and offsets are the same, with
// router and controller as the same tensor. It ignores other parameters of `source`. For evaluation only; `source` must
// outlive it. InputError naming a parameter that `source` does not have.
std::unique_ptr<Model> model_as(const ModelConfig& other, const Model& source, Context& ctx);

// load_tensors for a model that was converted from the checkpoint's. Tensors of an output norm that the checkpoint does
// not have are not changed.
void load_converted(const Checkpoint& checkpoint, const char* file, const std::vector<NamedTensor>& tensors,
                    Context& ctx, World& world);

// Multiplies every controller and router among these tensors by `factor`. To include a temperature t in the weights the
// factor is 1 / t, because logits / t = x (controller / t)^T. The gradient of controller / t is t times as large,
// and so is an optimizer's state of degree 1; see StateKind.
void scale_routers(const std::vector<NamedTensor>& tensors, double factor, Context& ctx);

}  // namespace llmc
