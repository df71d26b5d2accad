// Initial weights of everything a table declares.
#pragma once
#include <cstdint>

#include "llmc/model/config.h"
#include "llmc/model/params.h"

namespace llmc {

// Sets params (f32, bf16 or f64; whole units or this rank's slices) by config.init and config.init_scale. Values are
// computed on the host in double from (seed, tensor name, element): the same for every backend and number of ranks.
void initialize_parameters(const ParamTable& table, Tensor params, const ModelConfig& config, uint64_t seed,
                           Context& ctx);

}  // namespace llmc
