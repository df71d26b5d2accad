// What the Mixture-of-Tokens ops check and share: the sizes of a grouped batch, where the tokens of a group lie, and
// where the values of one softmax.
#pragma once
#include "llmc/ops/checks/common.h"
#include "llmc/ops/host_device.h"

namespace llmc {

// The first of the tokens of a group, as a row of [B*T, ...]; the others follow `step` rows apart, `size` in all.
LLMC_HOST_DEVICE inline int64_t first_token_of_group(int64_t group, int64_t step, int64_t size) {
    return group / step * step * size + group % step;
}

struct MotShape {
    int64_t sequences, positions, experts;  // B, T, E
    int64_t size;                           // g: tokens per group
    bool within_sequence;
    int64_t groups;  // R = B*T/g

    int64_t tokens() const { return sequences * positions; }
    // Tokens of one group are `step` rows apart in [B*T, ...] ...
    int64_t step() const { return within_sequence ? 1 : positions; }
    // ... and begin at this row.
    int64_t first_token(int64_t group) const { return first_token_of_group(group, step(), size); }
};

// Sizes from a weights or logits tensor [B,T,E]. RunError if the batch (or the sequence) cannot be cut into groups.
inline MotShape mot_shape(const Tensor& weights, Group group, const char* what) {
    if (weights.shape.rank != 3)
        run_error(what, " ", weights.name, " has shape ", weights.shape.text(),
                  ", expected [sequences, positions, experts]");
    MotShape s{weights.shape[0], weights.shape[1], weights.shape[2], group.size, group.within_sequence, 0};
    int64_t axis = group.within_sequence ? s.positions : s.sequences;
    if (group.size < 1 || axis % group.size != 0)
        run_error(what, " ", weights.name, " ", weights.shape.text(), ": ", axis,
                  group.within_sequence ? " positions" : " sequences", " cannot be cut into groups of ", group.size);
    s.groups = s.tokens() / group.size;
    return s;
}

// Softmax weights, their logits and gradients: f32, or f64 beside f64 activations. Calls f(float{}) or f(double{}).
template <class F>
void dispatch_arithmetic(const Tensor& t, const char* what, F&& f) {
    switch (t.dtype) {
        case DType::f32: return f(float{});
        case DType::f64: return f(double{});
        case DType::bf16:
        case DType::i32: break;
    }
    run_error(what, " ", t.name, " has dtype ", name_of(t.dtype), ", expected F32 or F64");
}
// The same where there is no f64.
inline void check_f32(const Tensor& t, const char* what) {
    dispatch_arithmetic(t, what, [&](auto zero) {
        if (sizeof zero != sizeof(float)) check_dtype(t, DType::f32, what);
    });
}

// The softmaxes of a weights tensor. One is over `length` values, `stride` elements apart, so that to a softmax the
// tensor is count / stride matrices [length, stride] with a softmax down each column.
struct Softmaxes {
    int64_t count, length, stride;
};

inline Softmaxes softmaxes(const MotShape& s, SoftmaxOver over) {
    if (over == SoftmaxOver::group) return {s.groups * s.experts, s.size, s.step() * s.experts};
    return {s.tokens(), s.experts, 1};
}

inline void check_temperature(double temperature, const char* op) {
    if (!(temperature > 0)) run_error(op, ": temperature is ", temperature, ", it must be positive");
}

inline MotShape check_softmax_forward(const Tensor& weights, const Tensor& logits, Group group, double temperature) {
    MotShape s = mot_shape(logits, group, "logits");
    check(logits, logits.dtype, logits.shape, "logits");
    check(weights, logits.dtype, logits.shape, "weights");
    check_temperature(temperature, "mot_softmax_forward");
    return s;
}

inline MotShape check_softmax_backward(const Tensor& dlogits, const Tensor& dweights, const Tensor& weights,
                                       Group group, double temperature) {
    MotShape s = mot_shape(weights, group, "weights");
    check(weights, weights.dtype, weights.shape, "weights");
    check(dweights, weights.dtype, weights.shape, "dweights");
    check(dlogits, weights.dtype, weights.shape, "dlogits");
    check_temperature(temperature, "mot_softmax_backward");
    return s;
}

inline MotShape check_discretize(const Tensor& weights, Group group) {
    MotShape s = mot_shape(weights, group, "weights");
    check(weights, weights.dtype, weights.shape, "weights");
    return s;
}

inline MotShape check_statistics(const Tensor& stats, const Tensor& weights, const Tensor& logits, Group group) {
    MotShape s = mot_shape(weights, group, "weights");
    check(weights, weights.dtype, weights.shape, "weights");
    check(logits, weights.dtype, weights.shape, "logits");
    check(stats, DType::f64, {4}, "stats");
    return s;
}

// Shapes of weights [B,T,E], tokens [B,T,C], slots [E,R,C].
inline MotShape check_mix(const Tensor& tokens, const Tensor& weights, const Tensor& slots, Group group,
                          const char* weights_are) {
    MotShape s = mot_shape(weights, group, weights_are);
    check(weights, arithmetic_dtype(tokens.dtype), weights.shape, weights_are);
    check(tokens, tokens.dtype, {s.sequences, s.positions, last_dim(tokens)}, "tokens");
    check(slots, tokens.dtype, {s.experts, s.groups, last_dim(tokens)}, "slots");
    return s;
}

inline int64_t mix_flops(const MotShape& s, int64_t columns) { return 2 * s.tokens() * s.experts * columns; }

}  // namespace llmc
