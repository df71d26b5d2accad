// Activations against the standard library in float64 and finite differences.
#include "dev/test/reference.h"

namespace llmc::test {
namespace {

const std::vector<Activation> kinds = {Activation::relu, Activation::gelu, Activation::gelu_erf, Activation::silu};
const double pi = 3.14159265358979323846;

// f in double, as papers write it.
double oracle(Activation kind, double x) {
    switch (kind) {
        case Activation::relu: return x > 0 ? x : 0;
        case Activation::gelu: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / pi) * (x + 0.044715 * x * x * x)));
        case Activation::gelu_erf: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
        case Activation::silu: return x / (1 + std::exp(-x));
        default: return x;
    }
}
double slope_oracle(Activation kind, double x) {
    double h = 1e-5;
    return (oracle(kind, x + h) - oracle(kind, x - h)) / (2 * h);
}
template <class F>
Vector map(const Vector& x, F f) {
    Vector y(x.size());
    for (size_t i = 0; i < x.size(); i++) y[i] = f(x[i]);
    return y;
}

// Elementwise error of a few roundoffs of the value itself, except that gelu's 1 - tanh form in the oracle limits it to
// 1e-16.
void expect_each_close(const Vector& got, const Vector& want, const Vector& x, double relative, double absolute,
                       const char* what) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); i++)
        ASSERT_NEAR(got[i], want[i], relative * std::abs(want[i]) + absolute) << what << " at x = " << x[i];
}

TEST(Activation, ForwardMatchesTheFormula) {
    for (Activation kind : kinds)
        for (DType type : all_act)
            for (int64_t n : {0, 1, 3, 17, 33, 65, 5000}) {  // 5000: the threaded path
                Device device;
                Tensor x = device.tensor(type, {n}, random_vector(n, 1, 8.0), "x"),
                       out = device.tensor(type, {n}, "out");
                activation_forward(out, x, kind, device.ctx);
                Vector vx = device.read(x), want = map(vx, [&](double v) { return oracle(kind, v); });
                // -x^2 / 2 and the like round before they are exponentiated: 2^-24 times up to 32 in the exponent.
                double relative = 40 * (type == DType::f64 ? 0x1p-53 : 0x1p-24) + 2 * roundoff(type);
                expect_each_close(device.read(out), want, vx, relative, 1e-15, name_of(type));
            }
}

TEST(Activation, BackwardMatchesFiniteDifferences) {
    for (Activation kind : kinds)
        for (DType type : all_act)
            for (int64_t n : {1, 7, 65, 5000}) {
                Device device;
                Vector values = random_vector(n, 2, 6.0);
                for (double& v : values)
                    if (std::abs(v) < 1e-3) v = 0.5;  // not across relu's corner
                Tensor x = device.tensor(type, {n}, values, "x"),
                       dout = device.tensor(type, {n}, random_vector(n, 3), "dout");
                Tensor dx = device.tensor(type, {n}, "dx"), value = device.tensor(type, {n}, "value");
                activation_backward(dx, {}, dout, x, kind, device.ctx);
                Vector vx = device.read(x), vd = device.read(dout), want(vx.size());
                for (size_t i = 0; i < want.size(); i++) want[i] = vd[i] * slope_oracle(kind, vx[i]);
                EXPECT_TRUE(close(device.read(dx), want, tolerance(type) + 1e-9)) << int(kind) << " " << name_of(type);
                activation_backward(dout, value, dout, x, kind, device.ctx);  // dx may alias dout
                EXPECT_EQ(device.read(dout), device.read(dx));
                const Sums of_x{map(vx, [&](double v) { return oracle(kind, v); }), magnitudes(vx)};
                EXPECT_TRUE(close_sums(device.read(value), of_x, type, tolerance(type)))
                    << int(kind) << " " << name_of(type);
            }
}

TEST(Activation, ReluBackwardFromTheOutput) {
    Device device;
    Tensor x = device.tensor(DType::f32, {65}, random_vector(65, 1), "x"), out = device.tensor(DType::f32, {65}, "out");
    Tensor dout = device.tensor(DType::f32, {65}, random_vector(65, 2), "dout");
    Tensor from_in = device.tensor(DType::f32, {65}, "from_in"), from_out = device.tensor(DType::f32, {65}, "from_out");
    activation_forward(out, x, Activation::relu, device.ctx);
    activation_backward(from_in, {}, dout, x, Activation::relu, device.ctx);
    activation_backward(from_out, {}, dout, out, Activation::relu, device.ctx);
    EXPECT_EQ(device.read(from_in), device.read(from_out));
}

TEST(Activation, GatedMatchesFormulaAndFiniteDifferences) {
    const int64_t n = 65;
    for (Activation kind : kinds)
        for (DType type : all_act) {
            Device device;
            Tensor gate = device.tensor(type, {5, 13}, random_vector(n, 1, 4.0), "gate");
            Tensor up = device.tensor(type, {5, 13}, random_vector(n, 2), "up");
            Tensor dout = device.tensor(type, {5, 13}, random_vector(n, 3), "dout");
            Tensor out = device.tensor(type, {5, 13}, "out"), dgate = device.tensor(type, {5, 13}, "dgate");
            Tensor dup = device.tensor(type, {5, 13}, "dup"), dgate_too = device.tensor(type, {5, 13}, "dgate_too");
            Tensor again = device.tensor(type, {5, 13}, "again");
            Vector vg = device.read(gate), vu = device.read(up), vd = device.read(dout), want_dgate(vg.size());
            Sums want{Vector(vg.size()), Vector(vg.size())}, want_dup = want;
            for (size_t i = 0; i < vg.size(); i++) {
                want.value[i] = oracle(kind, vg[i]) * vu[i];
                want.terms[i] = std::abs(vg[i] * vu[i]);
                want_dgate[i] = vd[i] * vu[i] * slope_oracle(kind, vg[i]);
                want_dup.value[i] = vd[i] * oracle(kind, vg[i]);
                want_dup.terms[i] = std::abs(vd[i] * vg[i]);
            }
            gated_forward(out, gate, up, kind, device.ctx);
            gated_backward(dgate_too, dup, again, dout, gate, up, kind, device.ctx);
            gated_backward(dgate, dout, {}, dout, gate, up, kind, device.ctx);  // dup may alias dout
            EXPECT_TRUE(close_sums(device.read(out), want, type, tolerance(type)));
            EXPECT_TRUE(close(device.read(dgate), want_dgate, tolerance(type) + 1e-9));
            EXPECT_TRUE(close_sums(device.read(dout), want_dup, type, tolerance(type)));
            EXPECT_TRUE(close_sums(device.read(again), want, type, tolerance(type)));
            EXPECT_EQ(device.read(dgate_too), device.read(dgate));
            EXPECT_EQ(device.read(dup), device.read(dout));
        }
}

// Where Phi(x) is 1e-12 and less, the rounding error of x^2 / 2 is as large as what it is the exponent of allows.
TEST(Activation, GeluErfInTheTail) {
    Vector tail(4001);
    for (size_t i = 0; i < tail.size(); i++) tail[i] = -8 + double(i) / 4000;
    Device device;
    Tensor x = device.tensor(DType::f32, {4001}, tail, "x"), out = device.tensor(DType::f32, {4001}, "out");
    activation_forward(out, x, Activation::gelu_erf, device.ctx);
    Vector vx = device.read(x), want = map(vx, [&](double v) { return oracle(Activation::gelu_erf, v); });
    expect_each_close(device.read(out), want, vx, 40 * 0x1p-24, 0, "gelu_erf");
}

// Slices may begin anywhere, not only where 16 bytes begin.
TEST(Activation, ArraysMayBeginAnywhere) {
    for (DType type : all_act) {
        Device device;
        Tensor x = device.tensor(type, {38}, random_vector(38, 4, 3.0), "x"), out = device.tensor(type, {38}, "out");
        Tensor from_slice = device.tensor(type, {38}, Vector(38, 0.5), "from_slice");
        activation_forward(out, x, Activation::gelu, device.ctx);
        activation_forward(from_slice.slice(1, 37), x.slice(1, 37), Activation::gelu, device.ctx);
        Vector want = device.read(out);
        want.front() = want.back() = 0.5;
        EXPECT_EQ(device.read(from_slice), want);
    }
}

TEST(Activation, ExtremeInputs) {
    const double nan_value = std::numeric_limits<double>::quiet_NaN(),
                 infinity = std::numeric_limits<double>::infinity();
    for (Activation kind : kinds)
        for (DType type : all_act) {
            Device device;
            Tensor x = device.tensor(type, {5}, {nan_value, infinity, 1e30, -1e30, -50}, "x"),
                   out = device.tensor(type, {5}, "out");
            Tensor dout = device.tensor(type, {5}, {1, 1, 1, 1, 1}, "dout"), dx = device.tensor(type, {5}, "dx");
            Tensor again = device.tensor(type, {5}, "again");
            activation_forward(out, x, kind, device.ctx);
            activation_backward(dx, again, dout, x, kind, device.ctx);
            Vector d = device.read(dx), vx = device.read(x);
            for (const Vector& y : {device.read(out), device.read(again)}) {
                EXPECT_TRUE(std::isnan(y[0]));
                EXPECT_EQ(y[1], infinity);
                EXPECT_EQ(y[2], vx[2]);
                EXPECT_NEAR(y[3], 0, 1e-15);
                EXPECT_NEAR(y[4], 0, 1e-15);
            }
            EXPECT_EQ(Vector(d.begin() + 1, d.begin() + 3), (Vector{1, 1}));
            EXPECT_NEAR(d[3], 0, 1e-15);
            EXPECT_NEAR(d[4], 0, 1e-15);
        }
}

TEST(Activation, AroundTheLimitsOfExp) {  // beyond these the kernels go on with a clamped x
    const Vector values = {-88.5, -87.5, -87, -86.9, -13.5, -10.1, -10, -9.9, 9.9, 10, 10.1, 86.9, 87, 87.5, 88.5};
    for (Activation kind : kinds) {
        Device device;
        const int64_t n = int64_t(values.size());
        Tensor x = device.tensor(DType::f32, {n}, values, "x"), value = device.tensor(DType::f32, {n}, "value");
        Tensor dout = device.tensor(DType::f32, {n}, Vector(values.size(), 1), "dout");
        Tensor out = device.tensor(DType::f32, {n}, "out"), dx = device.tensor(DType::f32, {n}, "dx");
        activation_forward(out, x, kind, device.ctx);
        activation_backward(dx, value, dout, x, kind, device.ctx);
        const Vector vx = device.read(x), want = map(vx, [&](double v) { return oracle(kind, v); });
        const double relative = 100 * 0x1p-24;  // an exponent of up to 90, rounded before it is exponentiated
        expect_each_close(device.read(out), want, vx, relative, 1e-15, "out");
        expect_each_close(device.read(value), want, vx, relative, 1e-15, "value");
        expect_each_close(device.read(dx), map(vx, [&](double v) { return slope_oracle(kind, v); }), vx, 1e-7, 1e-7,
                          "slope");
    }
}

TEST(Activation, NamesTheWrongTensor) {
    Device device;
    Tensor x = device.tensor(DType::f32, {4}, "x"), wrong = device.tensor(DType::f32, {5}, "wrong");
    Tensor half = device.tensor(DType::bf16, {4}, "half");
    EXPECT_TRUE(refuses([&] { activation_forward(wrong, x, Activation::relu, device.ctx); }, "wrong has shape [5]"));
    EXPECT_TRUE(
        refuses([&] { activation_backward(x, {}, half, x, Activation::relu, device.ctx); }, "half has dtype BF16"));
    EXPECT_TRUE(refuses([&] { gated_forward(x, x, wrong, Activation::silu, device.ctx); }, "wrong has shape [5]"));
    EXPECT_TRUE(refuses([&] { activation_forward(x, x, Activation::none, device.ctx); }, "no activation"));
}

}  // namespace
}  // namespace llmc::test
