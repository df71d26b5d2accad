// A random order of the lines of a batch, on the GPU: every line counts how many come before it.
#include "llmc/ops/checks/mot_variants.h"
#include "llmc/ops/cuda/cuda.cuh"
#include "llmc/ops/cuda/philox.cuh"

namespace llmc {

namespace {

constexpr int block_size = 256;

__device__ inline uint64_t key_of(int64_t line, int32_t draw, uint64_t seed) {
    const uint4 bits = philox(make_uint4(uint32_t(line), 0, uint32_t(draw), 0), uint32_t(seed), uint32_t(seed >> 32));
    return uint64_t(bits.y) << 32 | bits.x;
}

// One block = one line. Lines are hundreds or thousands, so that each makes the keys of all the others itself.
__global__ void random_order_kernel(int32_t* slots, int32_t* where, const int32_t* draw, uint64_t seed, OrderShape s) {
    const int64_t line = blockIdx.x;
    const uint64_t mine = key_of(line, *draw, seed);
    int64_t place = 0;
    for (int64_t i = threadIdx.x; i < s.lines; i += blockDim.x) {
        const uint64_t key = key_of(i, *draw, seed);
        place += key < mine || (key == mine && i < line);
    }
    place = block_sum(place);
    for (int64_t i = threadIdx.x; i < s.others; i += blockDim.x) {
        const int64_t to = place * s.line_step + i * s.other_step, from = line * s.line_step + i * s.other_step;
        slots[to] = int32_t(from);
        where[from] = int32_t(to);
    }
}

}  // namespace

void random_order(Tensor slots, Tensor where, Tensor draw, uint64_t seed, bool within_sequence, Context& ctx) {
    const OrderShape s = check_random_order(slots, where, draw, within_sequence);
    Op op(ctx, "random_order", 0, 0, total_bytes({slots, where}));
    if (!op.run) return;
    launch(ctx, random_order_kernel, grid_of(s.lines), block_size, 0, ptr<int32_t>(slots), ptr<int32_t>(where),
           ptr<const int32_t>(draw), seed, s);
}

}  // namespace llmc
