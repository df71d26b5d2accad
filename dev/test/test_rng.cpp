// Random numbers: published vectors of Philox, moments of the distributions against their analytic values, independence
// of order.
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "llmc/base/dtype.h"
#include "llmc/base/rng.h"

using namespace llmc;

namespace {

using Counter = std::array<uint32_t, 4>;

double density(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI); }

struct Moments { double mean = 0, variance = 0, fourth = 0, smallest = 0, largest = 0; };

template <class T>
Moments moments(const std::vector<T>& x) {
    Moments m;
    m.smallest = m.largest = double(x[0]);
    for (T v : x) {
        double d = double(v);
        m.mean += d / double(x.size());
        m.variance += d * d / double(x.size());
        m.fourth += d * d * d * d / double(x.size());
        m.smallest = std::min(m.smallest, d);
        m.largest = std::max(m.largest, d);
    }
    m.variance -= m.mean * m.mean;
    return m;
}

}  // namespace

// The known answers published with the algorithm's reference implementation (Random123).
TEST(Philox, KnownAnswers) {
    EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              (Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, HashIsFnv1a) {  // test vectors of the FNV specification
    EXPECT_EQ(hash_of(""), 0xcbf29ce484222325u);
    EXPECT_EQ(hash_of("a"), 0xaf63dc4c8601ec8cu);
    EXPECT_EQ(hash_of("foobar"), 0x85944171f73967e8u);
}

TEST(NormalQuantile, InvertsTheDistributionFunction) {
    for (double q = -0.4999; q < 0.5; q += 0.00037) {
        double z = normal_quantile(q);
        EXPECT_NEAR(0.5 * std::erf(z / std::sqrt(2.0)), q, 4e-16) << q;  // absolute: what the middle needs
    }
    for (int e = 2; e <= 53; e++) {  // relative, down to the smallest tail: d log(tail) = z dz
        double tail = std::ldexp(1.0, -e), z = normal_quantile(tail - 0.5);
        EXPECT_NEAR(0.5 * std::erfc(-z / std::sqrt(2.0)) / tail, 1, 3e-15 * (1 + z * z)) << e;
        EXPECT_EQ(normal_quantile(0.5 - tail), -z);
    }
    EXPECT_EQ(normal_quantile(0), 0);
}

TEST(RandomStream, SameIndexSameNumberAnyOrder) {
    RandomStream stream(42, "blocks.3.qkv.weight");
    std::vector<double> all(5000);
    stream.truncated_normal_fill(all.data(), 0, int64_t(all.size()), 0.5, 1.0);
    for (int64_t first : {0, 1, 2, 777, 1023, 1024, 1025, 4999}) {
        std::vector<double> some(size_t(5000 - first));
        stream.truncated_normal_fill(some.data(), first, int64_t(some.size()), 0.5, 1.0);
        EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin() + first)) << first;
    }

    std::vector<double> uniform(2001);
    stream.uniform_fill(uniform.data(), 99, int64_t(uniform.size()), 0, 1);
    for (uint64_t i = 0; i < uniform.size(); i += 13) EXPECT_EQ(stream.uniform(99 + i), uniform[i]);
    EXPECT_NE(stream.bits(uint64_t(1) << 40), stream.bits(0));  // the index is 64 bits wide
}

TEST(RandomStream, SeedsAndPurposesAreUnrelated) {
    RandomStream a(1, "a"), b(2, "a"), c(1, "b");
    std::set<uint64_t> seen;
    for (uint64_t i = 0; i < 1000; i++) seen.insert({a.bits(i), b.bits(i), c.bits(i)});
    EXPECT_EQ(seen.size(), 3000u);
    const int n = 100000;
    auto normal = [](const RandomStream& stream) {
        std::vector<double> x(n + 1);
        stream.truncated_normal_fill(x.data(), 0, n + 1, 1, 100);  // a limit that cuts nothing
        return x;
    };
    const std::vector<double> of_a = normal(a), of_b = normal(b), of_c = normal(c);
    double ab = 0, ac = 0, lag = 0;
    for (size_t i = 0; i < n; i++) {
        ab += of_a[i] * of_b[i] / n;
        ac += of_a[i] * of_c[i] / n;
        lag += of_a[i] * of_a[i + 1] / n;
    }
    for (double correlation : {ab, ac, lag}) EXPECT_LT(std::fabs(correlation), 4.5 / std::sqrt(double(n)));
}

TEST(RandomStream, UniformMomentsAndHistogram) {
    RandomStream stream(7, "uniform");
    const int64_t n = 1'000'000;
    std::vector<double> x(n);
    stream.uniform_fill(x.data(), 0, n, 0, 1);
    Moments m = moments(x);
    EXPECT_NEAR(m.mean, 0.5, 4.5 * std::sqrt(1.0 / 12 / n));
    EXPECT_NEAR(m.variance, 1.0 / 12, 4.5 * std::sqrt(1.0 / 180 / n));
    EXPECT_GE(m.smallest, 0);
    EXPECT_LT(m.largest, 1);
    std::vector<int64_t> histogram(100);
    for (double v : x) histogram[size_t(v * 100)]++;
    double chi_square = 0;
    for (int64_t count : histogram) chi_square += std::pow(double(count) - n / 100.0, 2) / (n / 100.0);
    EXPECT_LT(chi_square, 161);  // 99 degrees of freedom: exceeded with probability 1e-4
    EXPECT_GT(chi_square, 49);
}

TEST(RandomStream, NormalMoments) {
    RandomStream stream(3, "normal");
    const int64_t n = 1'000'000;
    std::vector<double> x(n);
    stream.truncated_normal_fill(x.data(), 0, n, 1, 100);  // a limit that cuts nothing
    Moments m = moments(x);
    EXPECT_NEAR(m.mean, 0, 4.5 / std::sqrt(double(n)));
    EXPECT_NEAR(m.variance, 1, 4.5 * std::sqrt(2.0 / n));
    EXPECT_NEAR(m.fourth, 3, 4.5 * std::sqrt(96.0 / n));
    for (uint64_t i = 0; i < 1000; i++)  // the top 52 bits, in the middle of their interval
        EXPECT_EQ(x[i], normal_quantile((double(stream.bits(i) >> 12) + 0.5) * 0x1p-52 - 0.5));
}

// Truncation to +-limit: variance = std^2 (1 - 2 a phi(a) / (2 Phi(a) - 1)), a = limit / std.
TEST(RandomStream, TruncatedNormalMoments) {
    struct Case { double std, limit; };
    for (Case c : {Case{std::sqrt(0.1), 0.2}, Case{1, 2}, Case{0.01398, 0.2}, Case{0.5, 0.005}}) {
        RandomStream stream(11, "embedding.token.weight");
        const int64_t n = 500'000;
        std::vector<double> x(n);
        stream.truncated_normal_fill(x.data(), 0, n, c.std, c.limit);
        double a = c.limit / c.std;
        double variance = c.std * c.std * (1 - 2 * a * density(a) / std::erf(a / std::sqrt(2.0)));
        Moments m = moments(x);
        EXPECT_NEAR(m.mean, 0, 4.5 * std::sqrt(variance / n));
        EXPECT_NEAR(m.variance / variance, 1, 4.5 * std::sqrt(2.0 / n));
        EXPECT_LE(m.largest, c.limit);
        EXPECT_GE(m.smallest, -c.limit);
    }
    // The published recipe at scale 0.1: nominal 0.316 becomes 0.112.
    RandomStream stream(1, "embedding.token.weight");
    std::vector<float> x(200'000);
    stream.truncated_normal_fill(x.data(), 0, int64_t(x.size()), std::sqrt(0.1), 0.2);
    EXPECT_NEAR(std::sqrt(moments(x).variance), 0.112, 0.0007);
}

TEST(RandomStream, OtherTypesAreTheRoundedDoubles) {
    RandomStream stream(5, "x");
    std::vector<double> d(3000);
    std::vector<float> f(3000);
    std::vector<bf16> b(3000);
    stream.truncated_normal_fill(d.data(), 7, 3000, 0.02, 0.05);
    stream.truncated_normal_fill(f.data(), 7, 3000, 0.02, 0.05);
    stream.truncated_normal_fill(b.data(), 7, 3000, 0.02, 0.05);
    for (size_t i = 0; i < d.size(); i++) {
        EXPECT_EQ(f[i], float(d[i]));
        EXPECT_EQ(b[i].bits, bf16(float(d[i])).bits);
    }
    stream.truncated_normal_fill(d.data(), 0, 10, 0, 1);  // std 0: a constant tensor, not NaN
    EXPECT_EQ(d[3], 0);
}
