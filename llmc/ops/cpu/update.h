// What the updates of all optimizers share on the CPU: chunks, sums of squares, how new values are stored.
#pragma once
#include <array>
#include <bit>

#include "llmc/base/rng.h"
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

constexpr int64_t chunk_size = 16384;  // elements per partial sum: fixed, whatever the number of threads
inline int64_t chunks_of(int64_t n) { return (n + chunk_size - 1) / chunk_size; }

// f(begin, end) for chunks of [0, n), by all threads.
template <class F>
void in_chunks(int64_t n, int threads, F&& f) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t chunk = 0; chunk < chunks_of(n); chunk++) f(chunk * chunk_size, std::min(n, (chunk + 1) * chunk_size));
}

template <class T>
double sum_of_squares(const T* x, int64_t n) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; i++) total += double(x[i]) * double(x[i]);
    return total;
}

// 0 if x is finite, otherwise NaN: one FMA in a sum.
template <class A>
A unfit(A x) {
    return x * A(0);
}

// Remembers that an update left something that is not finite: `sum`, of unfit(), is then not 0. Any thread.
template <class A>
void report_unfit(A sum, StepState& state) {
    if (sum == 0) return;
#pragma omp atomic write
    state.broken = 1;
}

// The 16 random bits that round each of the elements [first, first + count): see AdamW in ops.h.
inline void fill_noise(uint16_t* noise, int64_t first, int64_t count, uint64_t seed, int64_t t) {
    const uint64_t step = uint64_t(t);
    std::array<uint32_t, 4> block;
    for (int64_t i = 0; i < count; i++) {
        const uint64_t index = uint64_t(first + i), number = index / 8, place = index % 8;
        if (i == 0 || place == 0)
            block = philox4x32({uint32_t(number), uint32_t(number >> 32), uint32_t(step), uint32_t(step >> 32)},
                               {uint32_t(seed), uint32_t(seed >> 32)});
        noise[i] = uint16_t(block[place / 2] >> (16 * (place % 2)));
    }
}

// Up with the probability (x - next lower bf16) / (distance of the two bf16 around x). NaN stays NaN.
inline void put_stochastic(bf16& to, float x, uint16_t noise) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    to.bits = x != x ? bf16::round(x) : uint16_t((bits + noise) >> 16);
}

// param[i] = new_value(i, sum), and the same in compute_copy if there is one, for elements [begin, end) of one chunk.
// Rounds as the options of AdamW and Muon say; t: StepState's. Returns `sum`, to which new_value adds unfit() of what
// it has made. new_value is a copy, with its pointers inside: g++ reads pointers behind a reference again for every
// element, and then it does not use vectors.
template <class P, class F, class Options>
arithmetic_t<P> put_updates(P* param, bf16* compute_copy, int64_t begin, int64_t end, F new_value,
                            const Options& options, int64_t t) {
    arithmetic_t<P> sum = 0;
    if constexpr (std::is_same_v<P, bf16>)
        if (options.stochastic_rounding) {
            uint16_t noise[chunk_size];
            fill_noise(noise, options.first_index + begin, end - begin, options.seed, t);
#pragma omp simd reduction(+ : sum)
            for (int64_t i = begin; i < end; i++) put_stochastic(param[i], new_value(i, sum), noise[i - begin]);
            if (compute_copy) std::copy(param + begin, param + end, compute_copy + begin);
            return sum;
        }
    if (compute_copy) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; i++) {
            const auto p = new_value(i, sum);
            param[i] = P(p);
            compute_copy[i] = bf16(float(p));
        }
    } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; i++) param[i] = P(new_value(i, sum));
    }
    return sum;
}

}  // namespace llmc
