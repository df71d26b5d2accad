// Routing of sparse mixtures of experts on the GPU: token choice (Fedus et al. 2021), expert choice (Zhou et al. 2022).
//
// Probs lie experts first, an expert looks along the tokens. So three kernels in a row: the candidates of every expert
// as lists of keys, each list cut down to its best, and the outcome told to the tokens. Keys are integers ordered like
// the probs, 0 = no candidate. Small groups of expert choice fit into shared memory and need one kernel only. Nothing
// depends on the order of threads: slots follow from counting, without atomics.
#include "llmc/ops/checks/moe.h"
#include "llmc/ops/cuda/cuda.cuh"

namespace llmc {

namespace {

constexpr int tile = warp_size, tile_warps = 8, tile_block = tile_warps * warp_size;
constexpr int keys_per_thread = Pack<uint32_t>::size;
constexpr int most_list_threads = 1024;
constexpr int64_t small_group = 256;  // up to this, keys are counted against each other in shared memory

__device__ inline int64_t token_of(const CandidateSets& sets, int64_t set, int64_t i) {
    return (set % sets.sets + i * sets.sets) * sets.positions + set / sets.sets;
}

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
// the same memory holds the slot that each candidate got, or -1.
struct Lists {
    CandidateSets sets;
    int64_t experts, ld;
    __host__ __device__ int64_t tiles() const { return ceil_div(sets.size, tile); }
    __host__ __device__ int64_t set_count() const { return sets.positions * sets.sets; }
    __device__ int64_t at(int64_t expert, int64_t set) const { return (expert * set_count() + set) * ld; }
};

// keys[e, set, i] = key of probs[n, e], n = token i of the set; 0 where e is not among the k best experts of n. If the
// gate does not matter, all candidates get key 1. One block = 32 candidates of a set; one warp ranks a token's experts;
// tiles of 32 x 32 keys are transposed in shared memory.
__global__ void __launch_bounds__(tile_block)
    list_candidates_kernel(uint32_t* keys, const float* probs, Lists l, int64_t k, bool by_gate) {
    SHARED(uint64_t, least, [tile]);
    SHARED(uint32_t, transposed, [tile][tile + 1]);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const int64_t set = blockIdx.x / l.tiles(), first = blockIdx.x % l.tiles() * tile;
    for (int i = warp; i < tile; i += tile_warps) {
        uint64_t rank = 0;
        if (k < l.experts && first + i < l.sets.size)
            rank = rank_of_kth(probs + token_of(l.sets, set, first + i) * l.experts, l.experts, k);
        if (lane == 0) least[i] = rank;
    }
    __syncthreads();
    for (int64_t e0 = 0; e0 < l.experts; e0 += tile) {
        for (int i = warp; i < tile; i += tile_warps) {
            uint32_t key = 0;
            const int64_t e = e0 + lane;
            if (first + i < l.sets.size && e < l.experts) {
                key = key_of(probs[token_of(l.sets, set, first + i) * l.experts + e]);
                key = ranked(key, e) < least[i] ? 0 : by_gate ? key : 1;
            }
            transposed[i][lane] = key;
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

// slots[e, set, :] = the tokens of the `places` largest keys (ties: the first), ascending, then -1; their slots replace
// the keys; counts[e] = candidates, if wanted. One block = one list. A thread has 4 neighbouring keys at a time, and
// learns from one scan how many above the bar (low half) and on the bar (high half) stand before it.
__global__ void __launch_bounds__(most_list_threads)
    fill_slots_kernel(int32_t* slots, int32_t* counts, uint32_t* lists, Lists l, int64_t places, int key_bits) {
    const int64_t row = blockIdx.x, set = row % l.set_count();
    uint32_t* list = lists + row * l.ld;
    const int64_t candidates = count_from(list, l.ld, 1);
    if (counts && threadIdx.x == 0) counts[row] = int32_t(candidates);
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
            const int64_t place = a + (q < bar.equals ? q : bar.equals);
            const bool stays = is_above || (is_equal && q < bar.equals);
            if (stays) slots[row * places + place] = int32_t(token_of(l.sets, set, i + j));
            keys[j] = stays ? uint32_t(set * places + place) : ~0u;
            a += is_above, q += is_equal;
        }
        if (i < l.ld) store_pack(list + i, keys);
        above += scan.total & 0xffff, equal += scan.total >> 16;
    }
    for (int64_t s = candidates + threadIdx.x; s < places; s += blockDim.x) slots[row * places + s] = -1;
}

// where[n, e] = the slot of token i = n of the set at expert e. Blocks and tiles as in list_candidates_kernel.
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
                where[token_of(l.sets, set, first + i) * l.experts + e0 + lane] = int32_t(transposed[i][lane]);
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
    const int64_t e = blockIdx.x % parts * warp_size + lane, all_slots = sets.positions * sets.sets * k;
    for (int i = warp; i < size; i += warps)
        keys[i * warp_size + lane] = e < experts ? key_of(probs[token_of(sets, set, i) * experts + e]) : 0;
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
        const int64_t n = token_of(sets, set, i);
        int64_t slot = -1;
        if (chosen[i * warp_size + lane]) {
            slot = set * k;
            for (int o = 0; o < i; o++) slot += chosen[o * warp_size + lane];
            slots[e * all_slots + slot] = int32_t(n);
        }
        where[n * experts + e] = int32_t(slot);
    }
}

constexpr int64_t most_balance_blocks = 256;  // a fixed number: the order of the sums must not depend on the device

// partial[block] = {sum of counts_e probs[n,e] over the block's elements, its filled slots}. A thread walks on by the
// size of the grid, and its expert with it.
__global__ void balance_kernel(double2* partial, const float* probs, const int32_t* counts, const int32_t* slots,
                               int64_t pairs, int64_t experts, int64_t all_slots) {
    const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
    const int64_t step = threads % experts;
    double sum = 0, filled = 0;
    int64_t e = thread % experts;
    for (int64_t i = thread; i < pairs; i += threads) {
        sum += double(probs[i]) * counts[e];
        e += step;
        if (e >= experts) e -= experts;
    }
    for (int64_t i = thread; i < all_slots; i += threads) filled += slots[i] >= 0;
    sum = block_sum(sum), filled = block_sum(filled);
    if (threadIdx.x == 0) partial[blockIdx.x] = {sum, filled};
}

// stats = loss, share of dropped pairs, smallest and largest load. One warp.
__global__ void finish_balance_kernel(double* stats, const double2* partial, int64_t blocks, const int32_t* counts,
                                      int64_t experts, int64_t tokens) {
    double sum = 0, filled = 0, chosen = 0;
    int32_t least = INT32_MAX, most = 0;
    for (int64_t b = threadIdx.x; b < blocks; b += warp_size) sum += partial[b].x, filled += partial[b].y;
    for (int64_t e = threadIdx.x; e < experts; e += warp_size) {
        chosen += counts[e];
        least = min(least, counts[e]), most = max(most, counts[e]);
    }
    sum = warp_sum(sum), filled = warp_sum(filled), chosen = warp_sum(chosen);
    for (int offset = warp_size / 2; offset > 0; offset /= 2) {
        least = min(least, __shfl_xor_sync(full_mask, least, offset));
        most = max(most, __shfl_xor_sync(full_mask, most, offset));
    }
    if (threadIdx.x != 0) return;
    const double n = double(tokens), each = double(experts);
    stats[0] = tokens > 0 ? each * sum / n / n : 0;
    stats[1] = chosen > 0 ? (chosen - filled) / chosen : 0;
    stats[2] = chosen > 0 ? least * each / chosen : 0;
    stats[3] = chosen > 0 ? most * each / chosen : 0;
}

// dprobs[n,e] += factor counts_e. One thread = one element.
__global__ void balance_backward_kernel(float* dprobs, const int32_t* counts, double factor, int64_t pairs,
                                        int64_t experts) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < pairs) dprobs[i] += float(factor * counts[i % experts]);
}

Lists lists_for(const CandidateSets& sets, int64_t experts) {
    return {sets, experts, round_up(sets.size, keys_per_thread)};
}
int64_t bytes_of(const Lists& l) { return l.experts * l.set_count() * l.ld * int64_t(sizeof(uint32_t)); }

// The three kernels. k: how many experts a token may have; places: of every list.
void route(Tensor slots, Tensor where, Tensor counts, Tensor probs, const Lists& l, void* workspace, int64_t k,
           int64_t places, bool by_gate, Context& ctx) {
    uint32_t* keys = static_cast<uint32_t*>(workspace);
    const dim3 tiles = grid_of(l.set_count() * l.tiles());
    const int64_t threads = round_up(std::max<int64_t>(1, ceil_div(l.ld, keys_per_thread)), warp_size);
    launch(ctx, list_candidates_kernel, tiles, tile_block, 0, keys, ptr<float>(probs), l, k, by_gate);
    launch(ctx, fill_slots_kernel, grid_of(l.experts * l.set_count()),
           int(std::min<int64_t>(threads, most_list_threads)), 0, ptr<int32_t>(slots), ptr<int32_t>(counts), keys, l,
           places, by_gate ? 32 : 1);
    launch(ctx, tell_tokens_kernel, tiles, tile_block, 0, ptr<int32_t>(where), keys, l);
}

}  // namespace

void moe_choose_experts(Tensor slots, Tensor where, Tensor counts, Tensor probs, int64_t k, DropOrder order,
                        Context& ctx) {
    const MoeShape s = check_choose_experts(slots, where, counts, probs, k);
    check_f32(probs, "probs");
    const Lists l = lists_for(candidate_sets(s, 0), s.experts);
    Op op(ctx, "moe_choose_experts", 0, bytes_of(l), total_bytes({slots, where, counts, probs}));
    if (!op.run) return;
    route(slots, where, counts, probs, l, op.workspace, k, s.slots, order == DropOrder::gate, ctx);
}

void moe_choose_tokens(Tensor slots, Tensor where, Tensor probs, int64_t k, int64_t group, Context& ctx) {
    const MoeShape s = check_choose_tokens(slots, where, probs, k, group);
    check_f32(probs, "probs");
    const CandidateSets sets = candidate_sets(s, group);
    const Lists l = lists_for(sets, s.experts);
    const bool small = group > 0 && group <= small_group;
    Op op(ctx, "moe_choose_tokens", 0, small ? 0 : bytes_of(l), total_bytes({slots, where, probs}));
    if (!op.run) return;
    if (!small) return route(slots, where, {}, probs, l, op.workspace, s.experts, k, true, ctx);
    launch(ctx, choose_in_sets_kernel, grid_of(sets.count() * ceil_div(s.experts, warp_size)),
           int(std::min<int64_t>(group, tile_warps)) * warp_size, group * warp_size * 5, ptr<int32_t>(slots),
           ptr<int32_t>(where), ptr<float>(probs), sets, s.experts, k);
}

void moe_balance(Tensor stats, Tensor probs, Tensor counts, Tensor slots, Context& ctx) {
    const MoeShape s = check_balance(stats, probs, counts, slots);
    check_f32(probs, "probs");
    const int64_t blocks = std::min(ceil_div(std::max(s.pairs(), s.all_slots()), tile_block), most_balance_blocks);
    Op op(ctx, "moe_balance", balance_flops(s), blocks * int64_t(sizeof(double2)),
          total_bytes({stats, probs, counts, slots}));
    if (!op.run) return;
    double2* partial = static_cast<double2*>(op.workspace);
    launch(ctx, balance_kernel, grid_of(blocks), tile_block, 0, partial, ptr<float>(probs), ptr<int32_t>(counts),
           ptr<int32_t>(slots), s.pairs(), s.experts, s.all_slots());
    launch(ctx, finish_balance_kernel, 1, warp_size, 0, ptr<double>(stats), partial, blocks, ptr<int32_t>(counts),
           s.experts, s.tokens());
}

void moe_balance_backward(Tensor dprobs, Tensor counts, double scale, Context& ctx) {
    const MoeShape s = check_balance_backward(dprobs, counts);
    check_f32(dprobs, "dprobs");
    Op op(ctx, "moe_balance_backward", balance_flops(s), 0, total_bytes({dprobs, dprobs, counts}));
    if (!op.run) return;
    const double n = double(s.tokens()), factor = scale * double(s.experts) / (n * n);
    launch(ctx, balance_backward_kernel, grid_of(ceil_div(s.pairs(), tile_block)), tile_block, 0, ptr<float>(dprobs),
           ptr<int32_t>(counts), factor, s.pairs(), s.experts);
}

}  // namespace llmc
