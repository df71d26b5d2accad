// Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
//
// A number is a pure function of (seed, purpose, index): no state, no order, the same on any number of threads.
// `purpose` says what the numbers are for, for example the name of the tensor that is initialised.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>

namespace llmc {

// The bare generator: ten rounds over a 128-bit counter with a 64-bit key.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// FNV-1a, 64 bits (Fowler, Noll, Vo).
uint64_t hash_of(std::string_view text);

// The z with P(standard normal < z) = 0.5 + q, for q in (-0.5, 0.5); relative error about 1e-16 (Wichura 1988,
// algorithm AS 241). The argument is the distance from one half because this keeps full precision around the median.
double normal_quantile(double q);

// The random numbers of one purpose. Key = seed; counter = (index / 2, hash of the purpose); each half of a 128-bit
// block serves one index.
struct RandomStream {
    RandomStream(uint64_t seed, std::string_view purpose);

    uint64_t bits(uint64_t i) const;   // 64 random bits
    double uniform(uint64_t i) const;  // in [0, 1), 53 bits

    // out[j] = a number made from the bits of index first + j, computed in double and then rounded to T = float, double
    // or bf16. Uses all OpenMP threads; the result does not depend on how many.
    // Normal of mean 0 and standard deviation std, conditioned on |x| <= limit (absolute, in the units of x), by
    // inverse CDF; or uniform in [low, high).
    template <class T> void truncated_normal_fill(T* out, int64_t first, int64_t n, double std, double limit) const;
    template <class T> void uniform_fill(T* out, int64_t first, int64_t n, double low, double high) const;

    uint64_t key, purpose_hash;
};

}  // namespace llmc
