// What the tests of the sparse MoE ops share: sizes, routings made by plain loops, and their tables on the device.
#pragma once
#include "dev/test/reference.h"

namespace llmc::test {

inline const double nan = std::numeric_limits<double>::quiet_NaN();

struct Sizes {
    int64_t B, T, E, S, k;
    int64_t C = 1;

    int64_t N() const { return B * T; }
    std::string text() const { return str("B", B, " T", T, " E", E, " S", S, " k", k, " C", C); }
};

// Overflowing, exact and oversized slots; k = E; one expert; no slots; no tokens; rows that packs may and may not
// touch; experts on both sides of a warp.
inline const std::vector<Sizes> few_cases = {
    {3, 5, 4, 5, 1, 17},  {3, 5, 4, 3, 2, 16},   {2, 3, 5, 9, 5, 8},    {4, 4, 1, 7, 1, 40},
    {1, 7, 3, 0, 2, 5},   {0, 5, 4, 3, 2, 16},   {5, 13, 33, 4, 3, 33}, {2, 40, 6, 17, 2, 1},
    {3, 30, 40, 3, 1, 4}, {1, 70, 2, 40, 1, 64}, {2, 3, 4, 2, 2, 0},
};
inline const std::vector<Sizes> more_cases = {
    {4, 100, 8, 60, 1, 96},  {16, 64, 32, 40, 1, 520},  {6, 151, 7, 180, 2, 33},
    {2, 333, 256, 5, 2, 64}, {8, 257, 130, 31, 9, 130}, {40, 60, 3, 900, 1, 7},
};
inline const std::vector<Sizes> cases = few_or_all(few_cases, more_cases);

enum class Probs { smooth, ties, nans, skewed, all_nan };
inline const std::vector<Probs> kinds = {Probs::smooth, Probs::ties, Probs::nans, Probs::skewed, Probs::all_nan};

// [N,E]. ties: few values; skewed: nearly all tokens prefer the last expert.
inline Vector make_probs(Probs kind, int64_t N, int64_t E, uint64_t seed) {
    if (kind == Probs::all_nan) return Vector(size_t(N * E), nan);
    Vector p = random_vector(N * E, seed, 0.5);
    for (double& x : p) x = float(x + 0.5);
    if (kind == Probs::ties || kind == Probs::nans)
        for (double& x : p) x = std::floor(x * 4) / 4;
    if (kind == Probs::nans)
        for (size_t i = 0; i < p.size(); i += 3) p[i] = nan;
    if (kind == Probs::skewed)
        for (size_t i = size_t(E - 1); i < p.size(); i += size_t(E)) p[i] = i % 5 == 0 ? 0.25 : 0.75 + p[i] / 4;
    return p;
}

// The k best of `values`: one after another, the first of the largest; a NaN is below everything. Ascending.
inline std::vector<int64_t> best(Vector values, int64_t k) {
    const double infinity = std::numeric_limits<double>::infinity();
    for (double& v : values)
        if (std::isnan(v)) v = -1;  // probs are not negative
    std::vector<int64_t> chosen;
    for (int64_t i = 0; i < k; i++) {
        auto top = std::max_element(values.begin(), values.end());  // the first of equals
        chosen.push_back(top - values.begin());
        *top = -infinity;
    }
    std::sort(chosen.begin(), chosen.end());
    return chosen;
}

struct Routing {
    Vector slots, where, counts;

    Routing(const Sizes& s) : slots(size_t(s.E * s.S), -1), where(size_t(s.N() * s.E), -1), counts(size_t(s.E), 0) {}
    void put(const Sizes& s, int64_t e, int64_t slot, int64_t n) {
        slots[size_t(e * s.S + slot)] = double(n);
        where[size_t(n * s.E + e)] = double(slot);
    }
};

inline Routing choose_experts_oracle(const Sizes& s, const Vector& probs, DropOrder order) {
    Routing r(s);
    std::vector<std::vector<int64_t>> comers(size_t(s.E));
    for (int64_t n = 0; n < s.N(); n++)
        for (int64_t e : best(Vector(probs.begin() + n * s.E, probs.begin() + (n + 1) * s.E), s.k))
            comers[size_t(e)].push_back(n);
    for (int64_t e = 0; e < s.E; e++) {
        const std::vector<int64_t>& all = comers[size_t(e)];
        r.counts[size_t(e)] = double(all.size());
        Vector gates;
        for (int64_t n : all) gates.push_back(order == DropOrder::gate ? probs[size_t(n * s.E + e)] : 0.0);
        int64_t slot = 0;
        for (int64_t i : best(gates, std::min(s.S, int64_t(all.size())))) r.put(s, e, slot++, all[size_t(i)]);
    }
    return r;
}

// s.S is ignored and must be what the op wants.
inline Routing choose_tokens_oracle(const Sizes& s, const Vector& probs, int64_t group) {
    Routing r(s);
    const int64_t sets = group > 0 ? s.B / group : 1;
    for (int64_t t = 0; t < (group > 0 ? s.T : 1); t++)
        for (int64_t j = 0; j < sets; j++)
            for (int64_t e = 0; e < s.E; e++) {
                std::vector<int64_t> members;
                if (group > 0)
                    for (int64_t b = j; b < s.B; b += sets) members.push_back(b * s.T + t);
                else
                    for (int64_t n = 0; n < s.N(); n++) members.push_back(n);
                Vector values;
                for (int64_t n : members) values.push_back(probs[size_t(n * s.E + e)]);
                int64_t rank = 0;
                for (int64_t i : best(values, s.k)) r.put(s, e, (t * sets + j) * s.k + rank++, members[size_t(i)]);
            }
    return r;
}

// Device tensors of a routing that an oracle made.
struct Tables {
    Tensor slots, where;
    Tables(Device& d, const Sizes& s, const Routing& r)
        : slots(d.tensor(DType::i32, {s.E, s.S}, r.slots, "slots")),
          where(d.tensor(DType::i32, {s.B, s.T, s.E}, r.where, "where")) {}
};

struct Inputs {
    Vector x, y, weights, before;
    Inputs(const Sizes& s, DType act)
        : x(rounded(act, random_vector(s.N() * s.C, 3))), y(rounded(act, random_vector(s.E * s.S * s.C, 4))),
          weights(rounded(statistics_dtype(act), random_vector(s.N() * s.E, 5))),
          before(rounded(act, random_vector(s.N() * s.C, 6))) {}
};

inline Routing some_routing(const Sizes& s) {
    return choose_experts_oracle(s, make_probs(Probs::ties, s.N(), s.E, 7), DropOrder::position);
}

}  // namespace llmc::test
