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

// slots holds pairs n * E + e or -1, where holds rows, -1 (not chosen) or -2 (dropped). offsets: dropless only.
struct Routing {
    Vector slots, where, counts, offsets;

    Routing(const Sizes& s, int64_t rows) : slots(size_t(rows), -1), where(size_t(s.N() * s.E), -1) {}
    explicit Routing(const Sizes& s) : Routing(s, s.E * s.S) {}
    void put(int64_t pair, int64_t row) {
        slots[size_t(row)] = double(pair);
        where[size_t(pair)] = double(row);
    }
    int64_t rows() const { return int64_t(slots.size()); }
    Shape slots_shape(const Sizes& s) const { return offsets.empty() ? Shape{s.E, s.S} : Shape{rows()}; }
    // {n, e} of a row that is not empty; n = -1 else.
    struct Pair {
        int64_t n, e;
    };
    Pair at(const Sizes& s, int64_t row) const {
        const int64_t pair = int64_t(slots[size_t(row)]);
        return pair < 0 ? Pair{-1, -1} : Pair{pair / s.E, pair % s.E};
    }
};

// The tokens that come to every expert, ascending.
inline std::vector<std::vector<int64_t>> comers(const Sizes& s, const Vector& probs, bool balanced) {
    std::vector<std::vector<int64_t>> tokens(size_t(s.E));
    for (int64_t n = 0; n < s.N(); n++) {
        std::vector<int64_t> chosen = best(Vector(probs.begin() + n * s.E, probs.begin() + (n + 1) * s.E), s.k);
        for (int64_t i = 0; i < s.k; i++)
            tokens[size_t(balanced ? (n * s.k + i) % s.E : chosen[size_t(i)])].push_back(n);
    }
    return tokens;
}

// choices.k is s.k.
inline Routing choose_experts_oracle(const Sizes& s, const Vector& probs, const ExpertChoices& choices) {
    Routing r(s);
    const bool by_gate = choices.order == DropOrder::gate && !choices.balanced;
    int64_t e = 0;
    for (const std::vector<int64_t>& all : comers(s, probs, choices.balanced)) {
        r.counts.push_back(double(all.size()));
        Vector gates;
        for (int64_t n : all) gates.push_back(by_gate ? probs[size_t(n * s.E + e)] : 0.0);
        for (int64_t n : all) r.where[size_t(n * s.E + e)] = -2;
        int64_t row = e * s.S;
        for (int64_t i : best(gates, std::min(s.S, int64_t(all.size())))) r.put(all[size_t(i)] * s.E + e, row++);
        e++;
    }
    return r;
}

inline Routing dropless_oracle(const Sizes& s, const Vector& probs, bool balanced = false) {
    const int64_t tile = ragged_tile();
    Routing r(s, s.N() * s.k + s.E * (tile - 1));
    int64_t begin = 0, e = 0;
    for (const std::vector<int64_t>& all : comers(s, probs, balanced)) {
        r.counts.push_back(double(all.size()));
        r.offsets.push_back(double(begin));
        for (size_t i = 0; i < all.size(); i++) r.put(all[i] * s.E + e, begin + int64_t(i));
        begin += (int64_t(all.size()) + tile - 1) / tile * tile;
        e++;
    }
    r.offsets.push_back(double(begin));
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
                for (int64_t i : best(values, s.k))
                    r.put(members[size_t(i)] * s.E + e, e * s.S + (t * sets + j) * s.k + rank++);
            }
    return r;
}

// Device tensors of a routing that an oracle made.
struct Tables {
    Tensor slots, where;
    Tables(Device& d, const Sizes& s, const Routing& r)
        : slots(d.tensor(DType::i32, r.slots_shape(s), r.slots, "slots")),
          where(d.tensor(DType::i32, {s.B, s.T, s.E}, r.where, "where")) {}
};

// y: rows of C, NaN where they are empty.
struct Inputs {
    Vector x, y, weights, before;
    Inputs(const Sizes& s, DType act, const Routing& r)
        : x(rounded(act, random_vector(s.N() * s.C, 3))), y(rounded(act, random_vector(r.rows() * s.C, 4))),
          weights(rounded(statistics_dtype(act), random_vector(s.N() * s.E, 5))),
          before(rounded(act, random_vector(s.N() * s.C, 6))) {
        for (size_t i = 0; i < y.size(); i++)
            if (r.slots[i / size_t(s.C)] < 0) y[i] = nan;
    }
};

// One with a capacity, one without. On a GPU every expert's rows are then padded to a tile: many rows for many experts.
inline std::vector<Routing> some_routings(const Sizes& s) {
    const Vector probs = make_probs(Probs::ties, s.N(), s.E, 7);
    std::vector<Routing> routings = {choose_experts_oracle(s, probs, {.k = s.k})};
    if (!small_sizes() || s.E < 8) routings.push_back(dropless_oracle(s, probs));
    return routings;
}

}  // namespace llmc::test
