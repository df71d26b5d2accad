// Activations and gated activations: one pass over memory each, arithmetic in float (double for f64).
#include <numbers>

#include "llmc/ops/cpu/activation.h"

#include "llmc/ops/checks/activation.h"
#include "llmc/ops/cpu/cpu.h"
#include "llmc/ops/cpu/math.h"

namespace llmc {

namespace {

// x within [-limit, limit]; NaN stays NaN.
template <class A> A clamp(A x, A limit) {
    x = x > limit ? limit : x;
    return x < -limit ? -limit : x;
}

// Each kind has value(x) = f(x), and both(x) = {f(x), f'(x)}, which share most of their arithmetic.
template <class A> struct Both { A value, slope; };

struct Relu {  // max(x, 0); NaN stays NaN
    template <class A> static A value(A x) { return x < A(0) ? A(0) : x; }
    template <class A> static Both<A> both(A x) { return {value(x), x > A(0) ? A(1) : A(0)}; }
};

// x where it is not below `near`, which is x within limits: f(x) = x there, and 0 to all digits below.
template <class A> A upper(A x, A near) { return x < near ? near : x; }

// 0.5 x (1 + tanh u) = x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3): the sigmoid keeps digits where tanh u = -1.
// 2 u = x (linear + cubic x^2).
struct Gelu {
    static constexpr double linear = 2 * std::numbers::sqrt2 * std::numbers::inv_sqrtpi, cubic = 0.044715 * linear;
    template <class A> static A value(A x) { return x / (A(1) + fast_exp(-x * (A(linear) + A(cubic) * (x * x)))); }
    template <class A> static Both<A> both(A far) {
        const A x = clamp(far, A(10));  // f' is 0 or 1 there to all digits, |2 u| < 87.4
        const A square = x * x, e = exp_unchecked(-x * (A(linear) + A(cubic) * square));
        const A s = A(1) / (A(1) + e);  // 1 - s = e s without cancellation
        return {upper(far, x) * s, s + x * s * (e * s) * (A(linear) + A(3 * cubic) * square)};
    }
};

// density(x) = exp(-x^2 / 2), tail(x) = P(Z > |x|) for a standard normal Z.
inline float normal_tail(float x, float density) {
    // tail / density is a smooth function of t = 1 / (1 + 0.27 |x|): Chebyshev interpolation on |x| < 13.3, relative
    // error 3e-8.
    const float t = 1.0f / (1.0f + 0.27f * std::abs(x));
    float p = 0.0289351474f;
    p = p * t - 0.126397222f;
    p = p * t + 0.169679314f;
    p = p * t - 0.0691715032f;
    p = p * t + 0.107850164f;
    p = p * t + 0.0720209852f;
    p = p * t + 0.101821192f;
    p = p * t + 0.107541189f;
    p = p * t + 0.107720748f;
    return p * t * density;
}
inline double normal_tail(double x, double) { return 0.5 * std::erfc(std::abs(x) / std::numbers::sqrt2); }

struct GeluErf {  // x Phi(x), Phi the distribution function of the standard normal
    template <class A> static A value(A x) {
        A tail = normal_tail(x, exp_up_to_89(A(-0.5) * x * x));
        return x * (x < A(0) ? tail : A(1) - tail);
    }
    template <class A> static Both<A> both(A far) {
        const A x = clamp(far, A(100));  // infinity times density 0 would be NaN
        A density = exp_up_to_89(A(-0.5) * x * x), tail = normal_tail(x, density), phi = x < A(0) ? tail : A(1) - tail;
        return {upper(far, x) * phi, phi + x * density * A(std::numbers::inv_sqrtpi / std::numbers::sqrt2)};
    }
};

struct Silu {  // x sigmoid(x)
    template <class A> static A value(A x) { return x * fast_sigmoid(x); }
    template <class A> static Both<A> both(A far) {
        const A x = clamp(far, A(87));
        A e = exp_unchecked(-x), s = A(1) / (A(1) + e);
        return {upper(far, x) * s, s + x * s * (e * s)};
    }
};

// Calls f with the kind's struct.
template <class F>
void dispatch_kind(Activation kind, F&& f) {
    switch (kind) {
        case Activation::relu: return f(Relu{});
        case Activation::gelu: return f(Gelu{});
        case Activation::gelu_erf: return f(GeluErf{});
        case Activation::silu: return f(Silu{});
        case Activation::none: break;  // refused by activation_flops
    }
}

// Runs f over all elements of equally shaped tensors, block by block:
//     f(in, out, count): in[i][j], out[i][j] = element j of the block in tensor i, as float (double for f64).
// bf16 is widened in blocks that stay in the first-level cache. Outputs may alias inputs as ops.h says.
constexpr int64_t block_size = 256;
template <class T, size_t inputs, size_t outputs, class F>
void map_blocks(const Tensor (&out)[outputs], const Tensor (&in)[inputs], int threads, F f) {
    using A = arithmetic_t<T>;
    const int64_t n = in[0].numel(), blocks = (n + block_size - 1) / block_size;
#pragma omp parallel for schedule(static) num_threads(threads) if (n > 4096)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t first = b * block_size, count = std::min(block_size, n - first);
        const A* from[inputs];
        A* to[outputs];
        if constexpr (std::is_same_v<T, A>) {
            for (size_t i = 0; i < inputs; i++) from[i] = ptr<const A>(in[i]) + first;
            for (size_t i = 0; i < outputs; i++) to[i] = ptr<A>(out[i]) + first;
            f(from, to, count);
        } else {
            alignas(64) A wide_in[inputs][block_size], wide_out[outputs][block_size];
            for (size_t i = 0; i < inputs; i++) {
                from[i] = wide_in[i];
                const T* data = ptr<const T>(in[i]) + first;
#pragma omp simd
                for (int64_t j = 0; j < count; j++) wide_in[i][j] = A(data[j]);
            }
            for (size_t i = 0; i < outputs; i++) to[i] = wide_out[i];
            f(from, to, count);
            for (size_t i = 0; i < outputs; i++) {
                T* data = ptr<T>(out[i]) + first;
#pragma omp simd
                for (int64_t j = 0; j < count; j++) put(data[j], wide_out[i][j]);
            }
        }
    }
}

// Of a reference to an array.
template <class Reference> constexpr size_t length_of = std::extent_v<std::remove_reference_t<Reference>>;

// What all four ops share: checks, the Op, the choice of kind and type. rest: operations per element besides those of
// the activation.
template <size_t inputs, size_t outputs, class F>
void elementwise(const char* name, const Tensor (&out)[outputs], const Tensor (&in)[inputs], Activation kind,
                 int64_t rest, Context& ctx, F f) {
    Op op(ctx, name, check_elementwise(name, out, in, kind, rest), 0, elementwise_bytes(out, in));
    if (!op.run) return;
    dispatch_kind(kind, [&](auto k) {
        dispatch(in[0].dtype, [&](auto zero) {
            map_blocks<decltype(zero)>(out, in, ctx.threads,
                                       [&](auto& from, auto& to, int64_t n) { f(k, from, to, n); });
        });
    });
}

// The two passes over a block.
constexpr auto forward_pass = [](auto k, auto& from, auto& to, int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) to[0][j] = k.value(from[0][j]);
};
constexpr auto backward_pass = [](auto k, auto& from, auto& to, int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        const auto f = k.both(from[0][j]);
        to[0][j] = from[1][j] * f.slope;
        if constexpr (length_of<decltype(to)> == 2) to[1][j] = f.value;
    }
};

}  // namespace

void activate(float* out, const float* x, int64_t n, Activation kind) {
    const float* const from[] = {x};
    float* const to[] = {out};
    dispatch_kind(kind, [&](auto k) { forward_pass(k, from, to, n); });
}

void activate_backward(float* dx, float* value, const float* dout, const float* x, int64_t n, Activation kind) {
    const float* const from[] = {x, dout};
    float *const one[] = {dx}, *const two[] = {dx, value};
    dispatch_kind(kind, [&](auto k) {
        if (value) backward_pass(k, from, two, n);
        else backward_pass(k, from, one, n);
    });
}

void activation_forward(Tensor out, Tensor x, Activation kind, Context& ctx) {
    elementwise("activation_forward", {out}, {x}, kind, 0, ctx, forward_pass);
}

void activation_backward(Tensor dx, Tensor value, Tensor dout, Tensor x, Activation kind, Context& ctx) {
    if (value) elementwise("activation_backward", {dx, value}, {x, dout}, kind, 2, ctx, backward_pass);
    else elementwise("activation_backward", {dx}, {x, dout}, kind, 1, ctx, backward_pass);
}

void gated_forward(Tensor out, Tensor gate, Tensor up, Activation kind, Context& ctx) {
    elementwise("gated_forward", {out}, {gate, up}, kind, 1, ctx,
                [](auto k, auto& from, auto& to, int64_t n) {
#pragma omp simd
                    for (int64_t j = 0; j < n; j++) to[0][j] = k.value(from[0][j]) * from[1][j];
                });
}

// dgate = dout * up * f'(gate), dup = dout * f(gate).
void gated_backward(Tensor dgate, Tensor dup, Tensor value, Tensor dout, Tensor gate, Tensor up, Activation kind,
                    Context& ctx) {
    auto pass = [](auto k, auto& from, auto& to, int64_t n) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            const auto f = k.both(from[0][j]);
            const auto u = from[1][j], d = from[2][j];
            to[0][j] = d * u * f.slope;
            to[1][j] = d * f.value;
            if constexpr (length_of<decltype(to)> == 3) to[2][j] = f.value * u;
        }
    };
    if (value) elementwise("gated_backward", {dgate, dup, value}, {gate, up, dout}, kind, 4, ctx, pass);
    else elementwise("gated_backward", {dgate, dup}, {gate, up, dout}, kind, 3, ctx, pass);
}

}  // namespace llmc
