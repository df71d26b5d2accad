// What the updates of all optimizers share on the GPU: packs of elements, stochastic rounding.
#pragma once
#include "llmc/ops/cuda/philox.cuh"
#include "llmc/ops/cuda/vector.cuh"

namespace llmc {

constexpr int update_width = 8;  // elements that a thread updates at a time: one pack of bf16, two of float

// 0 if all x [W] are finite, otherwise NaN: an FMA each.
template <int W>
__device__ inline float unfit(const Floats<W>& x) {
    float sum = 0;
    for (int j = 0; j < W; j++) sum += x[j] * 0.0f;
    return sum;
}

// Remembers that an update left something that is not finite: `sum`, of unfit(), is then not 0.
__device__ inline void report_unfit(float sum, StepState* step) {
    if (sum != 0) atomicExch(reinterpret_cast<unsigned long long*>(&step->broken), 1ull);
}

// x [W] rounded to bf16 as AdamW::stochastic_rounding in ops.h says; first = index of x[0] in the unit. NaN stays
// NaN.
template <int W>
__device__ inline Floats<W> rounded_stochastically(Floats<W> x, int64_t first, uint64_t seed, int64_t t) {
    const uint64_t index = uint64_t(first), number = index / 8, step = uint64_t(t);
    const uint4 counter = make_uint4(uint32_t(number), uint32_t(number >> 32), uint32_t(step), uint32_t(step >> 32));
    const uint4 bits = philox(counter, uint32_t(seed), uint32_t(seed >> 32));
    for (int j = 0; j < W; j++) {
        const int place = W == 8 ? j : int(index % 8);  // eight at a time begin at a multiple of eight
        const uint32_t word = place < 4 ? (place < 2 ? bits.x : bits.y) : (place < 6 ? bits.z : bits.w);
        const uint32_t noise = word >> (16 * (place % 2)) & 0xffff;
        if (x[j] == x[j]) x[j] = __uint_as_float((__float_as_uint(x[j]) + noise) & 0xffff0000u);
    }
    return x;
}

}  // namespace llmc
