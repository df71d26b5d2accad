// What the ops of sparse mixtures of experts check and share: the sizes of a routing, and what the ops cost.
#pragma once
#include "llmc/ops/checks/mot.h"

namespace llmc {

struct MoeShape {
    int64_t sequences, positions, experts;  // B, T, E
    int64_t rows;                           // R: of all experts together
    int64_t columns;                        // C; 0 where no rows are moved

    int64_t tokens() const { return sequences * positions; }
    int64_t pairs() const { return tokens() * experts; }  // elements of probs and `where`
    int64_t moved() const { return rows * columns; }      // elements of the experts' rows
    int64_t capacity() const { return rows / experts; }   // S: rows of every expert, where all have as many
};

// The candidate sets of expert choice: set j of position t, of `sets` per position, holds the tokens
// (j + i * sets) * positions + t, i < size, ascending. One set of all tokens is {1, 1, N}: token i.
struct CandidateSets {
    int64_t positions, sets, size;

    LLMC_HOST_DEVICE int64_t count() const { return positions * sets; }
    // Of set number t * sets + j.
    LLMC_HOST_DEVICE int64_t first_token(int64_t set) const { return set % sets * positions + set / sets; }
    LLMC_HOST_DEVICE int64_t step() const { return sets * positions; }
    // Its i-th token.
    LLMC_HOST_DEVICE int64_t token(int64_t set, int64_t i) const { return first_token(set) + i * step(); }
};

inline CandidateSets candidate_sets(const MoeShape& s, int64_t group) {
    if (group == 0) return {1, 1, s.tokens()};
    return {s.positions, s.sequences / group, group};
}

// Sizes from a tensor [B,T,E] (probs, weights or where) and the number of the experts' rows.
inline MoeShape moe_shape(const Tensor& pairs, const char* what, int64_t rows) {
    if (pairs.shape.rank != 3 || pairs.shape[2] < 1)
        run_error(what, " ", pairs.name, " has shape ", pairs.shape.text(),
                  ", expected [sequences, positions, experts]");
    const MoeShape s{pairs.shape[0], pairs.shape[1], pairs.shape[2], rows, 0};
    if (s.pairs() > INT32_MAX || s.rows > INT32_MAX)
        run_error(what, " ", pairs.name, ": ", s.tokens(), " tokens x ", s.experts, " experts with ", s.rows,
                  " rows, but routing tables can index at most 2147483647");
    return s;
}

inline MoeShape check_routing(const Tensor& slots, const Tensor& where, const Tensor& probs) {
    const MoeShape s = moe_shape(probs, "probs", slots.numel());
    check(probs, probs.dtype, probs.shape, "probs");
    check(where, DType::i32, probs.shape, "where");
    return s;
}

// slots [E,S], whatever S is.
inline void check_capacity(const Tensor& slots, const MoeShape& s) {
    if (slots.shape.rank != 2 || slots.shape[0] != s.experts)
        run_error("slots ", slots.name, " has shape ", slots.shape.text(), ", expected [", s.experts,
                  " experts, slots]");
    check(slots, DType::i32, slots.shape, "slots");
}

inline MoeShape check_choose_experts(const Tensor& slots, const Tensor& where, const Tensor& counts,
                                     const Tensor& offsets, const Tensor& probs, const ExpertChoices& choices) {
    const MoeShape s = check_routing(slots, where, probs);
    check(counts, DType::i32, {s.experts}, "counts");
    if (choices.k < 1 || choices.k > s.experts)
        run_error("probs ", probs.name, ": a token cannot choose ", choices.k, " of ", s.experts, " experts");
    if (!offsets) {
        check_capacity(slots, s);
        return s;
    }
    check(offsets, DType::i32, {s.experts + 1}, "offsets");
    check(slots, DType::i32, {ragged_rows(s.tokens() * choices.k, s.experts)}, "slots");
    return s;
}

inline MoeShape check_choose_tokens(const Tensor& slots, const Tensor& where, const Tensor& probs, int64_t k,
                                    int64_t group) {
    const MoeShape s = check_routing(slots, where, probs);
    check_capacity(slots, s);
    if (group < 0 || (group > 0 && s.sequences % group != 0))
        run_error("probs ", probs.name, " ", probs.shape.text(), ": ", s.sequences,
                  " sequences cannot be cut into groups of ", group);
    const CandidateSets sets = candidate_sets(s, group);
    if (k < 0 || k > sets.size)
        run_error("probs ", probs.name, ": an expert cannot choose ", k, " of ", sets.size, " tokens");
    check(slots, DType::i32, {s.experts, sets.count() * k}, "slots");
    return s;
}

// Shapes of weights [B,T,E] (if given) and R rows of C, under any shape, beside tokens [B,T,C].
inline MoeShape check_moved_rows(MoeShape s, const Tensor& tokens, const char* tokens_are, const Tensor& rows,
                                 const char* rows_are, const Tensor& weights) {
    s.columns = last_dim(tokens);
    check(tokens, tokens.dtype, {s.sequences, s.positions, s.columns}, tokens_are);
    check(rows, tokens.dtype, rows.shape, rows_are);
    if (last_dim(rows) != s.columns || rows.numel() != s.moved())
        run_error(rows_are, " ", rows.name, " has shape ", rows.shape.text(), ", expected ", s.rows, " rows of ",
                  s.columns);
    if (weights) check(weights, arithmetic_dtype(tokens.dtype), {s.sequences, s.positions, s.experts}, "weights");
    return s;
}

inline MoeShape check_gather(const Tensor& gathered, const Tensor& x, const Tensor& slots, int64_t experts,
                             const Tensor& weights) {
    if (x.shape.rank != 3) run_error("x ", x.name, " has shape ", x.shape.text(), ", expected [B, T, C]");
    if (experts < 1) run_error("slots ", slots.name, ": a routing to ", experts, " experts");
    check(slots, DType::i32, slots.shape, "slots");
    const MoeShape s{x.shape[0], x.shape[1], experts, slots.numel(), 0};
    return check_moved_rows(s, x, "x", gathered, "gathered", weights);
}

// The rows y of the experts beside the tokens that they are summed to, or their gradient.
inline MoeShape check_summed_rows(const Tensor& tokens, const char* tokens_are, const Tensor& y, const Tensor& where,
                                  const Tensor& weights) {
    const MoeShape s = moe_shape(where, "where", y.numel() / std::max<int64_t>(1, last_dim(y)));
    check(where, DType::i32, where.shape, "where");
    return check_moved_rows(s, tokens, tokens_are, y, "y", weights);
}

inline MoeShape check_scatter(const Tensor& out, const Tensor& y, const Tensor& where, const Tensor& weights) {
    return check_summed_rows(out, "out", y, where, weights);
}

inline MoeShape check_moe_weights_backward(const Tensor& dweights, const Tensor& dout, const Tensor& y,
                                           const Tensor& where) {
    check(dweights, arithmetic_dtype(dout.dtype), where.shape, "dweights");
    return check_summed_rows(dout, "dout", y, where, {});
}

inline MoeShape check_balance(const Tensor& stats, const Tensor& probs, const Tensor& counts, const Tensor& slots) {
    const MoeShape s = moe_shape(probs, "probs", slots.numel());
    check(probs, probs.dtype, probs.shape, "probs");
    check(counts, DType::i32, {s.experts}, "counts");
    check(slots, DType::i32, slots.shape, "slots");
    check(stats, DType::f64, {4}, "stats");
    return s;
}

inline MoeShape check_balance_backward(const Tensor& dprobs, const Tensor& counts) {
    const MoeShape s = moe_shape(dprobs, "dprobs", 0);
    check(dprobs, dprobs.dtype, dprobs.shape, "dprobs");
    check(counts, DType::i32, {s.experts}, "counts");
    return s;
}

inline MoeShape check_renormalize(const Tensor& gates, const Tensor& probs, const Tensor& where) {
    const MoeShape s = moe_shape(probs, "probs", 0);
    check(probs, probs.dtype, probs.shape, "probs");
    check(where, DType::i32, probs.shape, "where");
    check(gates, probs.dtype, probs.shape, "gates");
    return s;
}

inline MoeShape check_renormalize_backward(const Tensor& dprobs, const Tensor& dgates, const Tensor& gates,
                                           const Tensor& probs, const Tensor& where) {
    const MoeShape s = check_renormalize(gates, probs, where);
    check(dgates, probs.dtype, probs.shape, "dgates");
    check(dprobs, probs.dtype, probs.shape, "dprobs");
    return s;
}

inline MoeShape check_z_loss(const Tensor& loss, const Tensor& lse, const Tensor& logits) {
    const MoeShape s = moe_shape(logits, "logits", 0);
    check(logits, logits.dtype, logits.shape, "logits");
    check(lse, logits.dtype, {s.sequences, s.positions}, "lse");
    if (loss) check(loss, DType::f64, {1}, "loss");
    return s;
}

inline MoeShape check_z_loss_backward(const Tensor& dlogits, const Tensor& lse, const Tensor& probs) {
    const MoeShape s = moe_shape(probs, "probs", 0);
    check(probs, probs.dtype, probs.shape, "probs");
    check(lse, probs.dtype, {s.sequences, s.positions}, "lse");
    check(dlogits, probs.dtype, probs.shape, "dlogits");
    return s;
}

// FLOPs: a multiplication per moved element with weights, an addition where rows are summed.
inline int64_t gather_flops(const MoeShape& s, bool weighted) { return weighted ? s.moved() : 0; }
inline int64_t scatter_flops(const MoeShape& s, bool weighted) { return (weighted ? 2 : 1) * s.moved(); }
inline int64_t moe_weights_flops(const MoeShape& s) { return 2 * s.moved(); }
inline int64_t balance_flops(const MoeShape& s) { return 2 * s.pairs(); }
inline int64_t renormalize_flops(const MoeShape& s) { return 2 * s.pairs(); }
inline int64_t renormalize_backward_flops(const MoeShape& s) { return 5 * s.pairs(); }
inline int64_t z_loss_flops(const MoeShape& s) { return 4 * s.pairs(); }
inline int64_t z_loss_backward_flops(const MoeShape& s) { return 2 * s.pairs(); }

}  // namespace llmc
