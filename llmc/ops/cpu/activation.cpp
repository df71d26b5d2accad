// Activations and gated activations: one pass over memory each, arithmetic in float (double for f64).
#include <numbers>

#include "llmc/ops/cpu/cpu.h"
#include "llmc/ops/cpu/math.h"

namespace llmc {

namespace {

// x within [-limit, limit]; NaN stays NaN.
template <class A> A clamp(A x, A limit) {
    x = x > limit ? limit : x;
    return x < -limit ? -limit : x;
}

// Each kind has value(x) = f(x), slope(x) = f'(x), and what one of them costs in operations, roughly.

struct Relu {  // max(x, 0); NaN stays NaN
    static constexpr int64_t flops = 1;
    template <class A> static A value(A x) { return x < A(0) ? A(0) : x; }
    template <class A> static A slope(A x) { return x > A(0) ? A(1) : A(0); }
};

struct Gelu {  // x sigmoid(2 u) = 0.5 x (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3): the sigmoid keeps digits where tanh u = -1
    static constexpr int64_t flops = 14;
    static constexpr double two_root = 2 * std::numbers::sqrt2 * std::numbers::inv_sqrtpi, cubic = 0.044715;
    template <class A> static A value(A x) { return x * fast_sigmoid(A(two_root) * (x + A(cubic) * x * x * x)); }
    template <class A> static A slope(A x) {
        x = clamp(x, A(10));  // f' is 0 or 1 there to all digits, e finite
        A e = fast_exp(A(-two_root) * (x + A(cubic) * x * x * x)), s = A(1) / (A(1) + e);  // 1 - s = e s without cancellation
        return s + x * s * (e * s) * A(two_root) * (A(1) + A(3 * cubic) * x * x);
    }
};

// density(x) = exp(-x^2 / 2), tail(x) = P(Z > |x|) for a standard normal Z.
inline float normal_tail(float x, float density) {
    // tail / density is a smooth function of t = 1 / (1 + 0.27 |x|): Chebyshev interpolation on |x| < 13.3, relative error 3e-8.
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
    static constexpr int64_t flops = 24;
    template <class A> static A value(A x) {
        A tail = normal_tail(x, fast_exp(A(-0.5) * x * x));
        return x * (x < A(0) ? tail : A(1) - tail);
    }
    template <class A> static A slope(A x) {
        x = clamp(x, A(100));  // infinity times density 0 would be NaN
        A density = fast_exp(A(-0.5) * x * x), tail = normal_tail(x, density);
        return (x < A(0) ? tail : A(1) - tail) + x * density * A(std::numbers::inv_sqrtpi / std::numbers::sqrt2);
    }
};

struct Silu {  // x sigmoid(x)
    static constexpr int64_t flops = 12;
    template <class A> static A value(A x) { return x * fast_sigmoid(x); }
    template <class A> static A slope(A x) {
        x = clamp(x, A(87));
        A e = fast_exp(-x), s = A(1) / (A(1) + e);
        return s + x * s * (e * s);
    }
};

// Calls f with the kind's struct.
template <class F>
void dispatch_kind(Activation kind, const char* what, F&& f) {
    switch (kind) {
        case Activation::relu: return f(Relu{});
        case Activation::gelu: return f(Gelu{});
        case Activation::gelu_erf: return f(GeluErf{});
        case Activation::silu: return f(Silu{});
        case Activation::none: run_error(what, " was given no activation to apply");
    }
}

// out[i] = f(in[i]...): every element on its own, so outputs may alias inputs element by element.
template <class T, class F, class... In>
void map_elements(int64_t n, int threads, F f, const Tensor& out, const In&... in) {
    T* to = ptr<T>(out);
    using A = arithmetic_t<T>;
#pragma omp parallel for simd schedule(static) num_threads(threads) if (n > 4096)
    for (int64_t i = 0; i < n; i++) to[i] = T(f(A(static_cast<const T*>(in.data)[i])...));
}

}  // namespace

void activation_forward(Tensor out, Tensor x, Activation kind, Context& ctx) {
    check(x, x.dtype, x.shape, "activation_forward:");
    check(out, x.dtype, x.shape, "activation_forward:");
    dispatch_kind(kind, "activation_forward", [&](auto k) {
        Op op(ctx, "activation_forward", k.flops * x.numel());
        if (!op.run) return;
        dispatch(x.dtype, [&](auto zero) {
            map_elements<decltype(zero)>(x.numel(), ctx.threads, [k](auto v) { return k.value(v); }, out, x);
        });
    });
}

void activation_backward(Tensor dx, Tensor dout, Tensor x, Activation kind, Context& ctx) {
    check(x, x.dtype, x.shape, "activation_backward:");
    check(dout, x.dtype, x.shape, "activation_backward:");
    check(dx, x.dtype, x.shape, "activation_backward:");
    dispatch_kind(kind, "activation_backward", [&](auto k) {
        Op op(ctx, "activation_backward", (k.flops + 1) * x.numel());
        if (!op.run) return;
        dispatch(x.dtype, [&](auto zero) {
            map_elements<decltype(zero)>(x.numel(), ctx.threads, [k](auto v, auto d) { return d * k.slope(v); }, dx, x, dout);
        });
    });
}

void gated_forward(Tensor out, Tensor gate, Tensor up, Activation kind, Context& ctx) {
    check(gate, gate.dtype, gate.shape, "gated_forward:");
    check(up, gate.dtype, gate.shape, "gated_forward:");
    check(out, gate.dtype, gate.shape, "gated_forward:");
    dispatch_kind(kind, "gated_forward", [&](auto k) {
        Op op(ctx, "gated_forward", (k.flops + 1) * gate.numel());
        if (!op.run) return;
        dispatch(gate.dtype, [&](auto zero) {
            map_elements<decltype(zero)>(gate.numel(), ctx.threads, [k](auto g, auto u) { return k.value(g) * u; }, out, gate, up);
        });
    });
}

// dgate = dout * up * f'(gate), dup = dout * f(gate), both in one pass because dup may overwrite dout.
void gated_backward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up, Activation kind, Context& ctx) {
    check(gate, gate.dtype, gate.shape, "gated_backward:");
    for (const Tensor& t : {up, dout, dgate, dup}) check(t, gate.dtype, gate.shape, "gated_backward:");
    dispatch_kind(kind, "gated_backward", [&](auto k) {
        Op op(ctx, "gated_backward", (2 * k.flops + 3) * gate.numel());
        if (!op.run) return;
        dispatch(gate.dtype, [&](auto zero) {
            using T = decltype(zero);
            using A = arithmetic_t<T>;
            const int64_t n = gate.numel();
            const T *d = ptr<const T>(dout), *g = ptr<const T>(gate), *u = ptr<const T>(up);
            T *to_gate = ptr<T>(dgate), *to_up = ptr<T>(dup);
#pragma omp parallel for simd schedule(static) num_threads(ctx.threads) if (n > 4096)
            for (int64_t i = 0; i < n; i++) {
                A dv = d[i], gv = g[i], uv = u[i];
                to_gate[i] = T(dv * uv * k.slope(gv));
                to_up[i] = T(dv * k.value(gv));
            }
        });
    });
}

}  // namespace llmc
