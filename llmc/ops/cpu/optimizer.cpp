// The optimizer on the CPU: the sums of a step, the decision about its update, AdamW (Loshchilov & Hutter 2019).
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

namespace {

StepState* step_state(const Tensor& step) { return ptr<StepState>(step); }

void check_step(const Tensor& step) { check(step, DType::i32, step_state_tensor(nullptr).shape, "step"); }

constexpr int64_t chunk_size = 16384;  // elements per partial sum: fixed, whatever the number of threads
int64_t chunks_of(int64_t n) { return (n + chunk_size - 1) / chunk_size; }

template <class T>
double sum(const T* x, int64_t n) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; i++) total += double(x[i]);
    return total;
}

template <class T>
double sum_of_squares(const T* x, int64_t n) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; i++) total += double(x[i]) * double(x[i]);
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
    check_step(step);
    check(losses, arithmetic_dtype(losses.dtype), losses.shape, "losses");
    check(targets, DType::i32, losses.shape, "targets");
    int64_t n = losses.numel();
    Op op(ctx, "loss_accumulate", n, chunks_of(n) * int64_t(sizeof(double)));
    if (!op.run) return;
    dispatch(losses.dtype, [&](auto zero) {
        using T = decltype(zero);
        step_state(step)->loss_sum += sum_in_chunks(&sum<T>, ptr<const T>(losses), n, op.workspace, ctx.threads);
    });
    const int32_t* target = ptr<int32_t>(targets);
    step_state(step)->loss_count += std::count_if(target, target + n, [](int32_t t) { return t >= 0; });
}

void grad_norm_accumulate(Tensor step, Tensor grad, Context& ctx) {
    check_step(step);
    check(grad, arithmetic_dtype(grad.dtype), grad.shape, "grad");
    int64_t n = grad.numel();
    Op op(ctx, "grad_norm_accumulate", 2 * n, chunks_of(n) * int64_t(sizeof(double)));
    if (!op.run) return;
    dispatch(grad.dtype, [&](auto zero) {
        using T = decltype(zero);
        step_state(step)->grad_square_sum +=
            sum_in_chunks(&sum_of_squares<T>, ptr<const T>(grad), n, op.workspace, ctx.threads);
    });
}

void step_decide(Tensor step, double clip, double beta1, double beta2, Context& ctx) {
    check_step(step);
    Op op(ctx, "step_decide");
    if (!op.run) return;
    StepState& s = *step_state(step);
    s.ok = std::isfinite(s.loss_sum) && std::isfinite(s.grad_square_sum);
    s.grad_norm = std::sqrt(s.grad_square_sum);
    s.grad_scale = s.ok && clip > 0 ? std::min(1.0, clip / (s.grad_norm + 1e-6)) : 1.0;
    if (!s.ok) {
        s.skipped++;
        s.skipped_in_a_row++;
        return;
    }
    s.skipped_in_a_row = 0;
    s.total_loss_sum += s.loss_sum;
    s.total_loss_count += s.loss_count;
    s.t++;
    s.bias_correction1 = 1 - std::pow(beta1, double(s.t));
    s.bias_correction2 = 1 - std::pow(beta2, double(s.t));
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
void adamw_range(P* param, bf16* compute_copy, A* m, A* v, const A* grad, int64_t begin, int64_t end,
                 const Update<A>& u, A keep) {
    auto update = [&](int64_t i) {
        A g = grad[i] * u.grad_scale;
        m[i] = u.beta1 * m[i] + u.rest1 * g;
        v[i] = u.beta2 * v[i] + u.rest2 * g * g;
        return A(param[i]) * keep - u.step_size * m[i] / (std::sqrt(v[i]) * u.root2 + u.eps);
    };
    if (compute_copy) {
#pragma omp simd
        for (int64_t i = begin; i < end; i++) {
            A p = update(i);
            param[i] = P(p);
            compute_copy[i] = bf16(float(p));
        }
    } else {
#pragma omp simd
        for (int64_t i = begin; i < end; i++) param[i] = P(update(i));
    }
}

}  // namespace

void adamw_update(Tensor param, Tensor compute_copy, Tensor m, Tensor v, Tensor grad, Tensor step, int64_t decayed,
                  const AdamW& options, Context& ctx) {
    check_step(step);
    int64_t n = param.numel();
    DType arithmetic_type = arithmetic_dtype(param.dtype);
    check(param, param.dtype, {n}, "param");
    check(m, arithmetic_type, {n}, "m");
    check(v, arithmetic_type, {n}, "v");
    check(grad, arithmetic_type, {n}, "grad");
    if (compute_copy) check(compute_copy, DType::bf16, {n}, "compute_copy");
    if (decayed < 0 || decayed > n)
        run_error("adamw_update: ", decayed, " decayed elements, param ", param.name, " has ", n);
    Op op(ctx, "adamw_update", 15 * n);
    if (!op.run || !step_state(step)->ok) return;
    dispatch(param.dtype, [&](auto zero) {
        using P = decltype(zero);
        using A = arithmetic_t<P>;
        const Update<A> u(options, *step_state(step));
        auto range = [&](int64_t begin, int64_t end, A keep) {
            adamw_range(ptr<P>(param), ptr<bf16>(compute_copy), ptr<A>(m), ptr<A>(v), ptr<A>(grad), begin, end, u,
                        keep);
        };
#pragma omp parallel for schedule(static) num_threads(ctx.threads)
        for (int64_t chunk = 0; chunk < chunks_of(n); chunk++) {
            int64_t begin = chunk * chunk_size, end = std::min(n, begin + chunk_size);
            int64_t boundary = std::clamp(decayed, begin, end);
            range(begin, boundary, u.keep);
            range(boundary, end, A(1));
        }
    });
}

}  // namespace llmc
