// The words of a model's options, see config_fields.h for what each means.
#pragma once
#include "llmc/base/words.h"
#include "llmc/ops/ops.h"

namespace llmc {

template <>
inline constexpr std::array words_of<Norm> = {"layernorm", "rmsnorm"};
template <>
inline constexpr std::array words_of<DropOrder> = {"position", "gate"};

enum class Positions { learned, rope, none };
template <>
inline constexpr std::array words_of<Positions> = {"learned", "rope", "none"};

// Of the hidden layer of a feed-forward layer: the activation, and whether a gate is multiplied with a second matrix.
enum class Hidden { relu, gelu, gelu_erf, silu, swiglu, geglu, linear };
template <>
inline constexpr std::array words_of<Hidden> = {"relu", "gelu", "gelu_erf", "silu", "swiglu", "geglu", "linear"};

enum class DownInit { of_kind, one, chosen, all };
template <>
inline constexpr std::array words_of<DownInit> = {"default", "one", "chosen", "all"};

enum class LearnTemperature { no, tied, separate };
template <>
inline constexpr std::array words_of<LearnTemperature> = {"no", "tied", "separate"};

enum class TemperatureForm { plain, exp };
template <>
inline constexpr std::array words_of<TemperatureForm> = {"plain", "exp"};

enum class Controllers { shared, separate, common_base, weighted, weighted_common };
template <>
inline constexpr std::array words_of<Controllers> = {"shared", "separate", "common-base", "weighted",
                                                     "weighted-common"};

enum class Emit { shared, group, experts, raw, top };
template <>
inline constexpr std::array words_of<Emit> = {"shared", "group", "experts", "raw", "top"};

enum class GroupAxis { batch, sequence };
template <>
inline constexpr std::array words_of<GroupAxis> = {"batch", "sequence"};

enum class GroupOrder { consecutive, random };
template <>
inline constexpr std::array words_of<GroupOrder> = {"consecutive", "random"};

enum class Router { learned, uniform };
template <>
inline constexpr std::array words_of<Router> = {"learned", "uniform"};

enum class OverLayers { sum, mean };
template <>
inline constexpr std::array words_of<OverLayers> = {"sum", "mean"};

enum class Candidates { batch, all };
template <>
inline constexpr std::array words_of<Candidates> = {"batch", "all"};

enum class ChoiceSoftmax { experts, tokens };
template <>
inline constexpr std::array words_of<ChoiceSoftmax> = {"experts", "tokens"};

enum class Init { truncated_normal, truncated_normal_fixed };
template <>
inline constexpr std::array words_of<Init> = {"truncated-normal", "truncated-normal-fixed"};

}  // namespace llmc
