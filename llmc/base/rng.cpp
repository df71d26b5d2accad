#include "llmc/base/rng.h"

#include <algorithm>
#include <cmath>

#include "llmc/base/dtype.h"

namespace llmc {

namespace {

constexpr uint32_t multiplier0 = 0xD2511F53, multiplier1 = 0xCD9E8D57;
constexpr uint32_t weyl0 = 0x9E3779B9, weyl1 = 0xBB67AE85;  // golden ratio, sqrt(3) - 1

// All ten rounds in scalar registers, so that a loop over counters vectorises.
inline void philox(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = uint64_t(multiplier0) * c0, product1 = uint64_t(multiplier1) * c2;
        c0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
        c2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
        c1 = uint32_t(product1);
        c3 = uint32_t(product0);
        k0 += weyl0;
        k1 += weyl1;
    }
}

constexpr double two_to_minus_52 = 0x1p-52, two_to_minus_53 = 0x1p-53;

// Symmetric about 0, never +-0.5: the 52-bit midpoints of [0, 1), shifted by one half. Exact in double. (A signed
// conversion because processors before AVX-512 have no vector instruction for the unsigned one.)
inline double centred(uint64_t bits) { return (double(int64_t(bits >> 12)) + 0.5) * two_to_minus_52 - 0.5; }
inline double unit(uint64_t bits) { return double(int64_t(bits >> 11)) * two_to_minus_53; }

template <size_t N>
inline double polynomial(const double (&coefficient)[N], double x) {  // highest power first
    double y = coefficient[0];
    for (size_t i = 1; i < N; i++) y = y * x + coefficient[i];
    return y;
}

// AS 241's three rational approximations of degree 7.
constexpr double centre_p[] = {
    2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
    1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080};
constexpr double centre_q[] = {
    5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
    5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1};
constexpr double tail_p[] = {
    7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258,
    3.64784832476320460504, 5.76949722146069140550, 4.63033784615654529590, 1.42343711074968357734};
constexpr double tail_q[] = {
    1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
    6.89767334985100004550e-1, 1.67638483018380384940, 2.05319162663775882187, 1};
constexpr double far_p[] = {
    2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
    2.96560571828504891230e-1, 1.78482653991729133580, 5.46378491116411436990, 6.65790464350110377720};
constexpr double far_q[] = {
    2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
    1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1};
constexpr double centre_bound = 0.425;

inline double centre_quantile(double q) {  // |q| <= 0.425
    double r = centre_bound * centre_bound - q * q;
    return q * polynomial(centre_p, r) / polynomial(centre_q, r);
}

double tail_quantile(double q) {
    double r = std::sqrt(-std::log(0.5 - std::fabs(q)));
    double z = r <= 5 ? polynomial(tail_p, r - 1.6) / polynomial(tail_q, r - 1.6)
                      : polynomial(far_p, r - 5) / polynomial(far_q, r - 5);
    return std::copysign(z, q);
}

constexpr int64_t chunk = 1024;  // elements handled at once: buffers stay in the first-level cache

// bits[j] = random bits of index first + j, first even, n <= chunk; an odd n writes one element more.
void bits_chunk(const RandomStream& stream, uint64_t first, int64_t n, uint64_t* bits) {
    const uint32_t k0 = uint32_t(stream.key), k1 = uint32_t(stream.key >> 32);
    const uint32_t h0 = uint32_t(stream.purpose_hash), h1 = uint32_t(stream.purpose_hash >> 32);
    const int64_t blocks = (n + 1) / 2;
#pragma omp simd
    for (int64_t b = 0; b < blocks; b++) {
        uint64_t index = first / 2 + uint64_t(b);
        uint32_t c0 = uint32_t(index), c1 = uint32_t(index >> 32), c2 = h0, c3 = h1;
        philox(c0, c1, c2, c3, k0, k1);
        bits[2 * b] = uint64_t(c1) << 32 | c0;
        bits[2 * b + 1] = uint64_t(c3) << 32 | c2;
    }
}

// Calls body(bits, j, count): the random bits of elements [j, j + count) of a range that starts at index `first`.
template <class Body>
void for_chunks(const RandomStream& stream, int64_t first, int64_t n, Body&& body) {
    const int64_t lead = first & 1;  // chunks start on even indices, where a block starts
    const int64_t chunks = (lead + n + chunk - 1) / chunk;
#pragma omp parallel for if (chunks > 64)
    for (int64_t c = 0; c < chunks; c++) {
        alignas(64) uint64_t bits[chunk];
        int64_t begin = c * chunk, count = std::min(chunk, lead + n - begin), skip = c == 0 ? lead : 0;
        bits_chunk(stream, uint64_t(first - lead + begin), count, bits);
        body(bits + skip, begin + skip - lead, count - skip);
    }
}

template <class T> T rounded(double x) { return T(float(x)); }
template <> double rounded<double>(double x) { return x; }

}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    auto [c0, c1, c2, c3] = counter;
    philox(c0, c1, c2, c3, key[0], key[1]);
    return {c0, c1, c2, c3};
}

uint64_t hash_of(std::string_view text) {
    uint64_t hash = 0xcbf29ce484222325;
    for (char c : text) hash = (hash ^ uint8_t(c)) * 0x100000001b3;
    return hash;
}

double normal_quantile(double q) { return std::fabs(q) <= centre_bound ? centre_quantile(q) : tail_quantile(q); }

RandomStream::RandomStream(uint64_t seed, std::string_view purpose) : key(seed), purpose_hash(hash_of(purpose)) {}

uint64_t RandomStream::bits(uint64_t i) const {
    uint64_t pair[2];
    bits_chunk(*this, i & ~uint64_t(1), 2, pair);
    return pair[i & 1];
}

double RandomStream::uniform(uint64_t i) const { return unit(bits(i)); }

template <class T>
void RandomStream::truncated_normal_fill(T* out, int64_t first, int64_t n, double std, double limit) const {
    // P(|z| <= a) = erf(a / sqrt(2)): scaling the distance from the median by it cuts both tails off.
    const double mass = std > 0 ? std::erf(limit / std / std::sqrt(2.0)) : 0;
    for_chunks(*this, first, n, [=](const uint64_t* bits, int64_t begin, int64_t count) {
        double q[chunk], z[chunk];
#pragma omp simd
        for (int64_t j = 0; j < count; j++) {
            q[j] = mass * centred(bits[j]);
            z[j] = centre_quantile(q[j]);  // worthless in the tails, which are few: done again below
        }
        for (int64_t j = 0; j < count; j++)
            if (std::fabs(q[j]) > centre_bound) z[j] = tail_quantile(q[j]);
        for (int64_t j = 0; j < count; j++) out[begin + j] = rounded<T>(std::clamp(z[j] * std, -limit, limit));
    });
}

template <class T>
void RandomStream::uniform_fill(T* out, int64_t first, int64_t n, double low, double high) const {
    for_chunks(*this, first, n, [=](const uint64_t* bits, int64_t begin, int64_t count) {
        for (int64_t j = 0; j < count; j++) out[begin + j] = rounded<T>(low + (high - low) * unit(bits[j]));
    });
}

template void RandomStream::truncated_normal_fill(float*, int64_t, int64_t, double, double) const;
template void RandomStream::truncated_normal_fill(double*, int64_t, int64_t, double, double) const;
template void RandomStream::truncated_normal_fill(bf16*, int64_t, int64_t, double, double) const;
template void RandomStream::uniform_fill(float*, int64_t, int64_t, double, double) const;
template void RandomStream::uniform_fill(double*, int64_t, int64_t, double, double) const;
template void RandomStream::uniform_fill(bf16*, int64_t, int64_t, double, double) const;

}  // namespace llmc
