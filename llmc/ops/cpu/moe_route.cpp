// Routing of sparse mixtures of experts on the CPU: which tokens go to which slots of which experts, and how evenly.
//
// Both choices take the best of some candidates by one strict order (larger prob, then lower index, NaN last), so that
// the result is one for any number of threads, and leaves the chosen in ascending order in the slots.
#include "llmc/ops/checks/moe.h"
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

namespace {

template <class A>
struct Candidate {
    A prob;
    int32_t index;
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

// One token: where = 0 at its k best experts, -1 at all others.
template <class A>
void mark_best_experts(int32_t* where, const A* probs, int64_t experts, int64_t k, Candidate<A>* scratch) {
    for (int64_t e = 0; e < experts; e++) scratch[e] = {probs[e], int32_t(e)};
    select_best(scratch, experts, k);
    std::fill_n(where, experts, -1);
    for (int64_t i = 0; i < k; i++) where[scratch[i].index] = 0;
}

// Tokens are cut into this many chunks, each with its own counts, so that lists by expert are made in parallel.
constexpr int64_t token_chunks = 64;

// counts[chunk][e], and where = 0 at the experts that a token chose, else -1.
template <class A>
void choose_and_count(int64_t* counts, int32_t* where, const A* probs, const MoeShape& s, int64_t k,
                      Candidate<A>* scratch, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t chunk = 0; chunk < token_chunks; chunk++) {
        int64_t* count = counts + chunk * s.experts;
        std::fill_n(count, s.experts, 0);
        auto [begin, end] = part_of(s.tokens(), chunk, token_chunks);
        for (int64_t n = begin; n < end; n++) {
            int32_t* row = where + n * s.experts;
            mark_best_experts(row, probs + n * s.experts, s.experts, k, scratch + omp_get_thread_num() * s.experts);
            for (int64_t e = 0; e < s.experts; e++) count[e] += row[e] == 0;
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

// Lists, by expert, the tokens that chose it, in the order of n.
template <class A>
void list_tokens(Candidate<A>* listed, int64_t* next, const int32_t* where, const A* probs, const MoeShape& s,
                 int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t chunk = 0; chunk < token_chunks; chunk++) {
        auto [begin, end] = part_of(s.tokens(), chunk, token_chunks);
        for (int64_t n = begin; n < end; n++)
            for (int64_t e = 0; e < s.experts; e++)
                if (int64_t at = n * s.experts + e; where[at] == 0)
                    listed[next[chunk * s.experts + e]++] = {probs[at], int32_t(n)};
    }
}

// One expert keeps as many of its `count` listed tokens as it has slots.
template <class A>
void fill_slots(int32_t* slots, int32_t* where, Candidate<A>* listed, int64_t count, DropOrder order,
                const MoeShape& s) {
    const int64_t kept = std::min(count, s.slots);
    if (order == DropOrder::gate && kept < count) {
        select_best(listed, count, kept);
        std::sort(listed, listed + kept, comes_first<A>);
    }
    for (int64_t i = 0; i < kept; i++) slots[i] = listed[i].index, where[listed[i].index * s.experts] = int32_t(i);
    std::fill(slots + kept, slots + s.slots, -1);
    for (int64_t i = kept; i < count; i++) where[listed[i].index * s.experts] = -1;
}

}  // namespace

void moe_choose_experts(Tensor slots, Tensor where, Tensor counts, Tensor probs, int64_t k, DropOrder order,
                        Context& ctx) {
    const MoeShape s = check_choose_experts(slots, where, counts, probs, k);
    dispatch_arithmetic(probs, "probs", [&](auto zero) {
        using A = decltype(zero);
        const int64_t candidates = s.tokens() * k + s.experts * ctx.threads;
        const int64_t integers = token_chunks * s.experts + s.experts + 1;
        const int64_t scratch = integers * int64_t(sizeof(int64_t)) + candidates * int64_t(sizeof(Candidate<A>));
        Op op(ctx, "moe_choose_experts", 0, scratch, total_bytes({slots, where, counts, probs}));
        if (!op.run) return;
        int64_t *chunk_counts = static_cast<int64_t*>(op.workspace), *lists = chunk_counts + token_chunks * s.experts;
        auto* listed = reinterpret_cast<Candidate<A>*>(lists + s.experts + 1);
        int32_t *slot = ptr<int32_t>(slots), *at = ptr<int32_t>(where);
        choose_and_count(chunk_counts, at, ptr<A>(probs), s, k, listed + s.tokens() * k, ctx.threads);
        begin_lists(lists, chunk_counts, ptr<int32_t>(counts), s.experts);
        list_tokens(listed, chunk_counts, at, ptr<A>(probs), s, ctx.threads);
#pragma omp parallel for schedule(dynamic) num_threads(ctx.threads)
        for (int64_t e = 0; e < s.experts; e++)
            fill_slots(slot + e * s.slots, at + e, listed + lists[e], lists[e + 1] - lists[e], order, s);
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
            const int64_t set = item / s.experts, e = item % s.experts, first = sets.first_token(set);
            auto* candidates = static_cast<Candidate<A>*>(op.workspace) + omp_get_thread_num() * sets.size;
            for (int64_t i = 0; i < sets.size; i++) {
                const int64_t n = first + i * sets.step();
                candidates[i] = {p[n * s.experts + e], int32_t(n)};
            }
            select_best(candidates, sets.size, k);
            std::sort(candidates, candidates + k, comes_first<A>);
            for (int64_t rank = 0, j = set * k; rank < k; rank++, j++) {
                slot[e * s.slots + j] = candidates[rank].index;
                at[candidates[rank].index * s.experts + e] = int32_t(j);
            }
        }
    });
}

void moe_balance(Tensor stats, Tensor probs, Tensor counts, Tensor slots, Context& ctx) {
    const MoeShape s = check_balance(stats, probs, counts, slots);
    dispatch_arithmetic(probs, "probs", [&](auto zero) {
        using A = decltype(zero);
        Op op(ctx, "moe_balance", balance_flops(s), 0, total_bytes({stats, probs, counts, slots}));
        if (!op.run) return;
        const A* p = ptr<A>(probs);
        const int32_t *count = ptr<int32_t>(counts), *slot = ptr<int32_t>(slots);
        // sum_n sum_e counts_e probs[n,e] in fixed chunks: the same for any number of threads
        double weighted[token_chunks];
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t chunk = 0; chunk < token_chunks; chunk++) {
            double sum = 0;
            auto [begin, end] = part_of(s.tokens(), chunk, token_chunks);
            for (int64_t n = begin; n < end; n++)
                for (int64_t e = 0; e < s.experts; e++) sum += double(count[e]) * double(p[n * s.experts + e]);
            weighted[chunk] = sum;
        }
        int64_t kept = 0, total = 0;
#pragma omp parallel for schedule(static) num_threads(ctx.threads) reduction(+ : kept)
        for (int64_t i = 0; i < s.all_slots(); i++) kept += slot[i] >= 0;
        double sum = 0;
        for (double w : weighted) sum += w;
        for (int64_t e = 0; e < s.experts; e++) total += count[e];
        const auto [smallest, largest] = std::minmax_element(count, count + s.experts);
        const double tokens = double(s.tokens()), experts = double(s.experts), pairs = double(total);
        double* out = ptr<double>(stats);
        out[0] = tokens > 0 ? experts * sum / (tokens * tokens) : 0;
        out[1] = total > 0 ? double(total - kept) / pairs : 0;
        out[2] = total > 0 ? double(*smallest) * experts / pairs : 0;
        out[3] = total > 0 ? double(*largest) * experts / pairs : 0;
    });
}

void moe_balance_backward(Tensor dprobs, Tensor counts, double scale, Context& ctx) {
    const MoeShape s = check_balance_backward(dprobs, counts);
    dispatch_arithmetic(dprobs, "dprobs", [&](auto zero) {
        using A = decltype(zero);
        Op op(ctx, "moe_balance_backward", balance_flops(s), s.experts * int64_t(sizeof(A)),
              total_bytes({dprobs, dprobs, counts}));
        if (!op.run || s.tokens() == 0) return;
        const double tokens = double(s.tokens()), factor = scale * double(s.experts) / (tokens * tokens);
        A *gradient = static_cast<A*>(op.workspace), *dp = ptr<A>(dprobs);
        for (int64_t e = 0; e < s.experts; e++) gradient[e] = A(factor * double(ptr<int32_t>(counts)[e]));
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t n = 0; n < s.tokens(); n++) {
            A* row = dp + n * s.experts;
#pragma omp simd
            for (int64_t e = 0; e < s.experts; e++) row[e] += gradient[e];
        }
    });
}

}  // namespace llmc
