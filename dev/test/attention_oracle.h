// Causal attention, its gradient and rotary positions by definition: plain float64 loops, T x T matrices and all.
#pragma once
#include "dev/test/reference.h"

namespace llmc::test {

struct Size {
    int64_t B, T, H, D;
    int64_t C() const { return H * D; }
    int64_t wide() const { return 3 * H * D; }
};

// Probabilities p[b,h,i,j] by the definition, with the log-sum-exp of every row of scores and the magnitudes of the
// terms of its largest score: so many roundoffs is a probability off, relative to itself, and lse absolutely.
struct Softmax { Vector p, lse, score_terms; };

inline double at(const Vector& qkv, const Size& s, int part, int64_t b, int64_t t, int64_t h, int64_t d) {
    return qkv[size_t((b * s.T + t) * s.wide() + part * s.C() + h * s.D + d)];
}

inline Softmax softmax_oracle(const Vector& qkv, const Size& s) {
    Softmax r{Vector(size_t(s.B * s.H * s.T * s.T)), Vector(size_t(s.B * s.H * s.T)), Vector(size_t(s.B * s.H * s.T))};
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t h = 0; h < s.H; h++)
            for (int64_t i = 0; i < s.T; i++) {
                double* p = &r.p[size_t(((b * s.H + h) * s.T + i) * s.T)];
                double max = -INFINITY, sum = 0;
                for (int64_t j = 0; j <= i; j++) {
                    double terms = 0;
                    for (int64_t d = 0; d < s.D; d++) {
                        const double product = at(qkv, s, 0, b, i, h, d) * at(qkv, s, 1, b, j, h, d);
                        p[j] += product, terms += std::abs(product);
                    }
                    p[j] /= std::sqrt(double(s.D));
                    max = std::max(max, p[j]);
                    double& most = r.score_terms[size_t((b * s.H + h) * s.T + i)];
                    most = std::max(most, terms / std::sqrt(double(s.D)));
                }
                for (int64_t j = 0; j <= i; j++) sum += p[j] = std::exp(p[j] - max);
                for (int64_t j = 0; j <= i; j++) p[j] /= sum;
                r.lse[size_t((b * s.H + h) * s.T + i)] = max + std::log(sum);
            }
    return r;
}

inline Vector forward_oracle(const Vector& qkv, const Size& s, Vector* lse = nullptr) {
    const Softmax soft = softmax_oracle(qkv, s);
    if (lse) *lse = soft.lse;
    Vector out(size_t(s.B * s.T * s.C()));
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t h = 0; h < s.H; h++)
            for (int64_t i = 0; i < s.T; i++)
                for (int64_t j = 0; j <= i; j++)
                    for (int64_t d = 0; d < s.D; d++)
                        out[size_t((b * s.T + i) * s.C() + h * s.D + d)] +=
                            soft.p[size_t(((b * s.H + h) * s.T + i) * s.T + j)] * at(qkv, s, 2, b, j, h, d);
    return out;
}

// How many roundoffs of the arithmetic of `act`, as sum_bounds() counts them, a probability may be off relative to
// itself: its score's, twice for the row's sum, and one rounding to `act`.
inline double probability_terms(const Softmax& soft, const Size& s, int64_t b, int64_t h, int64_t i, DType act) {
    const double stored = 2 * roundoff(act) / (8 * roundoff(statistics_dtype(act)));
    return 1 + 2 * soft.score_terms[size_t((b * s.H + h) * s.T + i)] + stored;
}
// The magnitudes of the terms of forward_oracle's results.
inline Vector forward_terms(const Vector& qkv, const Size& s, DType act, Vector* of_lse = nullptr) {
    const Softmax soft = softmax_oracle(qkv, s);
    Vector terms(size_t(s.B * s.T * s.C()));
    if (of_lse) *of_lse = soft.score_terms;
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t h = 0; h < s.H; h++)
            for (int64_t i = 0; i < s.T; i++) {
                const size_t row = size_t((b * s.H + h) * s.T + i);
                const double times = probability_terms(soft, s, b, h, i, act);
                if (of_lse) (*of_lse)[row] += 1 + std::abs(soft.lse[row]);
                for (int64_t j = 0; j <= i; j++)
                    for (int64_t d = 0; d < s.D; d++)
                        terms[size_t((b * s.T + i) * s.C() + h * s.D + d)] +=
                            times * soft.p[row * size_t(s.T) + size_t(j)] * std::abs(at(qkv, s, 2, b, j, h, d));
            }
    return terms;
}
// Those of backward_oracle's.
inline Vector backward_terms(const Vector& dout, const Vector& qkv, const Size& s, DType act) {
    const Softmax soft = softmax_oracle(qkv, s);
    const Vector g = magnitudes(dout), x = magnitudes(qkv);
    Vector terms(qkv.size());
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t h = 0; h < s.H; h++)
            for (int64_t i = 0; i < s.T; i++) {
                const double* p = &soft.p[size_t(((b * s.H + h) * s.T + i) * s.T)];
                const double times = probability_terms(soft, s, b, h, i, act);
                auto place = [&](int part, int64_t t) {
                    return &terms[size_t((b * s.T + t) * s.wide() + part * s.C() + h * s.D)];
                };
                Vector dp(size_t(i + 1));
                double mean = 0;
                for (int64_t j = 0; j <= i; j++) {
                    for (int64_t d = 0; d < s.D; d++) {
                        const double of_out = g[size_t((b * s.T + i) * s.C() + h * s.D + d)];
                        dp[size_t(j)] += of_out * at(x, s, 2, b, j, h, d);
                        place(2, j)[d] += times * p[j] * of_out;
                    }
                    mean += p[j] * dp[size_t(j)];
                }
                for (int64_t j = 0; j <= i; j++) {
                    const double ds = times * p[j] * (dp[size_t(j)] + mean) / std::sqrt(double(s.D));
                    for (int64_t d = 0; d < s.D; d++) {
                        place(0, i)[d] += ds * at(x, s, 1, b, j, h, d);
                        place(1, j)[d] += ds * at(x, s, 0, b, i, h, d);
                    }
                }
            }
    return terms;
}

// The chain rule written out with full T x T matrices.
inline Vector backward_oracle(const Vector& dout, const Vector& qkv, const Size& s) {
    const Softmax soft = softmax_oracle(qkv, s);
    Vector dqkv(qkv.size());
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t h = 0; h < s.H; h++)
            for (int64_t i = 0; i < s.T; i++) {
                const double* p = &soft.p[size_t(((b * s.H + h) * s.T + i) * s.T)];
                const double* g = &dout[size_t((b * s.T + i) * s.C() + h * s.D)];
                auto slot = [&](int part, int64_t t) {
                    return &dqkv[size_t((b * s.T + t) * s.wide() + part * s.C() + h * s.D)];
                };
                Vector dp(size_t(i + 1));
                double mean = 0;
                for (int64_t j = 0; j <= i; j++) {
                    for (int64_t d = 0; d < s.D; d++) {
                        dp[size_t(j)] += g[d] * at(qkv, s, 2, b, j, h, d);
                        slot(2, j)[d] += p[j] * g[d];
                    }
                    mean += p[j] * dp[size_t(j)];
                }
                for (int64_t j = 0; j <= i; j++) {
                    const double ds = p[j] * (dp[size_t(j)] - mean) / std::sqrt(double(s.D));
                    for (int64_t d = 0; d < s.D; d++) {
                        slot(0, i)[d] += ds * at(qkv, s, 1, b, j, h, d);
                        slot(1, j)[d] += ds * at(qkv, s, 0, b, i, h, d);
                    }
                }
            }
    return dqkv;
}

inline Vector rope_oracle(Vector qkv, const Size& s, int64_t first, double sign) {
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t t = 0; t < s.T; t++)
            for (int64_t head = 0; head < 2 * s.H; head++)
                for (int64_t i = 0; i < s.D / 2; i++) {
                    double *a = &qkv[size_t((b * s.T + t) * s.wide() + head * s.D + i)], *c = a + s.D / 2, x = *a,
                           y = *c;
                    const double angle = sign * double(first + t) / std::pow(10000.0, 2.0 * double(i) / double(s.D));
                    *a = x * std::cos(angle) - y * std::sin(angle);
                    *c = y * std::cos(angle) + x * std::sin(angle);
                }
    return qkv;
}

}  // namespace llmc::test
