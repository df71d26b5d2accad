// The measures that other tests rely on, themselves: what they must not let pass.
#include "dev/test/child.h"
#include "dev/test/ranks.h"
#include "dev/test/reference.h"

namespace llmc::test {
namespace {

const double nan_value = std::numeric_limits<double>::quiet_NaN();
const double infinite = std::numeric_limits<double>::infinity();

TEST(Close, NanIsCloseToNothing) {
    EXPECT_TRUE(close({1, 2}, {1, 2}, 0));
    for (const double other : {nan_value, infinite, 1.0}) {
        EXPECT_FALSE(close({nan_value, 2}, {other, 2}, 1e9)) << other;
        EXPECT_FALSE(close({other, 2}, {nan_value, 2}, 1e9)) << other;
        EXPECT_FALSE(within({nan_value}, {other}, {infinite})) << other;
        EXPECT_FALSE(within({other}, {nan_value}, {infinite})) << other;
    }
    EXPECT_FALSE(within({1}, {1}, {nan_value}));
    EXPECT_TRUE(close({infinite, 2}, {infinite, 2}, 0));
    EXPECT_FALSE(close({-infinite, 2}, {infinite, 2}, 1e9));
    EXPECT_FALSE(close({1, 2}, {1, 2, 3}, 1e9));
}

TEST(Close, ExpectedNansAreAtTheSamePlaces) {
    EXPECT_TRUE(close({nan_value, 2}, {nan_value, 2}, 0, Nans::expected));
    EXPECT_FALSE(close({nan_value, 2}, {1, 2}, 1e9, Nans::expected));
    EXPECT_FALSE(close({1, 2}, {nan_value, 2}, 1e9, Nans::expected));
    EXPECT_FALSE(close({1, 2}, {1, 2}, 0, Nans::expected)) << "none came";
}

TEST(Within, EachElementHasItsOwnBound) {
    const Vector want{1000, 1, 0};
    const Sums sums{want, want};
    EXPECT_TRUE(within({1000.0001, 1, 0}, want, sum_bounds(DType::f32, sums)));
    const Vector small_is_wrong{1000, 1.0001, 0}, zero_is_not{1000, 1, 1e-30};
    EXPECT_TRUE(close(small_is_wrong, want, tolerance(DType::f32, 1)));  // an error of the largest element's roundoff
    EXPECT_FALSE(within(small_is_wrong, want, sum_bounds(DType::f32, sums)));
    EXPECT_FALSE(within(zero_is_not, want, sum_bounds(DType::f32, sums)));
    EXPECT_FALSE(close_sums(small_is_wrong, sums, DType::f32, tolerance(DType::f32, 1)));
    // Where terms cancel, they say what may be lost.
    EXPECT_TRUE(within({1e-5}, {0}, sum_bounds(DType::f32, {{0}, {1000}})));
    EXPECT_FALSE(within({1e-2}, {0}, sum_bounds(DType::f32, {{0}, {1000}})));
    EXPECT_FALSE(within({1, 2}, {1, 2, 3}, {1, 1, 1}));
    EXPECT_FALSE(within({1, 2}, {1, 2}, {1}));
}

TEST(Sums, OfAProduct) {
    const Sums c = matmul_sums({1, -2, 3, 4}, {5, 6, 7, -8}, 2, 2, 2, false, false);
    EXPECT_EQ(c.value, (Vector{5 - 14, 6 + 16, 15 + 28, 18 - 32}));
    EXPECT_EQ(c.terms, (Vector{5 + 14, 6 + 16, 15 + 28, 18 + 32}));
    EXPECT_EQ(matmul_sums({1, 3, -2, 4}, {5, 7, 6, -8}, 2, 2, 2, true, true).value, c.value);
    Sums more = c;
    more += {-1, 1, -1, 1};
    EXPECT_EQ(more.terms, (Vector{20, 23, 44, 51}));
    EXPECT_EQ(more.value[0], -10);
}

TEST(Different, NeitherNonsenseNorAnotherSizeIsADifference) {
    EXPECT_TRUE(different({1, 2}, {1, 3}, 0.1));
    EXPECT_FALSE(different({1, 2}, {1, 2}, 0.1));
    EXPECT_FALSE(different({1, 2}, {1, 2.01}, 0.1));
    EXPECT_FALSE(different({1, nan_value}, {1, 3}, 0.1));
    EXPECT_FALSE(different({1, 2}, {1, infinite}, 0.1));
    EXPECT_FALSE(different({1, 2}, {1, 2, 3}, 0.1));
}

TEST(Largest, KeepsANan) {
    EXPECT_EQ(largest({1, -3, 2}), 3);
    EXPECT_EQ(largest({}), 0);
    for (const Vector& v : {Vector{nan_value, 1, 2}, {1, nan_value, 2}, {1, 2, nan_value}})
        EXPECT_TRUE(std::isnan(largest(v)));
}

TEST(Verdicts, OfRanksThatRanSomething) {
    const std::string two = "[  PASSED  ] 3 tests.\n[==========]\n[  PASSED  ] 1 test.\n";
    EXPECT_EQ(verdicts_of(two).passed, 2);
    EXPECT_EQ(verdicts_of(two + "[  PASSED  ] 0 tests.\n").passed, 2);
    EXPECT_TRUE(verdicts_of(two).skipped.empty());
    const std::string none = "[  SKIPPED ] A.b (0 ms)\n[  PASSED  ] 0 tests.\n[  SKIPPED ] 1 test, listed below:\n"
                             "[  SKIPPED ] A.b\n";
    EXPECT_EQ(verdicts_of(none).passed, 0);
    EXPECT_EQ(verdicts_of(none).skipped, std::vector<std::string>{"A.b"});
}

TEST(Process, ASignalIsNotTheExitCodeThatNamesIt) {
    TempDir dir;
    const auto ended = [&](const char* script) { return Process({"/bin/sh", "-c", script}, dir / "said").wait(); };
    EXPECT_NE(killed_by(SIGTERM), 128 + SIGTERM);
    EXPECT_EQ(ended("exit 143"), 143);
    EXPECT_EQ(ended("kill -TERM $$"), killed_by(SIGTERM));
    EXPECT_EQ(in_child([] { _exit(143); }), 143);
    EXPECT_EQ(in_child([] { raise(SIGTERM); }), killed_by(SIGTERM));
}

}  // namespace
}  // namespace llmc::test
