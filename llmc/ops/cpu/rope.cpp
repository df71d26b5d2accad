// Rotary position embedding (Su et al. 2021): pair (i, i + D/2) of a head at position p is turned by the angle
// p * 10000^(-2i/D). The same turn for Q and K makes scores depend on the distance of two positions only.
#include "llmc/ops/cpu/attention_tile.h"

namespace llmc {
namespace {

template <class F> struct RopeTable {
    F *cosines, *sines;    // [T, half]
    double* frequencies;   // [half], 10000^(-i/half)
    RopeTable(Carver& carver, int64_t T, int64_t half)
        : cosines(carver.take<F>(T * half)), sines(carver.take<F>(T * half)), frequencies(carver.take<double>(half)) {}
};

// Angles in double: in float they would be off by 1e-4 at position 2000.
template <class F>
void fill_table(const RopeTable<F>& table, int64_t T, int64_t half, int64_t first_position, bool inverse, int threads) {
    for (int64_t i = 0; i < half; i++) table.frequencies[i] = std::pow(10000.0, -double(i) / double(half));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < half; i++) {
            const double angle = double(first_position + t) * table.frequencies[i];
            table.cosines[t * half + i] = F(std::cos(angle));
            table.sines[t * half + i] = F(inverse ? -std::sin(angle) : std::sin(angle));
        }
}

// (a, b) -> (a cos - b sin, b cos + a sin) for one head at one position.
template <class T, class F>
void rotate(T* x, const F* cosines, const F* sines, int64_t half) {
    T* y = x + half;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const F a = F(x[i]), b = F(y[i]);
        x[i] = T(a * cosines[i] - b * sines[i]);
        y[i] = T(b * cosines[i] + a * sines[i]);
    }
}

}  // namespace

void rope(Tensor qkv, int64_t heads, int64_t first_position, bool inverse, Context& ctx) {
    const AttentionShape s = check_rope(qkv, heads);
    const int64_t half = s.D / 2;
    dispatch(qkv.dtype, [&](auto zero) {
        using T = decltype(zero);
        using F = arithmetic_t<T>;
        Carver counter;
        RopeTable<F>(counter, s.T, half);
        Op op(ctx, "rope", s.rope_flops(), int64_t(counter.next), total_bytes({qkv, qkv}) / 3 * 2);
        if (!op.run) return;
        Carver carver{uintptr_t(op.workspace)};
        const RopeTable<F> table(carver, s.T, half);
        fill_table(table, s.T, half, first_position, inverse, ctx.threads);
#pragma omp parallel for num_threads(ctx.threads) schedule(static)
        for (int64_t row = 0; row < s.B * s.T; row++) {
            const int64_t at = row % s.T * half;
            for (int64_t head = 0; head < 2 * s.H; head++)  // those of Q, then those of K
                rotate(ptr<T>(qkv) + row * 3 * s.C + head * s.D, table.cosines + at, table.sines + at, half);
        }
    });
}

}  // namespace llmc
