// Token and position embedding on the GPU. Nothing can be refused once a kernel runs: a token outside the vocabulary
// becomes a row of NaN, which the loss shows, and reads or writes nothing that is not its own.
#include "llmc/ops/checks/embedding.h"
#include "llmc/ops/cuda/vector.cuh"

namespace llmc {

namespace {

// out[n,:] = token_table[tokens[n],:] + position_table[n % positions,:], the latter if given. One group of a block's
// team = one row; positions count from where position_table points.
template <class T, int W>
__global__ void embedding_forward_kernel(T* out, const int32_t* tokens, const T* token_table, const T* position_table,
                                         int64_t vocabulary, int64_t rows, int64_t positions, int64_t columns,
                                         Team team) {
    const int64_t n = int64_t(blockIdx.x) * team.groups + threadIdx.x / team.lanes;
    if (n >= rows) return;
    const int64_t token = tokens[n];
    const bool known = token >= 0 && token < vocabulary;
    const T* row = token_table + (known ? token : 0) * columns;
    const T* position = position_table ? position_table + n % positions * columns : nullptr;
    for (int64_t c = threadIdx.x % team.lanes * W; c < columns; c += int64_t(team.lanes) * W) {
        Floats<W> x = zeros<W>();
        if (known) x = load<W>(row + c);
        const Floats<W> p = position ? load<W>(position + c) : zeros<W>();
        for (int j = 0; j < W; j++) x[j] = known ? x[j] + p[j] : nanf("");
        store<W>(out + n * columns + c, x);
    }
}

}  // namespace

void embedding_forward(Tensor out, Tensor tokens, Tensor token_table, Tensor position_table, int64_t first_position,
                       Context& ctx) {
    const EmbeddingShape s = check_embedding_forward(out, tokens, token_table, position_table, first_position);
    Op op(ctx, "embedding_forward", position_table ? out.numel() : 0, 0,
          total_bytes({out, out, tokens}));  // as many rows of the table as of out
    if (!op.run) return;
    dispatch(out.dtype, [&](auto zero) {
        using T = decltype(zero);
        const bool packed = s.columns % Pack<T>::size == 0 && aligned(out, token_table, position_table);
        const T* first = position_table ? ptr<const T>(position_table) + first_position * s.columns : nullptr;
        dispatch_width<T>(packed, [&](auto width) {
            constexpr int W = decltype(width)::value;
            const Team team = team_for(s.columns, W);
            launch(ctx, embedding_forward_kernel<T, W>, grid_of(ceil_div(s.rows(), team.groups)), team.threads(), 0,
                   ptr<T>(out), ptr<const int32_t>(tokens), ptr<const T>(token_table), first, s.vocabulary, s.rows(),
                   s.positions, s.columns, team);
        });
    });
}

namespace {

// ---- where the rows of every token lie
constexpr int bucket_size = 256, sort_warps = 16;

// A stable counting sort of the tokens [rows]: token v has rows order[begin[v]] .. order[begin[v+1] - 1], ascending.
// One block = the tokens of one bucket of the vocabulary, for which it looks at all rows twice; each warp has a
// contiguous part of the rows. No counter is shared by two warps, so the order does not depend on who comes first.
// Tokens outside the vocabulary are left out.
__global__ void sort_by_token_kernel(int64_t* begin, int64_t* order, const int32_t* tokens, int64_t rows,
                                     int64_t vocabulary) {
    SHARED(int, count, [sort_warps][bucket_size]);  // of tokens in a warp's part, then where its next one goes
    SHARED(int, all, [bucket_size]);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const int64_t first_token = int64_t(blockIdx.x) * bucket_size;
    const int in_bucket = int(min(int64_t(bucket_size), vocabulary - first_token));
    const int64_t first = rows * warp / sort_warps, end = rows * (warp + 1) / sort_warps;

    for (int i = threadIdx.x; i < sort_warps * bucket_size; i += blockDim.x)
        count[i / bucket_size][i % bucket_size] = 0;
    __syncthreads();
    int64_t below = 0;  // tokens of earlier buckets, and negative ones, whose places stay empty
    for (int64_t n = first + lane; n < end; n += warp_size) {
        const int64_t token = tokens[n] - first_token;
        below += token < 0;
        if (token >= 0 && token < in_bucket) atomicAdd(&count[warp][token], 1);
    }
    below = block_sum(below);

    if (threadIdx.x < bucket_size) {  // per token: where each warp's begin, counted from the token's first
        int sum = 0;
        for (int w = 0; w < sort_warps; w++) {
            const int here = count[w][threadIdx.x];
            count[w][threadIdx.x] = sum;
            sum += here;
        }
        all[threadIdx.x] = sum;
    }
    __syncthreads();
    if (threadIdx.x < bucket_size) {
        int64_t start = below;
        for (int token = 0; token < int(threadIdx.x); token++) start += all[token];
        if (int(threadIdx.x) < in_bucket) begin[first_token + threadIdx.x] = start;
        if (first_token + threadIdx.x == vocabulary - 1) begin[vocabulary] = start + all[threadIdx.x];
        for (int w = 0; w < sort_warps; w++) count[w][threadIdx.x] += int(start - below);
    }
    __syncthreads();

    for (int64_t n = first + lane; n - lane < end; n += warp_size) {
        const int64_t token = n < end ? tokens[n] - first_token : -1;
        const int mine = token >= 0 && token < in_bucket ? int(token) : -1;
        if (!__any_sync(full_mask, mine >= 0)) continue;  // as almost always: a bucket is a small part
        const unsigned same = __match_any_sync(full_mask, mine);
        const int rank = __popc(same & ((1u << lane) - 1));  // lanes before this one with the same token
        if (mine >= 0) order[below + count[warp][mine] + rank] = n;
        __syncwarp();
        if (mine >= 0 && rank == 0) count[warp][mine] += __popc(same);
        __syncwarp();
    }
}

// ---- sums of rows
// Which rows of dout make row v of the token table's gradient ...
struct RowsOfToken {
    const int64_t *begin, *order;
    __device__ int64_t count(int64_t v) const { return begin[v + 1] - begin[v]; }
    __device__ int64_t row(int64_t v, int64_t i) const { return order[begin[v] + i]; }
};
// ... and row t of the position table's.
struct RowsOfPosition {
    int64_t sequences, positions;
    __device__ int64_t count(int64_t t) const { return t < positions ? sequences : 0; }
    __device__ int64_t row(int64_t t, int64_t i) const { return i * positions + t; }
};

// dtable[v,:] (+)= sum over i of dout[rows.row(v, i),:]. One block = one v; the groups of its team take turns at the
// rows and are then added in order. Blocks of the tokens with the most rows start early: tokenizers number frequent
// tokens first.
template <class T, int W, class Rows>
__global__ void sum_rows_kernel(float* dtable, const T* dout, Rows rows, int64_t columns, Team team, bool accumulate) {
    SHARED(float, sums, [most_threads * W]);
    const int lane = threadIdx.x % team.lanes, group = threadIdx.x / team.lanes;
    const int64_t v = blockIdx.x, count = rows.count(v), step = int64_t(team.lanes) * W;
    for (int64_t first = 0; first < columns && (count > 0 || !accumulate); first += step) {
        const int64_t c = first + lane * W;
        Floats<W> sum = zeros<W>();
        if (c < columns)
#pragma unroll 4
            for (int64_t i = group; i < count; i += team.groups) {
                const Floats<W> x = load<W>(dout + rows.row(v, i) * columns + c);
                for (int j = 0; j < W; j++) sum[j] += x[j];
            }
        if (team.groups > 1) {  // then one step is the whole row
            store<W>(sums + threadIdx.x * W, sum);
            __syncthreads();
            for (int g = 1; g < team.groups && group == 0; g++) {
                const Floats<W> x = load<W>(sums + (g * team.lanes + lane) * W);
                for (int j = 0; j < W; j++) sum[j] += x[j];
            }
        }
        if (group > 0 || c >= columns) continue;
        float* to = dtable + v * columns + c;
        const Floats<W> before = accumulate ? load<W>(to) : zeros<W>();
        for (int j = 0; j < W; j++) sum[j] += before[j];
        store<W>(to, sum);
    }
}

template <class Rows>
void sum_rows(Tensor dtable, Tensor dout, Rows rows, bool accumulate, Context& ctx) {
    const int64_t columns = last_dim(dout);
    dispatch(dout.dtype, [&](auto zero) {
        using T = decltype(zero);
        dispatch_width<T>(columns % Pack<T>::size == 0 && aligned(dtable, dout), [&](auto width) {
            constexpr int W = decltype(width)::value;
            const Team team = team_for(columns, W);
            launch(ctx, sum_rows_kernel<T, W, Rows>, grid_of(dtable.shape[0]), team.threads(), 0, ptr<float>(dtable),
                   ptr<const T>(dout), rows, columns, team, accumulate);
        });
    });
}

}  // namespace

void embedding_backward(Tensor dtoken_table, Tensor dposition_table, Tensor dout, Tensor tokens, bool accumulate_token,
                        bool accumulate_position, Context& ctx) {
    const EmbeddingShape s = check_embedding_backward(dtoken_table, dposition_table, dout, tokens);
    Op op(ctx, "embedding_backward", (dposition_table ? 2 : 1) * dout.numel(),
          (s.vocabulary + 1 + s.rows()) * int64_t(sizeof(int64_t)),
          total_bytes({dtoken_table, dposition_table, dout, tokens}));
    if (!op.run) return;
    int64_t *begin = static_cast<int64_t*>(op.workspace), *order = begin + s.vocabulary + 1;
    launch(ctx, sort_by_token_kernel, grid_of(ceil_div(s.vocabulary, bucket_size)), sort_warps * warp_size, 0, begin,
           order, ptr<const int32_t>(tokens), s.rows(), s.vocabulary);
    sum_rows(dtoken_table, dout, RowsOfToken{begin, order}, accumulate_token, ctx);
    if (dposition_table)
        sum_rows(dposition_table, dout, RowsOfPosition{s.sequences, s.positions}, accumulate_position, ctx);
}

}  // namespace llmc
