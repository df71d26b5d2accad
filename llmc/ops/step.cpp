// What all backends say alike about the state of a step.
#include <cstddef>

#include "llmc/ops/ops.h"

namespace llmc {

Tensor step_state_tensor(void* data) {
    static_assert(sizeof(StepState) % sizeof(int32_t) == 0);
    return Tensor(data, DType::i32, {int64_t(sizeof(StepState) / sizeof(int32_t))}, "step state");
}

Tensor step_sums(Tensor step) {
    constexpr size_t first = offsetof(StepState, loss_sum), word = sizeof(double);
    static_assert(offsetof(StepState, loss_count) == first + word);
    static_assert(offsetof(StepState, grad_square_sum) == first + 2 * word);
    return Tensor(static_cast<char*>(step.data) + first, DType::f64, {3}, "sums of a step");
}

}  // namespace llmc
