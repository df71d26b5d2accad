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

// The new value of an element; its moments are written.
template <class P, class A>
struct AdamWValue {
    const P* param;
    A *m, *v;
    const A* grad;
    A beta1, beta2, rest1, rest2;         // rest = 1 - beta
    A grad_scale, step_size, root2, eps;  // step_size = lr / bias_correction1, root2 = 1 / sqrt(bias_correction2)
    A keep;                               // 1 - lr * weight_decay, or 1

    AdamWValue(Tensor param, Tensor m, Tensor v, Tensor grad, const AdamW& o, const StepState& s)
        : param(ptr<P>(param)), m(ptr<A>(m)), v(ptr<A>(v)), grad(ptr<A>(grad)), beta1(A(o.beta1)), beta2(A(o.beta2)),
          rest1(A(1 - o.beta1)), rest2(A(1 - o.beta2)), grad_scale(A(s.grad_scale)),
          step_size(A(s.lr / s.bias_correction1)), root2(A(1 / std::sqrt(s.bias_correction2))), eps(A(o.eps)),
          keep(A(1 - s.lr * o.weight_decay)) {}

    A operator()(int64_t i, A& sum) const {
        const A g = grad[i] * grad_scale;
        const A new_m = m[i] = beta1 * m[i] + rest1 * g;
        const A new_v = v[i] = beta2 * v[i] + rest2 * g * g;
        const A p = A(param[i]) * keep - step_size * new_m / (std::sqrt(new_v) * root2 + eps);
        sum += unfit(p) + unfit(new_v);
        return p;
    }
};

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
        const AdamWValue<P, A> decaying(param, m, v, grad, options, state);
        AdamWValue<P, A> staying = decaying;
        staying.keep = 1;
        auto put = [&](int64_t begin, int64_t end, const AdamWValue<P, A>& value) {
            return put_updates(ptr<P>(param), ptr<bf16>(compute_copy), begin, end, value, options, state.t);
        };
        in_chunks(n, ctx.threads, [&](int64_t begin, int64_t end) {
            const int64_t boundary = std::clamp(decayed, begin, end);
            report_unfit(put(begin, boundary, decaying) + put(boundary, end, staying), state);
        });
    });
}

}  // namespace llmc
