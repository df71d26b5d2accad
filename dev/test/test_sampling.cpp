// Sampling against distributions worked out by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <vector>

#include "llmc/base/errors.h"
#include "llmc/infer/sampling.h"

using namespace llmc;

namespace {

// How often each token comes out over an even grid of uniform numbers: its probability, to 1 / steps.
std::vector<double> frequencies(const std::vector<float>& logits, const SamplingOptions& options) {
    const int steps = 20000;
    std::vector<double> f(logits.size());
    for (int i = 0; i < steps; i++)
        f[size_t(sample(logits.data(), int64_t(logits.size()), options, (i + 0.5) / steps))] += 1.0 / steps;
    return f;
}

void expect_distribution(const std::vector<double>& got, const std::vector<double>& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); i++) EXPECT_NEAR(got[i], want[i], 1.01e-4) << "token " << i;
}

// Probabilities 0.1, 0.4, 0.2, 0.3 at temperature 1.
const std::vector<float> logits = {std::log(1.0f) + 5, std::log(4.0f) + 5, std::log(2.0f) + 5, std::log(3.0f) + 5};

}  // namespace

TEST(Sampling, Softmax) { expect_distribution(frequencies(logits, {}), {0.1, 0.4, 0.2, 0.3}); }

TEST(Sampling, Temperature) {  // probabilities to the power 1 / temperature: squares at 1/2, roots at 2
    expect_distribution(frequencies(logits, {0.5, 0, 1}), {1.0 / 30, 16.0 / 30, 4.0 / 30, 9.0 / 30});
    double sum = 1 + 2 + std::sqrt(2.0) + std::sqrt(3.0);
    expect_distribution(frequencies(logits, {2, 0, 1}), {1 / sum, 2 / sum, std::sqrt(2.0) / sum, std::sqrt(3.0) / sum});
    EXPECT_EQ(sample(logits.data(), 4, {1e-300, 0, 1}, 0.999), 1);  // next to zero: no overflow, the likeliest
    EXPECT_EQ(sample(logits.data(), 4, {1e300, 0, 1}, 0.1), 0);     // next to infinity: uniform
}

TEST(Sampling, GreedyTakesTheLowestOfEqual) {
    std::vector<float> tie = {1, 3, 3, 2};
    for (double u : {0.0, 0.5, 0.999}) EXPECT_EQ(sample(tie.data(), 4, {0, 0, 1}, u), 1);
}

TEST(Sampling, TopK) {
    expect_distribution(frequencies(logits, {1, 2, 1}), {0, 4.0 / 7, 0, 3.0 / 7});
    expect_distribution(frequencies(logits, {1, 1, 1}), {0, 1, 0, 0});
    expect_distribution(frequencies(logits, {1, 99, 1}), {0.1, 0.4, 0.2, 0.3});
    expect_distribution(frequencies({2, 2, 2, 2, 2}, {1, 3, 1}), {1.0 / 3, 1.0 / 3, 1.0 / 3, 0, 0});
}

TEST(Sampling, TopP) {  // cumulative 0.4, 0.7, 0.9, 1
    expect_distribution(frequencies(logits, {1, 0, 0.3}), {0, 1, 0, 0});
    expect_distribution(frequencies(logits, {1, 0, 0.5}), {0, 4.0 / 7, 0, 3.0 / 7});
    expect_distribution(frequencies(logits, {1, 0, 0.75}), {0, 4.0 / 9, 2.0 / 9, 3.0 / 9});
    expect_distribution(frequencies(logits, {1, 0, 0.95}), {0.1, 0.4, 0.2, 0.3});
    expect_distribution(frequencies(logits, {1, 0, 1e-9}), {0, 1, 0, 0});  // never nobody
}

TEST(Sampling, TopKThenTopPThenTemperatureFirst) {
    // Top 3 at temperature 1/2: 16, 9, 4 of 29; 0.6 of that needs the first two.
    expect_distribution(frequencies(logits, {0.5, 3, 0.6}), {0, 16.0 / 25, 0, 9.0 / 25});
    expect_distribution(frequencies(logits, {0.5, 3, 0.55}), {0, 1, 0, 0});  // 16 / 29 = 0.5517
}

TEST(Sampling, OrderOfIdsOnTheUnitInterval) {
    EXPECT_EQ(sample(logits.data(), 4, {}, 0.0), 0);
    EXPECT_EQ(sample(logits.data(), 4, {}, 0.0999), 0);
    EXPECT_EQ(sample(logits.data(), 4, {}, 0.1001), 1);
    EXPECT_EQ(sample(logits.data(), 4, {}, 0.6999), 2);
    EXPECT_EQ(sample(logits.data(), 4, {}, 0.7001), 3);
    EXPECT_EQ(sample(logits.data(), 4, {}, std::nextafter(1.0, 0.0)), 3);
}

TEST(Sampling, ImpossibleTokens) {
    std::vector<float> some = {-INFINITY, 0, -INFINITY, 0, -INFINITY};
    expect_distribution(frequencies(some, {}), {0, 0.5, 0, 0.5, 0});
    expect_distribution(frequencies(some, {1, 4, 1}), {0, 0.5, 0, 0.5, 0});
    EXPECT_EQ(sample(some.data(), 5, {}, 0.0), 1);
    EXPECT_EQ(sample(some.data(), 5, {}, std::nextafter(1.0, 0.0)), 3);
    std::vector<float> none = {-INFINITY, -INFINITY}, bad = {0, NAN}, huge = {0, INFINITY};
    EXPECT_THROW(sample(none.data(), 2, {}, 0.5), RunError);
    EXPECT_THROW(sample(bad.data(), 2, {0, 0, 1}, 0.5), RunError);
    EXPECT_THROW(sample(huge.data(), 2, {}, 0.5), RunError);
}

TEST(Sampling, RefusesNonsense) {
    EXPECT_NO_THROW(check_sampling({0, 0, 1}));
    for (SamplingOptions o : {SamplingOptions{-0.1, 0, 1}, {NAN, 0, 1}, {INFINITY, 0, 1}, {1, -1, 1}, {1, 0, 0},
                              {1, 0, 1.01}, {1, 0, NAN}})
        EXPECT_THROW(check_sampling(o), InputError);
}
