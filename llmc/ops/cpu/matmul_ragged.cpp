// Products of ragged rows with one matrix per expert.
#include "llmc/ops/ops.h"

namespace llmc {

int64_t ragged_tile() { return 1; }  // no expert's rows need to be padded

}  // namespace llmc
