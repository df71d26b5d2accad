// Routing of sparse mixtures of experts on the CPU: which tokens go to which rows of which experts.
//
// Both choices take the best of some candidates by one strict order (larger prob, then lower index, NaN last), so that
// the result is one for any number of threads, and leaves the chosen in ascending order in an expert's rows.
#include "llmc/ops/checks/moe.h"
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

namespace {

template <class A>
struct Candidate {
    A prob;
    int32_t index;  // of an expert, or of a pair n * E + e
};

template <class A>
bool better(const Candidate<A>& a, const Candidate<A>& b) {
    const bool a_nan = std::isnan(a.prob), b_nan = std::isnan(b.prob);
    if (a_nan != b_nan) return b_nan;
    if (!a_nan && a.prob != b.prob) return a.prob > b.prob;
    return a.index < b.index;
}

template <class A>
bool comes_first(const Candidate<A>& a, const Candidate<A>& b) {
    return a.index < b.index;
}

// Brings the k best of n candidates to the front, in any order.
template <class A>
void select_best(Candidate<A>* candidates, int64_t n, int64_t k) {
    if (k == 1 && n > 0) return std::swap(*candidates, *std::min_element(candidates, candidates + n, better<A>));
    if (k < n) std::nth_element(candidates, candidates + k, candidates + n, better<A>);
}

// True if a candidate that comes later is better.
template <class A>
bool beats(A later, A earlier) {
    return !(later <= earlier) && !std::isnan(later);
}

constexpr int64_t most_inserted = 8;  // for more of the best, inserting costs more than selecting

// chosen[0 .. k) = the k best experts of one token, in any order. scratch: E candidates.
template <class A>
void choose_best(int32_t* chosen, const A* probs, int64_t experts, int64_t k, Candidate<A>* scratch) {
    if (k <= most_inserted) {
        int64_t found = 0;  // best first
        for (int64_t e = 0; e < experts; e++) {
            if (found == k && !beats(probs[e], scratch[k - 1].prob)) continue;
            int64_t at = found < k ? found++ : k - 1;
            for (; at > 0 && beats(probs[e], scratch[at - 1].prob); at--) scratch[at] = scratch[at - 1];
            scratch[at] = {probs[e], int32_t(e)};
        }
    } else {
        for (int64_t e = 0; e < experts; e++) scratch[e] = {probs[e], int32_t(e)};
        select_best(scratch, experts, k);
    }
    for (int64_t i = 0; i < k; i++) chosen[i] = scratch[i].index;
}

// Tokens are cut into this many chunks, each with its own counts, so that lists by expert are made in parallel.
constexpr int64_t token_chunks = 64;

// chosen [N,k] = the experts of every token, counts[chunk][e] = how often; where = -1 everywhere.
template <class A>
void choose_and_count(int32_t* chosen, int64_t* counts, int32_t* where, const A* probs, const MoeShape& s,
                      const ExpertChoices& choices, Candidate<A>* scratch, int threads) {
    const int64_t k = choices.k;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t chunk = 0; chunk < token_chunks; chunk++) {
        int64_t* count = counts + chunk * s.experts;
        std::fill_n(count, s.experts, 0);
        auto [begin, end] = part_of(s.tokens(), chunk, token_chunks);
        std::fill(where + begin * s.experts, where + end * s.experts, -1);
        for (int64_t n = begin; n < end; n++) {
            int32_t* of_token = chosen + n * k;
            if (choices.balanced)
                for (int64_t i = 0; i < k; i++) of_token[i] = int32_t((n * k + i) % s.experts);
            else
                choose_best(of_token, probs + n * s.experts, s.experts, k, scratch + omp_get_thread_num() * s.experts);
            for (int64_t i = 0; i < k; i++) count[of_token[i]]++;
        }
    }
}

// From counts[chunk][e] to where the chunk's part of the expert's list begins; lists[e] .. lists[e + 1] is its whole.
void begin_lists(int64_t* lists, int64_t* counts, int32_t* totals, int64_t experts) {
    int64_t sum = 0;
    for (int64_t e = 0; e < experts; e++) {
        lists[e] = sum;
        for (int64_t chunk = 0; chunk < token_chunks; chunk++) sum += std::exchange(counts[chunk * experts + e], sum);
        totals[e] = int32_t(sum - lists[e]);
    }
    lists[experts] = sum;
}

// The rows of expert e are rows[e] .. rows[e + 1]: S for each, or, if offsets are wanted, as many as it needs.
void begin_rows(int64_t* rows, int32_t* offsets, const int32_t* counts, const MoeShape& s) {
    rows[0] = 0;
    for (int64_t e = 0; e < s.experts; e++)
        rows[e + 1] = rows[e] + (offsets ? round_up(counts[e], ragged_tile()) : s.capacity());
    if (offsets)
        for (int64_t e = 0; e <= s.experts; e++) offsets[e] = int32_t(rows[e]);
}

// Lists, by expert, the pairs of the tokens that chose it, in the order of n.
template <class A>
void list_pairs(Candidate<A>* listed, int64_t* next, const int32_t* chosen, const A* probs, const MoeShape& s,
                int64_t k, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t chunk = 0; chunk < token_chunks; chunk++) {
        auto [begin, end] = part_of(s.tokens(), chunk, token_chunks);
        for (int64_t i = begin * k; i < end * k; i++) {
            const int64_t e = chosen[i], pair = i / k * s.experts + e;
            listed[next[chunk * s.experts + e]++] = {probs[pair], int32_t(pair)};
        }
    }
}

// One expert keeps as many of its `count` listed tokens as it has rows.
template <class A>
void fill_rows(int32_t* slots, int32_t* where, Candidate<A>* listed, int64_t count, int64_t begin, int64_t end,
               bool by_gate) {
    const int64_t kept = std::min(count, end - begin);
    if (by_gate && kept < count) {
        select_best(listed, count, kept);
        std::sort(listed, listed + kept, comes_first<A>);
    }
    for (int64_t i = 0; i < kept; i++) {
        slots[begin + i] = listed[i].index;
        where[listed[i].index] = int32_t(begin + i);
    }
    std::fill(slots + begin + kept, slots + end, -1);
    for (int64_t i = kept; i < count; i++) where[listed[i].index] = -2;
}

}  // namespace

void moe_choose_experts(Tensor slots, Tensor where, Tensor counts, Tensor offsets, Tensor probs,
                        const ExpertChoices& choices, Context& ctx) {
    const MoeShape s = check_choose_experts(slots, where, counts, offsets, probs, choices);
    dispatch_arithmetic(probs, "probs", [&](auto zero) {
        using A = decltype(zero);
        const int64_t k = choices.k, experts = s.experts, chosen_pairs = s.tokens() * k;
        const int64_t integers = token_chunks * experts + 2 * (experts + 1);
        const int64_t scratch = integers * int64_t(sizeof(int64_t)) + chosen_pairs * int64_t(sizeof(int32_t)) +
                                (chosen_pairs + experts * ctx.threads) * int64_t(sizeof(Candidate<A>));
        Op op(ctx, "moe_choose_experts", 0, scratch, total_bytes({slots, where, counts, offsets, probs}));
        if (!op.run) return;
        int64_t *chunk_counts = static_cast<int64_t*>(op.workspace), *lists = chunk_counts + token_chunks * experts;
        int64_t* rows = lists + experts + 1;
        auto* listed = reinterpret_cast<Candidate<A>*>(rows + experts + 1);
        auto* chosen = reinterpret_cast<int32_t*>(listed + chosen_pairs + experts * ctx.threads);
        int32_t *slot = ptr<int32_t>(slots), *at = ptr<int32_t>(where);
        choose_and_count(chosen, chunk_counts, at, ptr<A>(probs), s, choices, listed + chosen_pairs, ctx.threads);
        begin_lists(lists, chunk_counts, ptr<int32_t>(counts), experts);
        begin_rows(rows, ptr<int32_t>(offsets), ptr<int32_t>(counts), s);
        list_pairs(listed, chunk_counts, chosen, ptr<A>(probs), s, k, ctx.threads);
        const bool by_gate = choices.order == DropOrder::gate && !choices.balanced;
#pragma omp parallel for schedule(dynamic) num_threads(ctx.threads)
        for (int64_t e = 0; e < experts; e++)
            fill_rows(slot, at, listed + lists[e], lists[e + 1] - lists[e], rows[e], rows[e + 1], by_gate);
        std::fill(slot + rows[experts], slot + s.rows, -1);
    });
}

void moe_choose_tokens(Tensor slots, Tensor where, Tensor probs, int64_t k, int64_t group, Context& ctx) {
    const MoeShape s = check_choose_tokens(slots, where, probs, k, group);
    dispatch_arithmetic(probs, "probs", [&](auto zero) {
        using A = decltype(zero);
        const CandidateSets sets = candidate_sets(s, group);
        Op op(ctx, "moe_choose_tokens", 0, sets.size * ctx.threads * int64_t(sizeof(Candidate<A>)),
              total_bytes({slots, where, probs}));
        if (!op.run) return;
        const A* p = ptr<A>(probs);
        int32_t *slot = ptr<int32_t>(slots), *at = ptr<int32_t>(where);
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t n = 0; n < s.tokens(); n++) std::fill_n(at + n * s.experts, s.experts, -1);
            // The experts of a set follow each other: they read the same cache lines.
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t item = 0; item < sets.count() * s.experts; item++) {
            const int64_t set = item / s.experts, e = item % s.experts;
            auto* candidates = static_cast<Candidate<A>*>(op.workspace) + omp_get_thread_num() * sets.size;
            for (int64_t i = 0; i < sets.size; i++) {
                const int64_t pair = sets.token(set, i) * s.experts + e;
                candidates[i] = {p[pair], int32_t(pair)};
            }
            select_best(candidates, sets.size, k);
            std::sort(candidates, candidates + k, comes_first<A>);
            const int64_t begin = e * s.capacity() + set * k;
            for (int64_t rank = 0; rank < k; rank++) {
                slot[begin + rank] = candidates[rank].index;
                at[candidates[rank].index] = int32_t(begin + rank);
            }
        }
    });
}

}  // namespace llmc
