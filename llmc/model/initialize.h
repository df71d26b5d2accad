// Initial weights of everything a table declares.
#pragma once
#include <cstdint>

#include "llmc/model/config.h"
#include "llmc/model/params.h"

namespace llmc {

// Fills params (f32, bf16 or f64; all units or this rank's slices) by config.init and config.init_scale. Made on the
// host in double from (seed, tensor name, element): the same on every backend and world size.
void initialize_parameters(const ParamTable& table, Tensor params, const ModelConfig& config, uint64_t seed,
                           Context& ctx);

}  // namespace llmc
