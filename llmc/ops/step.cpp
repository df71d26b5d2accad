// What all backends say alike about the state of a step.
#include <cstddef>

#include "llmc/ops/ops.h"

namespace llmc {

Tensor step_state_tensor(void* data) {
    static_assert(sizeof(StepState) % sizeof(int32_t) == 0);
    return Tensor(data, DType::i32, {int64_t(sizeof(StepState) / sizeof(int32_t))}, "step state");
}

Tensor step_loss_sums(Tensor step) {
    static_assert(offsetof(StepState, loss_count) == offsetof(StepState, loss_sum) + sizeof(double));
    return Tensor(static_cast<char*>(step.data) + offsetof(StepState, loss_sum), DType::f64, {2}, "loss sums");
}

}  // namespace llmc
