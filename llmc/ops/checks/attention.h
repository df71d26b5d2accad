// What the attention ops check, what they cost, and the sizes behind their tensors. qkv [B,T,3C] holds rows of Q | K |
// V, each H heads of size D = C / H.
#pragma once
#include "llmc/ops/checks/common.h"

namespace llmc {

struct AttentionShape {
    int64_t B, T, C, H, D;
    // Pairs of a query and a key it sees, where T queries follow `earlier` positions.
    int64_t pairs(int64_t earlier = 0) const { return B * H * (T * earlier + T * (T + 1) / 2); }
    // A pair costs 2 D for its score and 2 D for its part of the output; backward, five such products.
    double forward_flops(int64_t earlier = 0) const { return 4.0 * double(pairs(earlier)) * double(D); }
    double backward_flops() const { return 10.0 * double(pairs()) * double(D); }
    int64_t rope_flops() const { return 6 * B * T * C; }  // 4 products and 2 sums a pair, Q and K
};

// The sizes behind qkv [B,T,3C] and a number of heads. RunError if they do not fit each other.
inline AttentionShape attention_shape(const char* op, const Tensor& qkv, int64_t heads) {
    if (qkv.shape.rank != 3 || qkv.shape[2] % 3 != 0 || !qkv.contiguous())
        run_error(op, ": qkv ", qkv.name, " has shape ", qkv.shape.text(), ", expected contiguous [B, T, 3 * C]");
    const int64_t C = qkv.shape[2] / 3;
    if (heads < 1 || C < heads || C % heads != 0)
        run_error(op, ": qkv ", qkv.name, " has C = ", C, ", which cannot be cut into ", heads, " heads");
    return {qkv.shape[0], qkv.shape[1], C, heads, C / heads};
}

inline AttentionShape check_attention_forward(const Tensor& out, const Tensor& lse, const Tensor& qkv, int64_t heads) {
    const AttentionShape s = attention_shape("attention_forward", qkv, heads);
    check(out, qkv.dtype, {s.B, s.T, s.C}, "attention_forward: out");
    check(lse, arithmetic_dtype(qkv.dtype), {s.B, s.H, s.T}, "attention_forward: lse");
    return s;
}

inline AttentionShape check_attention_backward(const Tensor& dqkv, const Tensor& dout, const Tensor& qkv,
                                               const Tensor& out, const Tensor& lse, int64_t heads) {
    const AttentionShape s = attention_shape("attention_backward", qkv, heads);
    check(dqkv, qkv.dtype, qkv.shape, "attention_backward: dqkv");
    check(dout, qkv.dtype, {s.B, s.T, s.C}, "attention_backward: dout");
    check(out, qkv.dtype, {s.B, s.T, s.C}, "attention_backward: out");
    check(lse, arithmetic_dtype(qkv.dtype), {s.B, s.H, s.T}, "attention_backward: lse");
    return s;
}

// keys and values are [B,context,C]; the new positions must fit in.
inline AttentionShape check_attention_extend(const Tensor& out, const Tensor& keys, const Tensor& values,
                                             const Tensor& qkv, int64_t first_position, int64_t heads) {
    const AttentionShape s = attention_shape("attention_extend", qkv, heads);
    const int64_t context = keys.shape.rank == 3 ? keys.shape[1] : 0;
    check(keys, qkv.dtype, {s.B, context, s.C}, "attention_extend: keys");
    check(values, qkv.dtype, {s.B, context, s.C}, "attention_extend: values");
    check(out, qkv.dtype, {s.B, s.T, s.C}, "attention_extend: out");
    if (first_position < 0 || first_position + s.T > context)
        run_error("attention_extend: positions ", first_position, " to ", first_position + s.T,
                  " do not fit into keys ", keys.name, " ", keys.shape.text(), ", which holds ", context);
    return s;
}

// New rows into the cache, the earlier ones out of it, once.
inline int64_t attention_extend_bytes(const AttentionShape& s, const Tensor& out, const Tensor& qkv,
                                      int64_t first_position) {
    return total_bytes({out, qkv}) + 2 * s.B * (first_position + s.T) * s.C * size_of(qkv.dtype);
}

inline AttentionShape check_rope(const Tensor& qkv, int64_t heads) {
    const AttentionShape s = attention_shape("rope", qkv, heads);
    if (s.D % 2 != 0)
        run_error("rope: qkv ", qkv.name, " has heads of odd size ", s.D,
                  ", but rotary positions turn pairs: choose another number of heads");
    return s;
}

}  // namespace llmc
