// What the ops of sparse mixtures of experts check and share: the sizes of a routing, and what the ops cost.
#pragma once
#include "llmc/ops/checks/mot.h"

namespace llmc {

struct MoeShape {
    int64_t sequences, positions, experts;  // B, T, E
    int64_t slots;                          // S: of every expert
    int64_t columns;                        // C; 0 where no rows are moved

    int64_t tokens() const { return sequences * positions; }
    int64_t pairs() const { return tokens() * experts; }     // elements of probs and `where`
    int64_t all_slots() const { return experts * slots; }    // elements of slots
    int64_t moved() const { return all_slots() * columns; }  // elements of gathered rows
};

// The candidate sets of expert choice: set j of position t, of `sets` per position, holds the tokens
// (j + i * sets) * positions + t, i < size, ascending. One set of all tokens is {1, 1, N}: token i.
struct CandidateSets {
    int64_t positions, sets, size;

    int64_t count() const { return positions * sets; }
    // Of set number t * sets + j.
    int64_t first_token(int64_t set) const { return set % sets * positions + set / sets; }
    int64_t step() const { return sets * positions; }
};

inline CandidateSets candidate_sets(const MoeShape& s, int64_t group) {
    if (group == 0) return {1, 1, s.tokens()};
    return {s.positions, s.sequences / group, group};
}

// Sizes from a tensor [B,T,E] (probs, weights or where) and one [E,S,...] (slots, or rows in slots).
inline MoeShape moe_shape(const Tensor& pairs, const char* pairs_are, const Tensor& slots, const char* slots_are) {
    if (pairs.shape.rank != 3 || pairs.shape[2] < 1)
        run_error(pairs_are, " ", pairs.name, " has shape ", pairs.shape.text(),
                  ", expected [sequences, positions, experts]");
    if (slots.shape.rank < 2)
        run_error(slots_are, " ", slots.name, " has shape ", slots.shape.text(), ", expected [experts, slots, ...]");
    const MoeShape s{pairs.shape[0], pairs.shape[1], pairs.shape[2], slots.shape[1], 0};
    if (s.tokens() > INT32_MAX || s.slots > INT32_MAX)
        run_error(pairs_are, " ", pairs.name, ": ", s.tokens(), " tokens and ", s.slots,
                  " slots per expert, routing tables count to 2147483647");
    return s;
}

inline MoeShape check_routing(const Tensor& slots, const Tensor& where, const Tensor& probs) {
    const MoeShape s = moe_shape(probs, "probs", slots, "slots");
    check(probs, probs.dtype, probs.shape, "probs");
    check(slots, DType::i32, {s.experts, s.slots}, "slots");
    check(where, DType::i32, probs.shape, "where");
    return s;
}

inline MoeShape check_choose_experts(const Tensor& slots, const Tensor& where, const Tensor& counts,
                                     const Tensor& probs, int64_t k) {
    const MoeShape s = check_routing(slots, where, probs);
    check(counts, DType::i32, {s.experts}, "counts");
    if (k < 1 || k > s.experts)
        run_error("probs ", probs.name, ": a token cannot choose ", k, " of ", s.experts, " experts");
    return s;
}

inline MoeShape check_choose_tokens(const Tensor& slots, const Tensor& where, const Tensor& probs, int64_t k,
                                    int64_t group) {
    const MoeShape s = check_routing(slots, where, probs);
    if (group < 0 || (group > 0 && s.sequences % group != 0))
        run_error("probs ", probs.name, " ", probs.shape.text(), ": ", s.sequences,
                  " sequences cannot be cut into groups of ", group);
    const CandidateSets sets = candidate_sets(s, group);
    if (k < 0 || k > sets.size)
        run_error("probs ", probs.name, ": an expert cannot choose ", k, " of ", sets.size, " tokens");
    check(slots, DType::i32, {s.experts, sets.count() * k}, "slots");
    return s;
}

// Shapes of weights [B,T,E] (if given) and rows [E,S,C] beside tokens [B,T,C].
inline MoeShape check_moved_rows(MoeShape s, const Tensor& tokens, const char* tokens_are, const Tensor& rows,
                                 const char* rows_are, const Tensor& weights) {
    s.columns = last_dim(tokens);
    check(tokens, tokens.dtype, {s.sequences, s.positions, s.columns}, tokens_are);
    check(rows, tokens.dtype, {s.experts, s.slots, s.columns}, rows_are);
    if (weights) check(weights, arithmetic_dtype(tokens.dtype), {s.sequences, s.positions, s.experts}, "weights");
    return s;
}

inline MoeShape check_gather(const Tensor& gathered, const Tensor& x, const Tensor& slots, const Tensor& weights) {
    if (x.shape.rank != 3) run_error("x ", x.name, " has shape ", x.shape.text(), ", expected [B, T, C]");
    if (slots.shape.rank != 2) run_error("slots ", slots.name, " has shape ", slots.shape.text(), ", expected [E, S]");
    check(slots, DType::i32, slots.shape, "slots");
    const MoeShape s{x.shape[0], x.shape[1], slots.shape[0], slots.shape[1], 0};
    return check_moved_rows(s, x, "x", gathered, "gathered", weights);
}

inline MoeShape check_scatter(const Tensor& out, const Tensor& y, const Tensor& where, const Tensor& weights) {
    const MoeShape s = moe_shape(where, "where", y, "y");
    check(where, DType::i32, where.shape, "where");
    return check_moved_rows(s, out, "out", y, "y", weights);
}

inline MoeShape check_moe_weights_backward(const Tensor& dweights, const Tensor& dout, const Tensor& y,
                                           const Tensor& where) {
    const MoeShape s = moe_shape(where, "where", y, "y");
    check(where, DType::i32, where.shape, "where");
    check(dweights, arithmetic_dtype(dout.dtype), where.shape, "dweights");
    return check_moved_rows(s, dout, "dout", y, "y", {});
}

inline MoeShape check_balance(const Tensor& stats, const Tensor& probs, const Tensor& counts, const Tensor& slots) {
    const MoeShape s = moe_shape(probs, "probs", slots, "slots");
    check(probs, probs.dtype, probs.shape, "probs");
    check(counts, DType::i32, {s.experts}, "counts");
    check(slots, DType::i32, {s.experts, s.slots}, "slots");
    check(stats, DType::f64, {4}, "stats");
    return s;
}

inline MoeShape check_balance_backward(const Tensor& dprobs, const Tensor& counts) {
    const MoeShape s = moe_shape(dprobs, "dprobs", dprobs, "dprobs");
    check(dprobs, dprobs.dtype, dprobs.shape, "dprobs");
    check(counts, DType::i32, {s.experts}, "counts");
    return {s.sequences, s.positions, s.experts, 0, 0};
}

// FLOPs: a multiplication per moved element with weights, an addition where rows are summed.
inline int64_t gather_flops(const MoeShape& s, bool weighted) { return weighted ? s.moved() : 0; }
inline int64_t scatter_flops(const MoeShape& s, bool weighted) { return (weighted ? 2 : 1) * s.moved(); }
inline int64_t moe_weights_flops(const MoeShape& s) { return 2 * s.moved(); }
inline int64_t balance_flops(const MoeShape& s) { return 2 * s.pairs(); }

}  // namespace llmc
