// Muon by plain float64 loops.
#pragma once
#include "dev/test/reference.h"

namespace llmc::test {

// x [rows,columns] orthogonalised by five Newton-Schulz iterations (Jordan et al. 2024), always as wide matrices:
// X <- a X + (b S + c S S) X with S = X X^T.
inline Vector plain_orthogonalized(Vector x, int64_t rows, int64_t columns) {
    auto transposed = [&](const Vector& m, int64_t r, int64_t c) {
        Vector t(m.size());
        for (int64_t i = 0; i < r; i++)
            for (int64_t j = 0; j < c; j++) t[size_t(j * r + i)] = m[size_t(i * c + j)];
        return t;
    };
    const bool tall = rows > columns;
    if (tall) x = transposed(x, rows, columns);
    const int64_t k = std::min(rows, columns), n = std::max(rows, columns);
    const double norm = std::sqrt(dot(x, x)) + 1e-7;
    for (double& value : x) value /= norm;
    for (int i = 0; i < 5; i++) {
        const Vector s = matmul_sums(x, x, k, k, n, false, true).value;
        Vector p = matmul_sums(s, s, k, k, k, false, false).value;
        for (size_t j = 0; j < p.size(); j++) p[j] = -4.7750 * s[j] + 2.0315 * p[j];
        const Vector more = matmul_sums(p, x, k, n, k, false, false).value;
        for (size_t j = 0; j < x.size(); j++) x[j] = 3.4445 * x[j] + more[j];
    }
    return tall ? transposed(x, k, n) : x;
}

// For close() of its result: the products of an iteration sum up to k + n terms, and an iteration makes errors at most
// 3.4445 times as large.
inline double orthogonalized_tolerance(DType dtype, int64_t rows, int64_t columns) {
    double growth = 0, factor = 1;
    for (int i = 0; i < 5; i++) growth += factor, factor *= 3.4445;
    return growth * tolerance(dtype, rows + columns);
}

}  // namespace llmc::test
