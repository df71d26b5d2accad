// What all backends say alike about the state of a step.
#include "llmc/ops/ops.h"

namespace llmc {

Tensor step_state_tensor(void* data) {
    static_assert(sizeof(StepState) % sizeof(int32_t) == 0);
    return Tensor(data, DType::i32, {int64_t(sizeof(StepState) / sizeof(int32_t))}, "step state");
}

}  // namespace llmc
