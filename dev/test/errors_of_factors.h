// Bounds of sums whose terms are products with a factor that is itself off: a statistic of a row, say.
#pragma once
#include "dev/test/reference.h"

namespace llmc::test {

// The sums for close_sums(), when a factor of every term may be off by this much relative to itself. The terms then
// count for so much more than the 8 roundoffs that sum_bounds() gives each.
inline Sums with_errors_of_factors(Sums sums, DType dtype, double relative) {
    const double arithmetic = dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
    for (double& term : sums.terms) term *= 1 + relative / (8 * arithmetic);
    return sums;
}

// The relative error of a sum of so many terms of one sign, added one after another in the arithmetic of `dtype`: each
// partial sum may be as large as the result, so the roundings walk like sqrt(length).
inline double error_of_positive_sum(DType dtype, int64_t length) {
    return 8 * (dtype == DType::f64 ? 0x1p-53 : 0x1p-24) * std::sqrt(double(length));
}

}  // namespace llmc::test
