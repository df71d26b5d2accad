// Products of ragged rows with one matrix per expert.
#include "llmc/ops/cuda/cuda.cuh"
#include "llmc/ops/cuda/ragged.h"

namespace llmc {

int64_t ragged_tile() { return ragged_rows_per_tile; }

}  // namespace llmc
