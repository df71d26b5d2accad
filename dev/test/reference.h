// What the tests of ops share: device tensors from plain double vectors and back, reproducible random numbers, error
// measures with tolerances, finite differences, and the float64 matrix product.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "llmc/ops/ops.h"

namespace llmc::test {

using Vector = std::vector<double>;

// ------------------------------------------------------------------------------------------------------ random numbers
// n numbers in [-scale, scale), the same on every machine for the same seed (splitmix64).
inline Vector random_vector(int64_t n, uint64_t seed, double scale = 1.0) {
    Vector v(static_cast<size_t>(n));
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 0x853c49e6748fea9bu;
    for (double& x : v) {
        uint64_t z = (state += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        x = (double(z >> 11) * 0x1p-53 * 2 - 1) * scale;
    }
    return v;
}

// n integers in [low, high), as doubles.
inline Vector random_integers(int64_t n, int64_t low, int64_t high, uint64_t seed) {
    Vector v = random_vector(n, seed);
    for (double& x : v) x = std::min(double(high - 1), std::floor(double(low) + (x + 1) / 2 * double(high - low)));
    return v;
}

// ----------------------------------------------------------------------------------------------------- host <-> device
// Elements of `dtype` as bytes, and back.
inline std::vector<char> encode(DType dtype, const Vector& v) {
    std::vector<char> bytes(v.size() * static_cast<size_t>(size_of(dtype)));
    auto put = [&](auto zero) {
        for (size_t i = 0; i < v.size(); i++) {
            decltype(zero) x;
            if constexpr (std::is_same_v<decltype(zero), bf16>) x = bf16(float(v[i]));
            else x = static_cast<decltype(zero)>(v[i]);
            std::memcpy(bytes.data() + i * sizeof x, &x, sizeof x);
        }
    };
    switch (dtype) {
        case DType::f32: put(float{}); break;
        case DType::bf16: put(bf16{}); break;
        case DType::f64: put(double{}); break;
        case DType::i32: put(int32_t{}); break;
    }
    return bytes;
}
inline Vector decode(DType dtype, const std::vector<char>& bytes) {
    Vector v(bytes.size() / static_cast<size_t>(size_of(dtype)));
    auto get = [&](auto zero) {
        for (size_t i = 0; i < v.size(); i++) {
            decltype(zero) x;
            std::memcpy(static_cast<void*>(&x), bytes.data() + i * sizeof x, sizeof x);
            if constexpr (std::is_same_v<decltype(zero), bf16>) v[i] = float(x);
            else v[i] = static_cast<double>(x);
        }
    };
    switch (dtype) {
        case DType::f32: get(float{}); break;
        case DType::bf16: get(bf16{}); break;
        case DType::f64: get(double{}); break;
        case DType::i32: get(int32_t{}); break;
    }
    return v;
}
// What `v` becomes when stored as `dtype`: give an oracle these inputs, so that it sees what the op sees.
inline Vector rounded(DType dtype, const Vector& v) { return decode(dtype, encode(dtype, v)); }

// Owns the device tensors of one test.
//     Device device;                                     // or Device device(options)
//     Tensor x = device.tensor(DType::f32, {B, T, C}, random_vector(B * T * C, 1), "x");
//     Tensor out = device.tensor(DType::f32, {B, T, C}, "out");   // full of NaN: an element nobody wrote is seen
//     relu(out, x, device.ctx);  Vector result = device.read(out);
class Device {
  public:
    Context ctx;
    explicit Device(const ContextOptions& options = {}) : ctx(options) {}
    ~Device() {
        for (auto& [data, bytes] : owned) device_free(data, bytes, ctx);
    }
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    // `name` must be a literal.
    Tensor tensor(DType dtype, Shape shape, const Vector& values, const char* name) {
        if (int64_t(values.size()) != shape.numel())
            run_error("test tensor ", name, " ", shape.text(), " got ", values.size(), " values");
        int64_t bytes = std::max<int64_t>(1, shape.numel() * size_of(dtype));
        Tensor t(device_alloc(bytes, ctx), dtype, shape, name);
        owned.emplace_back(t.data, bytes);
        write(t, values);
        return t;
    }
    Tensor tensor(DType dtype, Shape shape, const char* name) {
        double poison = dtype == DType::i32 ? -123456789.0 : std::numeric_limits<double>::quiet_NaN();
        return tensor(dtype, shape, Vector(static_cast<size_t>(shape.numel()), poison), name);
    }
    void write(Tensor t, const Vector& values) { upload(t, encode(t.dtype, values).data(), ctx); }
    Vector read(Tensor t) {
        std::vector<char> bytes(static_cast<size_t>(t.bytes()));
        download(bytes.data(), t, ctx);
        return decode(t.dtype, bytes);
    }

  private:
    std::vector<std::pair<void*, int64_t>> owned;
};

// The activation types of the linked backend, for loops over all of them.
inline const std::vector<DType> all_act = [] {
    std::vector<DType> types;
    for (DType act : {DType::f32, DType::bf16, DType::f64})
        if (backend_supports(act)) types.push_back(act);
    return types;
}();
// The types of softmax weights, statistics and the like on the linked backend; the last is the most exact.
inline const std::vector<DType> arithmetic_types =
    backend_supports(DType::f64) ? std::vector{DType::f32, DType::f64} : std::vector{DType::f32};
// True where a test should try few and small sizes: kernels that are executed thread by thread, under a sanitizer.
inline bool small_sizes() {
    const char* sizes = std::getenv("TEST_SIZES");
    return sizes && std::string(sizes) == "small";
}
template <class Case>
std::vector<Case> few_or_all(std::vector<Case> few, const std::vector<Case>& more) {
    if (!small_sizes()) few.insert(few.end(), more.begin(), more.end());
    return few;
}
// Type of statistics and of gradients of parameters beside activations of this type.
inline DType statistics_dtype(DType act) { return act == DType::f64 ? DType::f64 : DType::f32; }

// -------------------------------------------------------------------------------------------------- errors, tolerances
// The largest magnitude, 0 of nothing; NaN if one of them is, which std::max would pass over.
inline double largest(const Vector& v) {
    double most = 0;
    for (const double x : v)
        if (!(std::abs(x) <= most)) {
            most = std::abs(x);
            if (std::isnan(most)) break;
        }
    return most;
}

// Whether a NaN is what a test expects, at the same places in both; otherwise a NaN agrees with nothing.
enum class Nans { wrong, expected };

// max |got - want| / max |want| (the denominator is 1 if want is all zero). Infinite if sizes differ or there is a NaN
// that is not expected; equal infinities agree.
inline double relative_error(const Vector& got, const Vector& want, Nans nans = Nans::wrong) {
    if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
    double error = 0, size = 0;
    for (size_t i = 0; i < want.size(); i++) {
        if (nans == Nans::expected && std::isnan(got[i]) && std::isnan(want[i])) continue;
        if (std::isfinite(want[i])) size = std::max(size, std::abs(want[i]));
        if (got[i] == want[i]) continue;
        const double e = std::abs(got[i] - want[i]);
        error = std::isfinite(e) ? std::max(error, e) : std::numeric_limits<double>::infinity();
    }
    return error / (size > 0 ? size : 1.0);
}

// Unit roundoff: the largest relative error of storing a number.
inline double roundoff(DType dtype) {
    return dtype == DType::f64 ? 0x1p-53 : dtype == DType::bf16 ? 0x1p-9 : 0x1p-24;
}

// That of the sums behind a result of this type: bf16 is added up in f32.
inline double roundoff_of_sums(DType dtype) { return roundoff(statistics_dtype(dtype)); }

// For relative_error of a result stored as `dtype` that sums `reduction_length` products of mixed sign. Summed one
// after another, the partial sums walk like sqrt(k) and so do their rounding errors: sqrt(length) roundoffs of the
// arithmetic type relative to the result, times 8 for the maximum over many elements; plus storing the result (twice
// the roundoff).
inline double tolerance(DType dtype, int64_t reduction_length = 1) {
    return 8 * roundoff_of_sums(dtype) * (1 + std::sqrt(double(std::max<int64_t>(reduction_length, 1)))) +
           2 * roundoff(dtype);
}

// EXPECT_TRUE(close(got, want, tolerance(dtype, k))): says the error and the worst element if not. With Nans::expected
// there must be a NaN.
inline testing::AssertionResult close(const Vector& got, const Vector& want, double tol, Nans nans = Nans::wrong) {
    const double error = relative_error(got, want, nans);
    const bool none = std::none_of(want.begin(), want.end(), [](double x) { return std::isnan(x); });
    if (nans == Nans::expected && none) return testing::AssertionFailure() << "no NaN, which was expected";
    if (error <= tol) return testing::AssertionSuccess();
    if (got.size() != want.size())
        return testing::AssertionFailure() << got.size() << " elements, expected " << want.size();
    size_t worst = 0;
    double most = -1;
    for (size_t i = 0; i < want.size(); i++) {
        const bool both_nan = std::isnan(got[i]) && std::isnan(want[i]);
        double e = got[i] == want[i] || (both_nan && nans == Nans::expected) ? 0 : std::abs(got[i] - want[i]);
        if (!std::isfinite(e)) e = std::numeric_limits<double>::infinity();
        if (e > most) most = e, worst = i;
    }
    return testing::AssertionFailure() << "relative error " << error << " > " << tol << ", worst at element " << worst
                                       << ": got " << got[worst] << ", expected " << want[worst];
}

// |got - want| <= bound, element by element; a NaN is in no bound. Says the element that is furthest outside.
inline testing::AssertionResult within(const Vector& got, const Vector& want, const Vector& bound) {
    if (got.size() != want.size() || bound.size() != want.size())
        return testing::AssertionFailure() << got.size() << " elements and " << bound.size() << " bounds, expected "
                                           << want.size();
    size_t worst = want.size(), outside = 0;
    double most = 0;
    for (size_t i = 0; i < want.size(); i++) {
        const double error = std::abs(got[i] - want[i]);
        if (error <= bound[i]) continue;
        const double times = error / bound[i];
        if (outside++ == 0 || times > most || std::isnan(times)) most = times, worst = i;
    }
    if (outside == 0) return testing::AssertionSuccess();
    return testing::AssertionFailure() << outside << " of " << want.size() << " elements are out of bounds, worst "
                                       << worst << ": got " << got[worst] << ", expected " << want[worst] << " within "
                                       << bound[worst];
}

// Results that are sums, by an oracle, and the sums of their terms' magnitudes, which rounding errors are measured by.
struct Sums {
    Vector value, terms;
    Sums& operator+=(const Vector& more) {
        for (size_t i = 0; i < value.size(); i++) value[i] += more.at(i), terms[i] += std::abs(more[i]);
        return *this;
    }
    void append(const Sums& more) {
        value.insert(value.end(), more.value.begin(), more.value.end());
        terms.insert(terms.end(), more.terms.begin(), more.terms.end());
    }
};
// What an oracle of sums of products makes of these is the sums of the terms' magnitudes.
inline Vector magnitudes(Vector v) {
    for (double& x : v) x = std::abs(x);
    return v;
}

// Bounds for within() of sums stored as `dtype`: 8 roundoffs of the arithmetic relative to an element's terms, plus
// storing it (twice the roundoff). Partial sums of k terms of random sign are about sqrt(k) terms large, and their
// rounding errors add up to about one roundoff of all k; the 8 is for the maximum over many elements.
inline Vector sum_bounds(DType dtype, const Sums& want) {
    Vector bounds(want.value.size());
    for (size_t i = 0; i < bounds.size(); i++)
        bounds[i] = 8 * roundoff_of_sums(dtype) * want.terms.at(i) + 2 * roundoff(dtype) * std::abs(want.value[i]);
    return bounds;
}

// The same sums where a factor of every term may itself be off by this much relative to itself: a statistic of a row,
// say. The terms count for so much more than the 8 roundoffs that sum_bounds() gives each.
inline Sums with_errors_of_factors(Sums sums, DType dtype, double relative) {
    for (double& term : sums.terms) term *= 1 + relative / (8 * roundoff_of_sums(dtype));
    return sums;
}
// Such an error, of a sum of so many terms of one sign added one after another: each partial sum may be as large as the
// result, so the roundings walk like sqrt(length).
inline double error_of_positive_sum(DType dtype, int64_t length) {
    return 8 * roundoff_of_sums(dtype) * std::sqrt(double(length));
}

// close() as a whole, and each element, however small, as exact as its own terms allow. `stored`: what an element may
// be off besides, relative to itself.
inline testing::AssertionResult close_sums(const Vector& got, const Sums& want, DType dtype, double tol,
                                           double stored = 0) {
    if (auto ok = close(got, want.value, tol); !ok) return ok;
    Vector bounds = sum_bounds(dtype, want);
    for (size_t i = 0; i < bounds.size(); i++) bounds[i] += stored * std::abs(want.value[i]);
    return within(got, want.value, bounds);
}

// Whether two results differ by more than `by` of the largest element. A NaN, an infinity or another number of elements
// is no such difference.
inline testing::AssertionResult different(const Vector& a, const Vector& b, double by) {
    const double error = relative_error(a, b);
    if (!std::isfinite(error) || !std::isfinite(largest(a)) || !std::isfinite(largest(b)))
        return testing::AssertionFailure() << "not two results of finite numbers and one size";
    if (error > by) return testing::AssertionSuccess();
    return testing::AssertionFailure() << "they differ by only " << error;
}

// True if f() throws a RunError (or another Error) whose message contains `part`, the name of what is wrong.
template <class Error = RunError>
testing::AssertionResult refuses(const std::function<void()>& f, const std::string& part) {
    try {
        f();
    } catch (const Error& e) {
        if (std::string(e.what()).find(part) != std::string::npos) return testing::AssertionSuccess();
        return testing::AssertionFailure() << "the message does not contain '" << part << "': " << e.what();
    }
    return testing::AssertionFailure() << "nothing was refused";
}

// ------------------------------------------------------------------------------------------------------------- oracles
// Gradient of a scalar function by central differences, element by element. With f in float64 and smooth, the
// error is about 1e-9 of the gradient's scale: compare with tolerance 1e-6.
inline Vector numeric_gradient(const std::function<double(const Vector&)>& f, Vector x, double step = 1e-5) {
    Vector gradient(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        double h = step * std::max(1.0, std::abs(x[i])), old = x[i];
        x[i] = old + h;
        double up = f(x);
        x[i] = old - h;
        double down = f(x);
        x[i] = old;
        gradient[i] = (up - down) / (2 * h);
    }
    return gradient;
}

// <a, b>: turns a tensor-valued function into a scalar one for numeric_gradient.
inline double dot(const Vector& a, const Vector& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); i++) sum += a[i] * b[i];
    return sum;
}

// op(a) op(b), row-major, [m,k] x [k,n]; a transposed operand is stored the other way round.
inline Sums matmul_sums(const Vector& a, const Vector& b, int64_t m, int64_t n, int64_t k, bool transpose_a,
                        bool transpose_b) {
    Sums c{Vector(static_cast<size_t>(m * n)), Vector(static_cast<size_t>(m * n))};
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0, terms = 0;
            for (int64_t p = 0; p < k; p++) {
                const double product =
                    a[size_t(transpose_a ? p * m + i : i * k + p)] * b[size_t(transpose_b ? j * k + p : p * n + j)];
                sum += product, terms += std::abs(product);
            }
            c.value[size_t(i * n + j)] = sum, c.terms[size_t(i * n + j)] = terms;
        }
    return c;
}

}  // namespace llmc::test
