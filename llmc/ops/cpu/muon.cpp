// Muon's passes over memory on the CPU: momentum, the norms of matrices, the polynomial, the update.
#include "llmc/ops/checks/muon.h"

#include "llmc/ops/cpu/update.h"

namespace llmc {

namespace {

// The new value of an element.
template <class P, class A>
struct MuonValue {
    const P* param;
    const A* direction;
    A keep, rate;  // 1 - lr * weight_decay, lr * scale

    A operator()(int64_t i, A& sum) const {
        const A p = A(param[i]) * keep - rate * direction[i];
        sum += unfit(p);
        return p;
    }
};

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
        const MuonValue<P, A> value{ptr<P>(param), ptr<A>(direction), A(1 - state.lr * options.weight_decay),
                                    A(state.lr * options.scale)};
        in_chunks(n, ctx.threads, [&](int64_t begin, int64_t end) {
            report_unfit(put_updates(ptr<P>(param), ptr<bf16>(compute_copy), begin, end, value, options, state.t),
                         state);
        });
    });
}

}  // namespace llmc
