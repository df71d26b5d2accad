// What the Mixture-of-Tokens ops of the CPU backend share: the sizes of a grouped batch and where the tokens of a group
// lie.
#pragma once
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

struct MotShape {
    int64_t sequences, positions, experts;  // B, T, E
    int64_t size;                           // g: tokens per group
    bool within_sequence;
    int64_t groups;  // R = B*T/g

    int64_t tokens() const { return sequences * positions; }
    // Tokens of one group are `step` rows apart in [B*T, ...] ...
    int64_t step() const { return within_sequence ? 1 : positions; }
    // ... and begin at this row.
    int64_t first_token(int64_t group) const {
        if (within_sequence) return group * size;
        return group / positions * size * positions + group % positions;
    }
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
    if (t.dtype == DType::f32) return f(float{});
    if (t.dtype == DType::f64) return f(double{});
    run_error(what, " ", t.name, " has dtype ", name_of(t.dtype), ", expected F32 or F64");
}

}  // namespace llmc
