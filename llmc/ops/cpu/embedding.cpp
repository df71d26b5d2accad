// Token and position embedding on the CPU.
#include "llmc/ops/checks/embedding.h"
#include "llmc/ops/cpu/cpu.h"

namespace llmc {

namespace {

// RunError naming the first token outside the vocabulary, before anything is read through it.
void check_tokens(const Tensor& tokens, int64_t vocabulary) {
    const int32_t* token = ptr<int32_t>(tokens);
    for (int64_t i = 0; i < tokens.numel(); i++)
        if (token[i] < 0 || token[i] >= vocabulary)
            run_error("tokens ", tokens.name, ": element ", i, " is ", token[i], ", the vocabulary has ", vocabulary,
                      " tokens (0 .. ", vocabulary - 1, ")");
}

template <class T>
void lookup(T* out, const int32_t* tokens, const T* token_table, const T* position_table, int64_t rows,
            int64_t positions, int64_t columns, int threads) {
    using A = arithmetic_t<T>;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; n++) {
        T* to = out + n * columns;
        const T* row = token_table + tokens[n] * columns;
        if (!position_table) {
            std::copy_n(row, columns, to);
            continue;
        }
        const T* position = position_table + n % positions * columns;
#pragma omp simd
        for (int64_t c = 0; c < columns; c++) to[c] = T(A(row[c]) + A(position[c]));
    }
}

template <class T>
void add_row(arithmetic_t<T>* sum, const T* row, int64_t columns) {
#pragma omp simd
    for (int64_t c = 0; c < columns; c++) sum[c] += arithmetic_t<T>(row[c]);
}

// Where the rows of every token lie: token v has rows order[begin[v]] .. order[begin[v+1]-1], ascending (a counting
// sort).
void sort_by_token(int64_t* begin, int64_t* order, const int32_t* tokens, int64_t rows, int64_t vocabulary) {
    std::fill_n(begin, vocabulary + 1, 0);
    for (int64_t n = 0; n < rows; n++) begin[tokens[n] + 1]++;
    for (int64_t v = 0; v < vocabulary; v++) begin[v + 1] += begin[v];
    for (int64_t n = 0; n < rows; n++) order[begin[tokens[n]]++] = n;  // begin[v] is now where v ends ...
    for (int64_t v = vocabulary; v > 0; v--) begin[v] = begin[v - 1];  // ... so shift by one
    begin[0] = 0;
}

// One thread sums all rows of one token, in order: no atomics, and the same result for any number of threads.
template <class T>
void token_gradient(arithmetic_t<T>* dtable, const T* dout, const int64_t* begin, const int64_t* order,
                    int64_t vocabulary, int64_t columns, bool accumulate, int threads) {
#pragma omp parallel for schedule(dynamic, 64) num_threads(threads)
    for (int64_t v = 0; v < vocabulary; v++) {
        arithmetic_t<T>* sum = dtable + v * columns;
        if (!accumulate) std::fill_n(sum, columns, 0);
        for (int64_t i = begin[v]; i < begin[v + 1]; i++) add_row(sum, dout + order[i] * columns, columns);
    }
}

template <class T>
void position_gradient(arithmetic_t<T>* dtable, const T* dout, int64_t context, int64_t sequences, int64_t positions,
                       int64_t columns, bool accumulate, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < context; t++) {
        arithmetic_t<T>* sum = dtable + t * columns;
        if (!accumulate) std::fill_n(sum, columns, 0);
        if (t >= positions) continue;
        for (int64_t b = 0; b < sequences; b++) add_row(sum, dout + (b * positions + t) * columns, columns);
    }
}

}  // namespace

void embedding_forward(Tensor out, Tensor tokens, Tensor token_table, Tensor position_table, int64_t first_position,
                       Context& ctx) {
    const EmbeddingShape s = check_embedding_forward(out, tokens, token_table, position_table, first_position);
    Op op(ctx, "embedding_forward", position_table ? out.numel() : 0, 0,
          total_bytes({out, out, tokens}));  // as many rows of the table as of out
    if (!op.run) return;
    check_tokens(tokens, s.vocabulary);
    dispatch(out.dtype, [&](auto zero) {
        using T = decltype(zero);
        const T* first = position_table ? ptr<T>(position_table) + first_position * s.columns : nullptr;
        lookup(ptr<T>(out), ptr<int32_t>(tokens), ptr<T>(token_table), first, s.rows(), s.positions, s.columns,
               ctx.threads);
    });
}

void embedding_backward(Tensor dtoken_table, Tensor dposition_table, Tensor dout, Tensor tokens, bool accumulate_token,
                        bool accumulate_position, Context& ctx) {
    const EmbeddingShape s = check_embedding_backward(dtoken_table, dposition_table, dout, tokens);
    Op op(ctx, "embedding_backward", (dposition_table ? 2 : 1) * dout.numel(),
          (s.vocabulary + 1 + s.rows()) * int64_t(sizeof(int64_t)),
          total_bytes({dtoken_table, dposition_table, dout, tokens}));
    if (!op.run) return;
    check_tokens(tokens, s.vocabulary);
    int64_t *begin = static_cast<int64_t*>(op.workspace), *order = begin + s.vocabulary + 1;
    sort_by_token(begin, order, ptr<int32_t>(tokens), s.rows(), s.vocabulary);
    dispatch(dout.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = arithmetic_t<T>;
        token_gradient(ptr<A>(dtoken_table), ptr<T>(dout), begin, order, s.vocabulary, s.columns, accumulate_token,
                       ctx.threads);
        if (dposition_table)
            position_gradient(ptr<A>(dposition_table), ptr<T>(dout), s.context, s.sequences, s.positions, s.columns,
                              accumulate_position, ctx.threads);
    });
}

}  // namespace llmc
