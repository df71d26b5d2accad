// fast_exp and its cheaper forms, fast_sigmoid against the standard library in double.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "llmc/ops/cpu/math.h"

namespace llmc {
namespace {

constexpr double eps = std::numeric_limits<float>::epsilon();
const float infinity = std::numeric_limits<float>::infinity();
const float nan_value = std::numeric_limits<float>::quiet_NaN();

// n points from low to high, ends included.
std::vector<float> points(double low, double high, int n) {
    std::vector<float> x(static_cast<size_t>(n));
    for (int i = 0; i < n; i++) x[size_t(i)] = float(low + (high - low) * i / (n - 1));
    return x;
}

// Runs f in a loop of the kind the ops use, so that the vectorised code is what is tested.
template <class F>
std::vector<float> map(const std::vector<float>& x, F f) {
    std::vector<float> y(x.size());
#pragma omp simd
    for (size_t i = 0; i < x.size(); i++) y[i] = f(x[i]);
    return y;
}

template <class F>
double worst_relative_error(const std::vector<float>& x, const std::vector<float>& y, F exact) {
    double worst = 0;
    for (size_t i = 0; i < x.size(); i++) {
        const double want = exact(double(x[i]));
        const double error = want == 0 ? std::fabs(double(y[i])) : std::fabs((double(y[i]) - want) / want);
        if (!(error <= worst)) worst = error;  // a NaN counts as worst
    }
    return worst;
}

template <class F>
void expect_exp_within_two_ulp(F exp) {
    for (auto [low, high] : {std::pair{-86.98, 88.72}, {-1.0, 1.0}, {-0.35, 0.35}, {-1e-4, 1e-4}}) {
        const auto x = points(low, high, 2'000'001);
        const auto y = map(x, exp);
        double worst_ulp = 0;
        for (size_t i = 0; i < x.size(); i++) {
            const double want = std::exp(double(x[i]));
            const double ulp = std::ldexp(eps, std::ilogb(want));
            const double error = std::fabs(double(y[i]) - want) / ulp;
            if (!(error <= worst_ulp)) worst_ulp = error;  // a NaN stays: the next comparison is false too
        }
        EXPECT_LE(worst_ulp, 2.0) << "on [" << low << ", " << high << "]";
    }
}

TEST(Math, ExpIsWithinTwoUlp) {
    expect_exp_within_two_ulp([](float v) { return fast_exp(v); });
    expect_exp_within_two_ulp([](float v) { return exp_up_to_89(v); });
    expect_exp_within_two_ulp([](float v) { return exp_unchecked(v); });
}

TEST(Math, ExpLimits) {
    const std::vector<float> x = {0,  -0.0f, infinity, -infinity, nan_value, 88.8f, 1e30f,
                                  89, -87,   -88,      -104,      -1e30f,    1e-30f};
    const auto y = map(x, [](float v) { return fast_exp(v); });
    EXPECT_EQ(y[0], 1);
    EXPECT_EQ(y[1], 1);
    EXPECT_EQ(y[2], infinity);
    EXPECT_EQ(y[3], 0);
    EXPECT_TRUE(std::isnan(y[4]));
    EXPECT_EQ(y[5], infinity);
    EXPECT_EQ(y[6], infinity);
    EXPECT_EQ(y[7], infinity);
    for (size_t i = 8; i < 12; i++) EXPECT_EQ(y[i], 0) << x[i];
    EXPECT_EQ(y[12], 1);
    // Between the largest argument with a normal result and the flush to 0 nothing is denormal or negative.
    for (float v : points(-87.7, -86.9, 10'001)) {
        const float p = fast_exp(v);
        EXPECT_TRUE(p == 0 || (p > 1.17e-38f && std::fabs(p / std::exp(double(v)) - 1) < eps)) << v << " " << p;
    }
}

TEST(Math, ExpWithoutChecksIsTheSame) {  // what forward and backward passes compute must not differ
    const auto x = points(-87.5, 88.7, 1'000'001);
    const auto y = map(x, [](float v) { return fast_exp(v); });
    EXPECT_EQ(y, map(x, [](float v) { return exp_up_to_89(v); }));
    EXPECT_EQ(y, map(x, [](float v) { return exp_unchecked(v); }));
}

TEST(Math, ExpLimitsWithoutChecks) {
    const auto y = map({-88, -104, -1e30f, -infinity, nan_value}, [](float v) { return exp_up_to_89(v); });
    for (size_t i = 0; i < 4; i++) EXPECT_EQ(y[i], 0) << i;
    EXPECT_TRUE(std::isnan(y[4]));
    const auto z = map({-87.4f, -87.5f, nan_value}, [](float v) { return exp_unchecked(v); });
    EXPECT_EQ(z[0], 0);
    EXPECT_EQ(z[1], 0);
    EXPECT_TRUE(std::isnan(z[2]));
}

TEST(Math, ExpIsMonotoneEnoughForSoftmax) {  // never above 1 for x <= 0: probabilities stay probabilities
    for (float v : points(-1e-5, 0, 100'001)) EXPECT_LE(exp_up_to_89(v), 1.0f) << v;
}

TEST(Math, Sigmoid) {
    for (double range : {86.0, 5.0, 1e-3}) {
        const auto x = points(-range, range, 1'000'001);
        const auto y = map(x, [](float v) { return fast_sigmoid(v); });
        EXPECT_LE(worst_relative_error(x, y, [](double v) { return 1 / (1 + std::exp(-v)); }), 3 * eps)
            << "|x| <= " << range;
    }
    EXPECT_EQ(fast_sigmoid(-infinity), 0);
    EXPECT_EQ(fast_sigmoid(infinity), 1);
    EXPECT_TRUE(std::isnan(fast_sigmoid(nan_value)));
}

TEST(Math, DoubleIsTheStandardLibrary) {
    for (double x : {-700.0, -1.5, 0.0, 1e-9, 3.25, 700.0}) {
        EXPECT_EQ(fast_exp(x), std::exp(x));
        EXPECT_DOUBLE_EQ(fast_sigmoid(x), 1 / (1 + std::exp(-x)));
    }
}

}  // namespace
}  // namespace llmc
