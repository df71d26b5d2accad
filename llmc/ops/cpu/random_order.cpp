// A random order of the lines of a batch, on the CPU: a sort by random keys.
#include "llmc/base/rng.h"
#include "llmc/ops/checks/mot_variants.h"
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

namespace {

struct Line {
    uint64_t key;
    int64_t index;
    bool operator<(const Line& o) const { return key != o.key ? key < o.key : index < o.index; }
};

}  // namespace

void random_order(Tensor slots, Tensor where, Tensor draw, uint64_t seed, bool within_sequence, Context& ctx) {
    const OrderShape s = check_random_order(slots, where, draw, within_sequence);
    Op op(ctx, "random_order", 0, s.lines * int64_t(sizeof(Line)), total_bytes({slots, where}));
    if (!op.run) return;
    Line* lines = static_cast<Line*>(op.workspace);
    for (int64_t i = 0; i < s.lines; i++) {
        const auto bits =
            philox4x32({uint32_t(i), 0, uint32_t(*ptr<int32_t>(draw)), 0}, {uint32_t(seed), uint32_t(seed >> 32)});
        lines[i] = {uint64_t(bits[1]) << 32 | bits[0], i};
    }
    std::sort(lines, lines + s.lines);
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
    for (int64_t place = 0; place < s.lines; place++)
        for (int64_t i = 0; i < s.others; i++) {
            const int64_t to = place * s.line_step, from = lines[place].index * s.line_step, other = i * s.other_step;
            ptr<int32_t>(slots)[to + other] = int32_t(from + other);
            ptr<int32_t>(where)[from + other] = int32_t(to + other);
        }
}

}  // namespace llmc
