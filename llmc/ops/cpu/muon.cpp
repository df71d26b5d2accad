// Muon's passes over memory on the CPU: momentum, the norms of matrices, the polynomial, the update.
#include "llmc/ops/checks/muon.h"

#include "llmc/ops/cpu/update.h"

namespace llmc {

namespace {

// f(begin, end) for chunks of [0, n), by all threads.
template <class F>
void in_chunks(int64_t n, int threads, F&& f) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t chunk = 0; chunk < chunks_of(n); chunk++) f(chunk * chunk_size, std::min(n, (chunk + 1) * chunk_size));
}

template <class P, class A>
struct Target {
    P* param;
    bf16* compute_copy;
    const A* direction;
    A keep, rate;  // 1 - lr * weight_decay, lr * scale

    A new_value(int64_t i) const { return A(param[i]) * keep - rate * direction[i]; }
};

// Returns 0, or NaN if a new parameter is not finite. A copy of `a`: see adamw_range.
template <class P, class A>
A update_range(Target<P, A> a, int64_t begin, int64_t end) {
    A sum = 0;
    if (a.compute_copy) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; i++) {
            const A p = a.new_value(i);
            sum += unfit(p);
            a.param[i] = P(p);
            a.compute_copy[i] = bf16(float(p));
        }
    } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; i++) {
            const A p = a.new_value(i);
            sum += unfit(p);
            a.param[i] = P(p);
        }
    }
    return sum;
}

// The same with stochastic rounding; begin and end lie in one chunk.
float update_range_stochastic(Target<bf16, float> a, int64_t begin, int64_t end, const MuonUpdate& options,
                              int64_t t) {
    uint16_t noise[chunk_size];
    fill_noise(noise, options.first_index + begin, end - begin, options.seed, t);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; i++) {
        const float p = a.new_value(i);
        sum += unfit(p);
        put_stochastic(a.param[i], p, noise[i - begin]);
    }
    if (a.compute_copy) std::copy(a.param + begin, a.param + end, a.compute_copy + begin);
    return sum;
}

}  // namespace

void muon_momentum(Tensor direction, Tensor m, Tensor grad, Tensor step, double momentum, Context& ctx) {
    check_muon_momentum(direction, m, grad, step);
    const int64_t n = direction.numel();
    Op op(ctx, "muon_momentum", 7 * n, 0, total_bytes({direction, m, m, grad}));
    if (!op.run) return;
    const StepState& state = *step_state(step);
    if (!state.ok) return void(std::memset(direction.data, 0, size_t(direction.bytes())));
    dispatch(grad.dtype, [&](auto zero) {
        using A = arithmetic_t<decltype(zero)>;
        A *d = ptr<A>(direction), *moment = ptr<A>(m);
        const A *g = ptr<A>(grad), old = A(momentum), fresh = A(1 - momentum), scale = A(state.grad_scale);
        in_chunks(n, ctx.threads, [&](int64_t begin, int64_t end) {
#pragma omp simd
            for (int64_t i = begin; i < end; i++) {
                const A share = fresh * (g[i] * scale);
                moment[i] = old * moment[i] + share;
                d[i] = old * moment[i] + share;
            }
        });
    });
}

void normalize_matrices(Tensor x, Context& ctx) {
    check_matrices(x, "x");
    const int64_t count = x.shape[0], size = x.shape[1] * x.shape[2], chunks = chunks_of(size);
    Op op(ctx, "normalize_matrices", 3 * x.numel(), count * chunks * int64_t(sizeof(double)), total_bytes({x, x, x}));
    if (!op.run || x.numel() == 0) return;
    double* squares = static_cast<double*>(op.workspace);
    dispatch(x.dtype, [&](auto zero) {
        using A = arithmetic_t<decltype(zero)>;
        A* data = ptr<A>(x);
        auto in_all = [&](auto&& f) {  // f(matrix, chunk, its first element, its length)
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
            for (int64_t i = 0; i < count * chunks; i++) {
                const int64_t matrix = i / chunks, begin = i % chunks * chunk_size;
                f(matrix, i, data + matrix * size + begin, std::min(size - begin, chunk_size));
            }
        };
        in_all([&](int64_t, int64_t i, const A* chunk, int64_t n) { squares[i] = sum_of_squares(chunk, n); });
        in_all([&](int64_t matrix, int64_t, A* chunk, int64_t n) {
            double sum = 0;
            for (int64_t i = 0; i < chunks; i++) sum += squares[matrix * chunks + i];
            const A factor = A(1 / (std::sqrt(sum) + matrix_norm_eps));
#pragma omp simd
            for (int64_t i = 0; i < n; i++) chunk[i] *= factor;
        });
    });
}

void matrix_polynomial(Tensor out, Tensor s, const Polynomial& p, Context& ctx) {
    check_matrix_polynomial(out, s);
    const int64_t rows = s.rows(), size = s.columns();
    Op op(ctx, "matrix_polynomial", 3 * s.numel(), 0, total_bytes({out, out, s}));
    if (!op.run) return;
    dispatch(s.dtype, [&](auto zero) {
        using A = arithmetic_t<decltype(zero)>;
        const A b = A(p.b), c = A(p.c);
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t row = 0; row < rows; row++) {
            A* o = ptr<A>(out) + row * size;
            const A* x = ptr<A>(s) + row * size;
#pragma omp simd
            for (int64_t j = 0; j < size; j++) o[j] = b * x[j] + c * o[j];
            o[row % size] += A(p.a);
        }
    });
}

void muon_update(Tensor param, Tensor compute_copy, Tensor direction, Tensor step, const MuonUpdate& options,
                 Context& ctx) {
    check_muon_update(param, compute_copy, direction, step);
    const int64_t n = param.numel();
    Op op(ctx, "muon_update", 3 * n, 0, total_bytes({param, param, compute_copy, direction}));
    if (!op.run || !step_state(step)->ok) return;
    dispatch(param.dtype, [&](auto zero) {
        using P = decltype(zero);
        using A = arithmetic_t<P>;
        StepState& state = *step_state(step);
        const Target<P, A> target{ptr<P>(param), ptr<bf16>(compute_copy), ptr<A>(direction),
                                  A(1 - state.lr * options.weight_decay), A(state.lr * options.scale)};
        auto range = [&](int64_t begin, int64_t end) {
            if constexpr (std::is_same_v<P, bf16>)
                if (options.stochastic_rounding) return update_range_stochastic(target, begin, end, options, state.t);
            return update_range(target, begin, end);
        };
        in_chunks(n, ctx.threads, [&](int64_t begin, int64_t end) { report_unfit(range(begin, end), state); });
    });
}

}  // namespace llmc
