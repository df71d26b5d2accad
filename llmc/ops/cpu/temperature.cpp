// Learnable temperatures of logits on the CPU.
#include "llmc/ops/checks/mot_variants.h"
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

namespace {

constexpr int64_t most_chunks = 64;  // of rows, for the sums over rows: fixed, whatever the number of threads

template <class A>
A temperature_of(A p, bool exponential) {
    return exponential ? std::exp(p - 1) : p;
}

// inverse[e] = 1 / tau_e for every expert, also where they all have one.
template <class T, class A>
void invert(A* inverse, const T* p, const TemperatureShape& s, bool exponential) {
    for (int64_t e = 0; e < s.experts; e++) inverse[e] = A(1) / temperature_of(A(p[s.per_expert ? e : 0]), exponential);
}

}  // namespace

void temperature_forward(Tensor scaled, Tensor logits, Tensor p, bool exponential, Context& ctx) {
    const TemperatureShape s = check_temperatures(scaled, logits, "logits", p);
    Op op(ctx, "temperature_forward", logits.numel(), s.experts * size_of(logits.dtype),
          total_bytes({scaled, logits, p}));
    if (!op.run) return;
    dispatch(p.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
        A* inverse = static_cast<A*>(op.workspace);
        invert(inverse, ptr<T>(p), s, exponential);
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t n = 0; n < s.rows; n++) {
            const A* in = ptr<A>(logits) + n * s.experts;
            A* out = ptr<A>(scaled) + n * s.experts;
#pragma omp simd
            for (int64_t e = 0; e < s.experts; e++) out[e] = in[e] * inverse[e];
        }
    });
}

void temperature_backward(Tensor dlogits, Tensor dp, Tensor dscaled, Tensor scaled, Tensor p, bool exponential,
                          bool accumulate, Context& ctx) {
    const TemperatureShape s = check_temperature_backward(dlogits, dp, dscaled, scaled, p);
    const int64_t chunks = std::min(s.rows, most_chunks), E = s.experts;
    Op op(ctx, "temperature_backward", 3 * scaled.numel(), (chunks + 2) * E * size_of(scaled.dtype),
          total_bytes({dlogits, dp, dscaled, scaled, p}));
    if (!op.run) return;
    dispatch(p.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
        A *inverse = static_cast<A*>(op.workspace), *sums = inverse + E, *partial = sums + E;
        invert(inverse, ptr<T>(p), s, exponential);
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            A* sum = partial + chunk * E;  // of dscaled scaled
            std::fill_n(sum, E, A(0));
            auto [begin, end] = part_of(s.rows, chunk, chunks);
            for (int64_t n = begin; n < end; n++) {
                const A *in = ptr<A>(dscaled) + n * E, *y = ptr<A>(scaled) + n * E;
                A* out = ptr<A>(dlogits) + n * E;
#pragma omp simd
                for (int64_t e = 0; e < E; e++) {
                    const A d = in[e];  // out may be in
                    sum[e] += d * y[e];
                    out[e] = d * inverse[e];
                }
            }
        }
        // d scaled / d tau = -scaled / tau, and d tau / d p is tau (exponential) or 1
        std::fill_n(sums, E, A(0));
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            for (int64_t e = 0; e < E; e++) sums[e] += partial[chunk * E + e];
        A* out = ptr<A>(dp);
        if (!accumulate) std::fill_n(out, p.numel(), A(0));
        for (int64_t e = 0; e < E; e++) out[s.per_expert ? e : 0] -= sums[e] * (exponential ? A(1) : inverse[e]);
    });
}

void temperature_mean(Tensor mean, Tensor p, bool exponential, Context& ctx) {
    check_temperature_mean(mean, p);
    Op op(ctx, "temperature_mean", p.numel(), 0, total_bytes({mean, p}));
    if (!op.run) return;
    dispatch(p.dtype, [&](auto zero) {
        using T = decltype(zero);
        double sum = 0;
        for (int64_t e = 0; e < p.numel(); e++)
            sum += temperature_of(double(arithmetic_t<T>(ptr<T>(p)[e])), exponential);
        *ptr<double>(mean) = sum / double(p.numel());
    });
}

}  // namespace llmc
