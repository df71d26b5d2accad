// The optimizer on the CPU: the sums of a step, the decision about its update, AdamW (Loshchilov & Hutter 2019).
#include "llmc/ops/checks/optimizer.h"
#include "llmc/ops/checks/decide_step.h"
#include "llmc/ops/cpu/update.h"

namespace llmc {

namespace {

template <class T>
double sum(const T* x, int64_t n) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; i++) total += double(x[i]);
    return total;
}

// f(x, length) of every chunk of x [n], added up. workspace: one double per chunk.
template <class T>
double sum_in_chunks(double (*f)(const T*, int64_t), const T* x, int64_t n, void* workspace, int threads) {
    double* partial = static_cast<double*>(workspace);
    int64_t chunks = chunks_of(n);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < chunks; i++) partial[i] = f(x + i * chunk_size, std::min(n - i * chunk_size, chunk_size));
    return sum(partial, chunks);
}

}  // namespace

void step_begin(Tensor step, double lr, Context& ctx) {
    check_step(step);
    Op op(ctx, "step_begin");
    if (!op.run) return;
    StepState& s = *step_state(step);
    s.lr = lr;
    s.loss_sum = 0;
    s.loss_count = 0;
    s.grad_square_sum = 0;
}

void loss_accumulate(Tensor step, Tensor losses, Tensor targets, Context& ctx) {
    check_losses(step, losses, targets);
    int64_t n = losses.numel();
    Op op(ctx, "loss_accumulate", n, chunks_of(n) * int64_t(sizeof(double)), total_bytes({losses, targets}));
    if (!op.run) return;
    dispatch(losses.dtype, [&](auto zero) {
        using T = decltype(zero);
        step_state(step)->loss_sum += sum_in_chunks(&sum<T>, ptr<const T>(losses), n, op.workspace, ctx.threads);
    });
    const int32_t* target = ptr<int32_t>(targets);
    step_state(step)->loss_count += double(std::count_if(target, target + n, [](int32_t t) { return t >= 0; }));
}

void grad_norm_accumulate(Tensor step, Tensor grad, Context& ctx) {
    check_grad(step, grad);
    int64_t n = grad.numel();
    Op op(ctx, "grad_norm_accumulate", 2 * n, chunks_of(n) * int64_t(sizeof(double)), grad.bytes());
    if (!op.run) return;
    dispatch(grad.dtype, [&](auto zero) {
        using T = decltype(zero);
        step_state(step)->grad_square_sum +=
            sum_in_chunks(&sum_of_squares<T>, ptr<const T>(grad), n, op.workspace, ctx.threads);
    });
}

void freeze_until(Tensor grad, Tensor step, int64_t start, Context& ctx) {
    check_grad(step, grad);
    Op op(ctx, "freeze_until", 0, 0, grad.bytes());
    if (!op.run || step_state(step)->t + step_state(step)->skipped >= start) return;
    std::memset(grad.data, 0, size_t(grad.bytes()));
}

void step_decide(Tensor step, double clip, double beta1, double beta2, Context& ctx) {
    check_step(step);
    Op op(ctx, "step_decide");
    if (!op.run) return;
    decide_step(*step_state(step), clip, beta1, beta2);
}

namespace {

// The numbers of one update in the arithmetic of the parameters.
template <class A>
struct Update {
    A beta1, beta2, rest1, rest2;         // rest = 1 - beta
    A grad_scale, step_size, root2, eps;  // lr / bias_correction1, 1 / sqrt(bias_correction2)
    A keep;                               // 1 - lr * weight_decay

    Update(const AdamW& o, const StepState& s)
        : beta1(A(o.beta1)),
          beta2(A(o.beta2)),
          rest1(A(1 - o.beta1)),
          rest2(A(1 - o.beta2)),
          grad_scale(A(s.grad_scale)),
          step_size(A(s.lr / s.bias_correction1)),
          root2(A(1 / std::sqrt(s.bias_correction2))),
          eps(A(o.eps)),
          keep(A(1 - s.lr * o.weight_decay)) {}
};

template <class P, class A>
struct Unit {
    P* param;
    bf16* compute_copy;
    A *m, *v;
    const A* grad;
};

// New value of element i; its moments are written.
template <class P, class A>
A new_value(const Unit<P, A>& a, int64_t i, const Update<A>& u, A keep) {
    const A g = a.grad[i] * u.grad_scale;
    const A m = a.m[i] = u.beta1 * a.m[i] + u.rest1 * g;
    const A v = a.v[i] = u.beta2 * a.v[i] + u.rest2 * g * g;
    return A(a.param[i]) * keep - u.step_size * m / (std::sqrt(v) * u.root2 + u.eps);
}

// Returns 0, or NaN if something is not finite. Copies of a and u: g++ reads the pointers behind a reference again for
// every element, and then it does not use vectors.
template <class P, class A>
A adamw_range(Unit<P, A> a, int64_t begin, int64_t end, Update<A> u, A keep) {
    A sum = 0;
    if (a.compute_copy) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; i++) {
            const A p = new_value(a, i, u, keep);
            sum += unfit(p) + unfit(a.v[i]);
            a.param[i] = P(p);
            a.compute_copy[i] = bf16(float(p));
        }
    } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; i++) {
            const A p = new_value(a, i, u, keep);
            sum += unfit(p) + unfit(a.v[i]);
            a.param[i] = P(p);
        }
    }
    return sum;
}

// The same with stochastic rounding; begin and end lie in one chunk.
float adamw_range_stochastic(Unit<bf16, float> a, int64_t begin, int64_t end, Update<float> u, float keep,
                             const AdamW& options, int64_t t) {
    uint16_t noise[chunk_size];
    fill_noise(noise, options.first_index + begin, end - begin, options.seed, t);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; i++) {
        const float p = new_value(a, i, u, keep);
        sum += unfit(p) + unfit(a.v[i]);
        put_stochastic(a.param[i], p, noise[i - begin]);
    }
    if (a.compute_copy) std::copy(a.param + begin, a.param + end, a.compute_copy + begin);
    return sum;
}

}  // namespace

void adamw_update(Tensor param, Tensor compute_copy, Tensor m, Tensor v, Tensor grad, Tensor step, int64_t decayed,
                  const AdamW& options, Context& ctx) {
    check_adamw(param, compute_copy, m, v, grad, step, decayed);
    const int64_t n = param.numel();
    Op op(ctx, "adamw_update", 15 * n, 0, total_bytes({param, param, compute_copy, m, m, v, v, grad}));
    if (!op.run || !step_state(step)->ok) return;
    dispatch(param.dtype, [&](auto zero) {
        using P = decltype(zero);
        using A = arithmetic_t<P>;
        StepState& state = *step_state(step);
        const Update<A> u(options, state);
        const Unit<P, A> unit{ptr<P>(param), ptr<bf16>(compute_copy), ptr<A>(m), ptr<A>(v), ptr<A>(grad)};
        auto range = [&](int64_t begin, int64_t end, A keep) {
            if constexpr (std::is_same_v<P, bf16>)
                if (options.stochastic_rounding)
                    return adamw_range_stochastic(unit, begin, end, u, keep, options, state.t);
            return adamw_range(unit, begin, end, u, keep);
        };
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t chunk = 0; chunk < chunks_of(n); chunk++) {
            int64_t begin = chunk * chunk_size, end = std::min(n, begin + chunk_size);
            int64_t boundary = std::clamp(decayed, begin, end);
            report_unfit(range(begin, boundary, u.keep) + range(boundary, end, A(1)), state);
        }
    });
}

}  // namespace llmc
