// What the embedding ops check, whatever the backend.
#pragma once
#include "llmc/ops/checks/common.h"

namespace llmc {

struct EmbeddingShape {
    int64_t sequences, positions, columns;  // B, T, C
    int64_t vocabulary, context;            // rows of the two tables

    int64_t rows() const { return sequences * positions; }
};

// token_table and position_table are the tables or their gradients, embedded is out or dout.
inline EmbeddingShape embedding_shape(const Tensor& tokens, const Tensor& embedded, const Tensor& token_table,
                                      const Tensor& position_table) {
    if (tokens.shape.rank != 2)
        run_error("tokens ", tokens.name, " has shape ", tokens.shape.text(), ", expected [B, T]");
    return {tokens.shape[0], tokens.shape[1], last_dim(embedded), token_table.shape[0], position_table.shape[0]};
}

inline EmbeddingShape check_embedding_forward(const Tensor& out, const Tensor& tokens, const Tensor& token_table,
                                              const Tensor& position_table, int64_t first_position) {
    const EmbeddingShape s = embedding_shape(tokens, out, token_table, position_table);
    check(tokens, DType::i32, tokens.shape, "tokens");
    check(out, out.dtype, {s.sequences, s.positions, s.columns}, "out");
    check(token_table, out.dtype, {s.vocabulary, s.columns}, "token_table");
    if (position_table) {
        check(position_table, out.dtype, {s.context, s.columns}, "position_table");
        if (first_position < 0 || first_position + s.positions > s.context)
            run_error("position_table ", position_table.name, " has ", s.context, " positions, asked for ",
                      first_position, " .. ", first_position + s.positions - 1);
    }
    return s;
}

inline EmbeddingShape check_embedding_backward(const Tensor& dtoken_table, const Tensor& dposition_table,
                                               const Tensor& dout, const Tensor& tokens) {
    const EmbeddingShape s = embedding_shape(tokens, dout, dtoken_table, dposition_table);
    const DType gradient = arithmetic_dtype(dout.dtype);
    check(tokens, DType::i32, tokens.shape, "tokens");
    check(dout, dout.dtype, {s.sequences, s.positions, s.columns}, "dout");
    check(dtoken_table, gradient, {s.vocabulary, s.columns}, "dtoken_table");
    if (dposition_table) {
        check(dposition_table, gradient, {s.context, s.columns}, "dposition_table");
        if (s.positions > s.context)
            run_error("dposition_table ", dposition_table.name, " has ", s.context, " positions, dout ", dout.name,
                      " has ", s.positions);
    }
    return s;
}

}  // namespace llmc
