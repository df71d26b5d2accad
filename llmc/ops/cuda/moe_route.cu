// Routing of sparse mixtures of experts on the GPU: token choice (Fedus et al. 2021), expert choice (Zhou et al. 2022).
//
// Probs lie experts first, an expert looks along the tokens. So three kernels in a row: the candidates of every expert
// as lists of keys, each list cut down to its best, and the outcome told to the tokens. Keys are integers ordered like
// the probs, 0 = no candidate. Small groups of expert choice fit into shared memory and need one kernel only. Without a
// capacity, two more kernels find out first where the rows of every expert begin. Nothing depends on the order of
// threads: rows follow from counting, without atomics.
#include "llmc/ops/checks/moe.h"
#include "llmc/ops/cuda/cuda.cuh"
#include "llmc/ops/cuda/ragged.h"

namespace llmc {

namespace {

constexpr int tile = warp_size, tile_warps = 8, tile_block = tile_warps * warp_size;
constexpr int keys_per_thread = Pack<uint32_t>::size;
constexpr int most_list_threads = 1024;
constexpr int64_t small_group = 256;  // up to this, keys are counted against each other in shared memory

// The larger the prob, the larger its key. NaN: 1, below all others; -0 like 0. Never 0.
__device__ inline uint32_t key_of(float prob) {
    if (isnan(prob)) return 1;
    const uint32_t bits = prob == 0 ? 0u : __float_as_uint(prob), sign = 0x80000000u;
    return bits & sign ? ~bits : bits | sign;
}

// Larger is better, no two are alike: of equal keys the one at the lower index.
__device__ inline uint64_t ranked(uint32_t key, int64_t index) { return uint64_t(key) << 32 | (~uint32_t(index)); }

// Rank number k of a token's experts. One warp.
__device__ inline uint64_t rank_of_kth(const float* probs, int64_t experts, int64_t k) {
    const int lane = threadIdx.x % warp_size;
    uint64_t last = UINT64_MAX;
    for (int64_t r = 0; r < k; r++) {
        uint64_t best = 0;
        for (int64_t e = lane; e < experts; e += warp_size) {
            const uint64_t rank = ranked(key_of(probs[e]), e);
            if (rank < last && rank > best) best = rank;
        }
        for (int offset = warp_size / 2; offset > 0; offset /= 2) {
            const uint64_t other = __shfl_xor_sync(full_mask, best, offset);
            best = other > best ? other : best;
        }
        last = best;
    }
    return last;
}

// Lists of keys [E, sets, ld]: one per expert and candidate set, candidates ascending, zeros behind them. Afterwards
// the same memory holds what `where` says of each candidate.
struct Lists {
    CandidateSets sets;
    int64_t experts, ld;
    __host__ __device__ int64_t tiles() const { return ceil_div(sets.size, tile); }
    __host__ __device__ int64_t set_count() const { return sets.count(); }
    __device__ int64_t at(int64_t expert, int64_t set) const { return (expert * set_count() + set) * ld; }
};

// Which candidates are listed, and how: at their k best experts, with the key of their prob, or 1 if it does not
// matter. balanced: at the experts (n k + i) mod E, i < k, with key 1.
struct Listing {
    int64_t k;
    bool by_gate, balanced;
};

// The key of token n at expert e. least: the rank of its k-th best expert.
__device__ inline uint32_t listed_key(const float* probs, int64_t n, int64_t e, int64_t experts, uint64_t least,
                                      const Listing& how) {
    if (how.balanced) {  // products of N and E fit 31 bits
        const uint32_t all = uint32_t(experts), first = uint32_t(n * how.k) % all;
        return (uint32_t(e) + all - first) % all < uint32_t(how.k);
    }
    const uint32_t key = key_of(probs[n * experts + e]);
    return ranked(key, e) < least ? 0 : how.by_gate ? key : 1;
}

// keys[e, set, i] = key of token i of the set at expert e, 0 where it is not listed. One block = 32 candidates of a
// set; one warp ranks a token's experts; tiles of 32 x 32 keys are transposed in shared memory.
__global__ void __launch_bounds__(tile_block)
    list_candidates_kernel(uint32_t* keys, const float* probs, Lists l, Listing how) {
    SHARED(uint64_t, least, [tile]);
    SHARED(uint32_t, transposed, [tile][tile + 1]);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const int64_t set = blockIdx.x / l.tiles(), first = blockIdx.x % l.tiles() * tile;
    for (int i = warp; i < tile; i += tile_warps) {
        uint64_t rank = 0;
        if (!how.balanced && how.k < l.experts && first + i < l.sets.size)
            rank = rank_of_kth(probs + l.sets.token(set, first + i) * l.experts, l.experts, how.k);
        if (lane == 0) least[i] = rank;
    }
    __syncthreads();
    for (int64_t e0 = 0; e0 < l.experts; e0 += tile) {
        for (int i = warp; i < tile; i += tile_warps) {
            const int64_t e = e0 + lane;
            transposed[i][lane] = first + i < l.sets.size && e < l.experts
                                      ? listed_key(probs, l.sets.token(set, first + i), e, l.experts, least[i], how)
                                      : 0;
        }
        __syncthreads();
        for (int j = warp; j < tile; j += tile_warps)
            if (e0 + j < l.experts && first + lane < l.ld) keys[l.at(e0 + j, set) + first + lane] = transposed[lane][j];
        __syncthreads();
    }
}

// How many keys of a list are >= least. All threads of the block call it and get it.
__device__ inline int64_t count_from(const uint32_t* list, int64_t ld, uint32_t least) {
    int64_t count = 0;
    for (int64_t i = int64_t(threadIdx.x) * keys_per_thread; i < ld; i += int64_t(blockDim.x) * keys_per_thread) {
        const Pack<uint32_t> keys = load_pack(list + i);
        for (int j = 0; j < keys_per_thread; j++) count += keys[j] >= least;
    }
    return block_sum(count);
}

// Keys above `key` stay, and the first `equals` that are equal to it.
struct Bar {
    uint32_t key;
    int64_t equals;
};

// The bar that `places` of more candidates pass: its key is the places-th largest, found bit by bit from the top.
__device__ inline Bar find_bar(const uint32_t* list, int64_t ld, int64_t places, int key_bits) {
    uint32_t key = 0;
    for (int bit = key_bits - 1; bit >= 0; bit--) {
        const uint32_t higher = key | (1u << bit);
        if (count_from(list, ld, higher) >= places) key = higher;
    }
    return {key, places - (key == UINT32_MAX ? 0 : count_from(list, ld, key + 1))};
}

struct Scan {
    uint32_t before, total;  // sums over the threads before this one, over all of the block
};
__device__ inline Scan block_scan(uint32_t x) {
    SHARED(uint32_t, of_warp, [warp_size]);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size, warps = blockDim.x / warp_size;
    uint32_t sum = x;
    for (int offset = 1; offset < warp_size; offset *= 2) {
        const uint32_t other = __shfl_up_sync(full_mask, sum, offset);
        if (lane >= offset) sum += other;
    }
    __syncthreads();  // an earlier call may still be read
    if (lane == warp_size - 1) of_warp[warp] = sum;
    __syncthreads();
    Scan scan{sum - x, 0};
    for (int w = 0; w < warps; w++) {
        scan.before += w < warp ? of_warp[w] : 0;
        scan.total += of_warp[w];
    }
    return scan;
}

// counts[list] = its candidates. One block = one list.
__global__ void __launch_bounds__(most_list_threads)
    count_candidates_kernel(int32_t* counts, const uint32_t* lists, Lists l) {
    const int64_t candidates = count_from(lists + blockIdx.x * l.ld, l.ld, 1);
    if (threadIdx.x == 0) counts[blockIdx.x] = int32_t(candidates);
}

// offsets[e] = the rows of all experts before e, each with counts rounded up to whole tiles. One block.
__global__ void begin_rows_kernel(int32_t* offsets, const int32_t* counts, int64_t experts) {
    uint32_t begin = 0;
    for (int64_t first = 0; first < experts; first += blockDim.x) {
        const int64_t e = first + threadIdx.x;
        const uint32_t tiles = e < experts ? uint32_t(ceil_div(counts[e], ragged_rows_per_tile)) : 0;
        const Scan scan = block_scan(tiles * ragged_rows_per_tile);
        if (e < experts) offsets[e] = int32_t(begin + scan.before);
        begin += scan.total;
    }
    if (threadIdx.x == 0) offsets[experts] = int32_t(begin);
}

// The rows that lists are put into: `places` for every list, or those between two offsets, of `rows` in all. slots and
// counts (if wanted) as in the op; unplaced: what `where` shall say of candidates that were listed but got no row.
struct Rows {
    int32_t *slots, *counts, *offsets;
    int64_t places, rows;
    int32_t unplaced;
};

// Fills the rows of one list with the pairs of its largest keys (ties: the first), ascending, then -1; the rows replace
// the keys. One block = one list. A thread has 4 neighbouring keys at a time, and learns from one scan how many above
// the bar (low half) and on the bar (high half) stand before it.
__global__ void __launch_bounds__(most_list_threads) fill_rows_kernel(Rows r, uint32_t* lists, Lists l, int key_bits) {
    const int64_t row = blockIdx.x, set = row % l.set_count(), expert = row / l.set_count();
    const int64_t begin = r.offsets ? r.offsets[row] : row * r.places;
    const int64_t places = r.offsets ? r.offsets[row + 1] - begin : r.places;
    uint32_t* list = lists + row * l.ld;
    const int64_t candidates = count_from(list, l.ld, 1);
    if (r.counts && threadIdx.x == 0) r.counts[row] = int32_t(candidates);
    const Bar bar = candidates > places ? find_bar(list, l.ld, places, key_bits) : Bar{0, 0};
    int64_t above = 0, equal = 0;
    for (int64_t first = 0; first < l.ld; first += int64_t(blockDim.x) * keys_per_thread) {
        const int64_t i = first + int64_t(threadIdx.x) * keys_per_thread;
        Pack<uint32_t> keys = {};
        if (i < l.ld) keys = load_pack(list + i);
        uint32_t found = 0;
        for (int j = 0; j < keys_per_thread; j++)
            found += uint32_t(keys[j] > bar.key) + (uint32_t(keys[j] == bar.key) << 16);
        const Scan scan = block_scan(found);
        int64_t a = above + (scan.before & 0xffff), q = equal + (scan.before >> 16);
        for (int j = 0; j < keys_per_thread; j++) {
            const bool is_above = keys[j] > bar.key, is_equal = keys[j] == bar.key;
            const int64_t place = begin + a + (q < bar.equals ? q : bar.equals);
            const bool stays = is_above || (is_equal && q < bar.equals);
            if (stays) r.slots[place] = int32_t(l.sets.token(set, i + j) * l.experts + expert);
            keys[j] = stays ? uint32_t(place) : keys[j] == 0 ? ~0u : uint32_t(r.unplaced);
            a += is_above, q += is_equal;
        }
        if (i < l.ld) store_pack(list + i, keys);
        above += scan.total & 0xffff, equal += scan.total >> 16;
    }
    for (int64_t p = candidates + threadIdx.x; p < places; p += blockDim.x) r.slots[begin + p] = -1;
    if (!r.offsets) return;  // all rows are some list's
    const int64_t threads = int64_t(gridDim.x) * blockDim.x;
    for (int64_t p = r.offsets[gridDim.x] + row * blockDim.x + threadIdx.x; p < r.rows; p += threads) r.slots[p] = -1;
}

// where[n, e] = what the list of expert e says of token i = n of the set. Blocks, tiles as in list_candidates_kernel.
__global__ void __launch_bounds__(tile_block) tell_tokens_kernel(int32_t* where, const uint32_t* lists, Lists l) {
    SHARED(uint32_t, transposed, [tile][tile + 1]);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const int64_t set = blockIdx.x / l.tiles(), first = blockIdx.x % l.tiles() * tile;
    for (int64_t e0 = 0; e0 < l.experts; e0 += tile) {
        for (int j = warp; j < tile; j += tile_warps)
            if (e0 + j < l.experts && first + lane < l.ld)
                transposed[lane][j] = lists[l.at(e0 + j, set) + first + lane];
        __syncthreads();
        for (int i = warp; i < tile; i += tile_warps)
            if (first + i < l.sets.size && e0 + lane < l.experts)
                where[l.sets.token(set, first + i) * l.experts + e0 + lane] = int32_t(transposed[i][lane]);
        __syncthreads();
    }
}

// Expert choice in small sets: a candidate is chosen if fewer than k beat it; its place is the number of those chosen
// before it. One block = one set and 32 experts, one lane = one expert, one warp = every warps-th candidate. Shared
// memory: keys [size,32], then who is chosen [size,32].
__global__ void choose_in_sets_kernel(int32_t* slots, int32_t* where, const float* probs, CandidateSets sets,
                                      int64_t experts, int64_t k) {
    DYN_SHARED(uint32_t, keys);
    const int size = int(sets.size), lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const int warps = blockDim.x / warp_size;
    uint8_t* chosen = reinterpret_cast<uint8_t*>(keys + size * warp_size);
    const int64_t parts = ceil_div(experts, warp_size), set = blockIdx.x / parts;
    const int64_t e = blockIdx.x % parts * warp_size + lane, places = sets.count() * k;
    for (int i = warp; i < size; i += warps)
        keys[i * warp_size + lane] = e < experts ? key_of(probs[sets.token(set, i) * experts + e]) : 0;
    __syncthreads();
    for (int i = warp; i < size; i += warps) {
        const uint32_t key = keys[i * warp_size + lane];
        int rank = 0;
        for (int o = 0; o < size; o++) {
            const uint32_t other = keys[o * warp_size + lane];
            rank += other > key || (other == key && o < i);
        }
        chosen[i * warp_size + lane] = rank < k;
    }
    __syncthreads();
    for (int i = warp; i < size && e < experts; i += warps) {
        const int64_t n = sets.token(set, i);
        int64_t row = -1;
        if (chosen[i * warp_size + lane]) {
            row = e * places + set * k;
            for (int o = 0; o < i; o++) row += chosen[o * warp_size + lane];
            slots[row] = int32_t(n * experts + e);
        }
        where[n * experts + e] = int32_t(row);
    }
}

Lists lists_for(const CandidateSets& sets, int64_t experts) {
    return {sets, experts, round_up(sets.size, keys_per_thread)};
}
int64_t bytes_of(const Lists& l) { return l.experts * l.set_count() * l.ld * int64_t(sizeof(uint32_t)); }

// The kernels, in their order. Without r.offsets, every list has r.places.
void route(Tensor where, Tensor probs, const Rows& r, const Lists& l, const Listing& how, void* workspace,
           Context& ctx) {
    uint32_t* keys = static_cast<uint32_t*>(workspace);
    const dim3 tiles = grid_of(l.set_count() * l.tiles()), lists = grid_of(l.experts * l.set_count());
    const int64_t packs = round_up(std::max<int64_t>(1, ceil_div(l.ld, keys_per_thread)), warp_size);
    const int threads = int(std::min<int64_t>(packs, most_list_threads));
    launch(ctx, list_candidates_kernel, tiles, tile_block, 0, keys, ptr<float>(probs), l, how);
    if (r.offsets) {
        launch(ctx, count_candidates_kernel, lists, threads, 0, r.counts, keys, l);
        launch(ctx, begin_rows_kernel, 1, tile_block, 0, r.offsets, r.counts, l.experts);
    }
    launch(ctx, fill_rows_kernel, lists, threads, 0, r, keys, l, how.by_gate ? 32 : 1);
    launch(ctx, tell_tokens_kernel, tiles, tile_block, 0, ptr<int32_t>(where), keys, l);
}

}  // namespace

void moe_choose_experts(Tensor slots, Tensor where, Tensor counts, Tensor offsets, Tensor probs,
                        const ExpertChoices& choices, Context& ctx) {
    const MoeShape s = check_choose_experts(slots, where, counts, offsets, probs, choices);
    check_f32(probs, "probs");
    const Lists l = lists_for(candidate_sets(s, 0), s.experts);
    Op op(ctx, "moe_choose_experts", 0, bytes_of(l), total_bytes({slots, where, counts, offsets, probs}));
    if (!op.run) return;
    const bool by_gate = choices.order == DropOrder::gate && !choices.balanced && !offsets;
    const Rows rows{ptr<int32_t>(slots), ptr<int32_t>(counts), ptr<int32_t>(offsets), s.capacity(), s.rows, -2};
    route(where, probs, rows, l, {choices.k, by_gate, choices.balanced}, op.workspace, ctx);
}

void moe_choose_tokens(Tensor slots, Tensor where, Tensor probs, int64_t k, int64_t group, Context& ctx) {
    const MoeShape s = check_choose_tokens(slots, where, probs, k, group);
    check_f32(probs, "probs");
    const CandidateSets sets = candidate_sets(s, group);
    const Lists l = lists_for(sets, s.experts);
    const bool small = group > 0 && group <= small_group;
    Op op(ctx, "moe_choose_tokens", 0, small ? 0 : bytes_of(l), total_bytes({slots, where, probs}));
    if (!op.run) return;
    const Rows rows{ptr<int32_t>(slots), nullptr, nullptr, k, s.rows, -1};
    if (!small) return route(where, probs, rows, l, {s.experts, true, false}, op.workspace, ctx);
    launch(ctx, choose_in_sets_kernel, grid_of(sets.count() * ceil_div(s.experts, warp_size)),
           int(std::min<int64_t>(group, tile_warps)) * warp_size, group * warp_size * 5, ptr<int32_t>(slots),
           ptr<int32_t>(where), ptr<float>(probs), sets, s.experts, k);
}

}  // namespace llmc
