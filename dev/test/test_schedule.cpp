// The learning rate against numbers worked out by hand.
#include <gtest/gtest.h>

#include <cmath>

#include "llmc/base/errors.h"
#include "llmc/step/schedule.h"

using namespace llmc;

TEST(Schedule, WarmUpCosineFlat) {
    Schedule s{0.01, 4, 10, 0.1};
    EXPECT_DOUBLE_EQ(learning_rate(s, 0), 0.0025);
    EXPECT_DOUBLE_EQ(learning_rate(s, 1), 0.005);
    EXPECT_DOUBLE_EQ(learning_rate(s, 3), 0.01);
    EXPECT_DOUBLE_EQ(learning_rate(s, 4), 0.01);             // cos 0 = 1
    EXPECT_DOUBLE_EQ(learning_rate(s, 6), 0.01 * 0.775);     // a third of the way, cos 60 deg = 1/2: 0.1 + 0.45 * 1.5
    EXPECT_DOUBLE_EQ(learning_rate(s, 7), 0.01 * 0.55);      // half way, cos 90 deg = 0
    EXPECT_DOUBLE_EQ(learning_rate(s, 8), 0.01 * 0.325);     // two thirds, cos 120 deg = -1/2
    EXPECT_DOUBLE_EQ(learning_rate(s, 9), 0.01 * (0.1 + 0.45 * (1 - std::sqrt(3.0) / 2)));  // cos 150 deg
    EXPECT_DOUBLE_EQ(learning_rate(s, 10), 0.001);
    EXPECT_DOUBLE_EQ(learning_rate(s, 1000000), 0.001);
}

TEST(Schedule, DegenerateLengths) {
    EXPECT_DOUBLE_EQ(learning_rate({0.5, 0, 10, 0}, 0), 0.5);    // no warm-up: starts at the peak
    EXPECT_DOUBLE_EQ(learning_rate({0.5, 0, 10, 0}, 10), 0);
    EXPECT_DOUBLE_EQ(learning_rate({0.5, 3, 3, 0.2}, 2), 0.5);   // no cosine: from the peak straight to flat
    EXPECT_DOUBLE_EQ(learning_rate({0.5, 3, 3, 0.2}, 3), 0.1);
    EXPECT_DOUBLE_EQ(learning_rate({0.5, 0, 0, 1}, 7), 0.5);     // constant
}

// The published baseline: warm-up 2500, down to a tenth at step 250,000. cos of a small angle by its series.
TEST(Schedule, PublishedBaseline) {
    Schedule s{1e-3, 2500, 250000, 0.1};
    EXPECT_DOUBLE_EQ(learning_rate(s, 0), 4e-7);
    EXPECT_DOUBLE_EQ(learning_rate(s, 2499), 1e-3);
    EXPECT_DOUBLE_EQ(learning_rate(s, 126250), 5.5e-4);
    double angle = M_PI * 1000 / 247500;
    EXPECT_NEAR(learning_rate(s, 3500), 1e-3 * (1 - 0.45 * (angle * angle / 2 - std::pow(angle, 4) / 24)), 1e-17);
    EXPECT_DOUBLE_EQ(learning_rate(s, 275000), 1e-4);
}

TEST(Schedule, RefusesNonsense) {
    EXPECT_NO_THROW(check_schedule({1e-3, 10, 10, 0.1}));
    EXPECT_THROW(check_schedule({0, 10, 100, 0.1}), InputError);
    EXPECT_THROW(check_schedule({-1, 10, 100, 0.1}), InputError);
    EXPECT_THROW(check_schedule({NAN, 10, 100, 0.1}), InputError);
    EXPECT_THROW(check_schedule({INFINITY, 10, 100, 0.1}), InputError);
    EXPECT_THROW(check_schedule({1e-3, -1, 100, 0.1}), InputError);
    EXPECT_THROW(check_schedule({1e-3, 101, 100, 0.1}), InputError);
    EXPECT_THROW(check_schedule({1e-3, 10, 100, 1.5}), InputError);
    EXPECT_THROW(check_schedule({1e-3, 10, 100, NAN}), InputError);
}

// A schedule that begins anew at step 100: the numbers of WarmUpCosineFlat, 100 steps later.
TEST(Schedule, Origin) {
    Schedule s{0.01, 4, 110, 0.1, 100};
    EXPECT_DOUBLE_EQ(learning_rate(s, 100), 0.0025);
    EXPECT_DOUBLE_EQ(learning_rate(s, 103), 0.01);
    EXPECT_DOUBLE_EQ(learning_rate(s, 104), 0.01);
    EXPECT_DOUBLE_EQ(learning_rate(s, 107), 0.01 * 0.55);
    EXPECT_DOUBLE_EQ(learning_rate(s, 110), 0.001);
    EXPECT_DOUBLE_EQ(learning_rate(s, 0), 0.0025);
    check_schedule(s);
    s.final_step = 103;  // before 100 + 4
    EXPECT_THROW(check_schedule(s), InputError);
}
