// What the ops of MoT's design variants check and share: learnable temperatures, interpolated weights, random orders.
#pragma once
#include "llmc/ops/checks/common.h"

namespace llmc {

// Logits as a matrix [rows, experts], under one temperature or one for each of its columns.
struct TemperatureShape {
    int64_t rows, experts;
    bool per_expert;
};

inline TemperatureShape check_temperatures(const Tensor& scaled, const Tensor& logits, const char* logits_are,
                                           const Tensor& p) {
    const DType stat = arithmetic_dtype(p.dtype);
    check(logits, stat, logits.shape, logits_are);
    check(scaled, stat, logits.shape, "scaled");
    const int64_t experts = last_dim(logits);
    check(p, p.dtype, {p.numel() == 1 ? 1 : experts}, "p");
    return {experts ? logits.numel() / experts : 0, experts, p.numel() != 1};
}

inline TemperatureShape check_temperature_backward(const Tensor& dlogits, const Tensor& dp, const Tensor& dscaled,
                                                   const Tensor& scaled, const Tensor& p) {
    const TemperatureShape s = check_temperatures(scaled, dscaled, "dscaled", p);
    check(dlogits, dscaled.dtype, dscaled.shape, "dlogits");
    check(dp, dscaled.dtype, p.shape, "dp");
    return s;
}

inline void check_temperature_mean(const Tensor& mean, const Tensor& p) {
    check(mean, DType::f64, {1}, "mean");
    check(p, p.dtype, {p.numel()}, "p");
}

inline void check_interpolate(const Tensor& a, const Tensor& b, const Tensor& w) {
    check(a, a.dtype, a.shape, "a");
    check(b, a.dtype, a.shape, "b");
    check(w, a.dtype, {1}, "w");
}

inline void check_interpolate_backward(const Tensor& da, const Tensor& db, const Tensor& dw, const Tensor& dout,
                                       const Tensor& a, const Tensor& b, const Tensor& w) {
    check_interpolate(a, b, w);
    const DType stat = arithmetic_dtype(a.dtype);
    check(dout, stat, a.shape, "dout");
    check(da, stat, a.shape, "da");
    check(db, stat, a.shape, "db");
    check(dw, stat, {1}, "dw");
}

// What is put in order: `lines` times `others` tokens, token i of line l being number l * line_step + i * other_step.
struct OrderShape {
    int64_t lines, others, line_step, other_step;
};

inline OrderShape check_random_order(const Tensor& slots, const Tensor& where, const Tensor& draw,
                                     bool within_sequence) {
    if (where.shape.rank != 3)
        run_error("where ", where.name, " has shape ", where.shape.text(), ", expected [sequences, positions, 1]");
    const int64_t B = where.shape[0], T = where.shape[1];
    if (B * T > INT32_MAX)
        run_error("where ", where.name, ": ", B * T, " tokens, but routing tables can index at most 2147483647");
    check(where, DType::i32, {B, T, 1}, "where");
    check(slots, DType::i32, {1, B * T}, "slots");
    check(draw, DType::i32, {1}, "draw");
    return within_sequence ? OrderShape{T, B, 1, T} : OrderShape{B, T, T, 1};
}

}  // namespace llmc
