// What the tests of optimizers' ops share.
#pragma once
#include <bit>

#include "dev/test/reference.h"
#include "llmc/base/rng.h"

namespace llmc::test {

inline Tensor make_step(Device& d, const StepState& state = {}) {
    Tensor step = step_state_tensor(nullptr);
    step = d.tensor(DType::i32, step.shape, "step");
    upload(step, &state, d.ctx);
    return step;
}
inline StepState read_step(Device& d, Tensor step) {
    StepState s;
    download(&s, step, d.ctx);
    return s;
}

// A bf16 by stochastic rounding, as ops.h says: element `index` in the step whose count is t.
inline double rounded_at_random(float exact, uint64_t index, uint64_t seed, uint64_t t) {
    const auto block = philox4x32({uint32_t(index / 8), uint32_t(index / 8 >> 32), uint32_t(t), uint32_t(t >> 32)},
                                  {uint32_t(seed), uint32_t(seed >> 32)});
    const uint32_t noise = block[index % 8 / 2] >> (index % 2 ? 16 : 0) & 0xffff;
    return double(std::bit_cast<float>((std::bit_cast<uint32_t>(exact) + noise) & 0xffff0000));
}

}  // namespace llmc::test
