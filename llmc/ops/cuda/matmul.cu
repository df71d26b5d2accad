// matmul and bias_backward. The products are cuBLASLt's (gemm.h), which also adds biases and applies GELU and its
// gradient where it can; here stands what it leaves.
#include "llmc/ops/cuda/cuda.cuh"
#include "llmc/ops/cuda/gemm.h"

namespace llmc {

namespace {

constexpr int block_size = 256, warps = block_size / warp_size;

// out[row, j] = bias[j], or 0 without a bias: what a product is then added to. One block = one row [n] of one matrix of
// the batch. Only for sums over nothing and where cuBLASLt takes no bias, so kept simple.
template <class T, class B>
__global__ void __launch_bounds__(block_size)
    set_rows_kernel(T* out, const B* bias, int64_t m, int64_t n, int64_t ld, int64_t stride) {
    T* row = out + blockIdx.x / m * stride + blockIdx.x % m * ld;
    for (int64_t j = threadIdx.x; j < n; j += block_size) row[j] = from_float<T>(bias ? to_float(bias[j]) : 0.0f);
}

void set_rows(const GemmProblem& p, void* out, const void* bias, Context& ctx) {
    dispatch(p.out, [&](auto to) {
        dispatch(p.in, [&](auto from) {
            using T = decltype(to);
            using B = decltype(from);
            launch(ctx, set_rows_kernel<T, B>, grid_of(p.batch * p.m), block_size, 0, static_cast<T*>(out),
                   static_cast<const B*>(bias), p.m, p.n, p.ldc, p.stride_c);
        });
    });
}

// out = op(a) op(b) + bias. Where cuBLASLt takes no bias, it comes first and the product is added to it: rounded once,
// as with it.
void product_with_bias(GemmProblem p, const void* a, const void* b, const void* bias, void* out, void* workspace,
                       Context& ctx) {
    if (bias && p.batch * p.m * p.n > 0) {
        if (p.k > 0 && gemm(p, a, b, out, {.bias = bias}, workspace, ctx)) return;
        set_rows(p, out, bias, ctx);
        p.accumulate = true;
    }
    gemm_any(p, a, b, out, workspace, ctx);
}

// All that the options ask for in one launch, if there is something beyond a bias and cuBLASLt can.
bool fused(const GemmProblem& p, const Tensor& out, const Tensor& a, const Tensor& b, const MatmulOptions& o,
           void* workspace, Context& ctx) {
    if (o.activation == Activation::none && o.backward == Activation::none) return false;
    if (p.batch * p.m * p.n * p.k == 0) return false;
    const GemmEpilogue epilogue{o.bias.data, o.activation, o.backward, o.pre.data};
    return gemm(p, a.data, b.data, out.data, epilogue, workspace, ctx);
}

}  // namespace

void gemm_any(const GemmProblem& p, const void* a, const void* b, void* out, void* workspace, Context& ctx) {
    if (p.batch * p.m * p.n == 0) return;
    if (p.k > 0) gemm(p, a, b, out, {}, workspace, ctx);
    else if (!p.accumulate) set_rows(p, out, nullptr, ctx);
}

void matmul(Tensor out, Tensor a, Tensor b, const MatmulOptions& options, Context& ctx) {
    const GemmProblem p = check_matmul(out, a, b, options);
    dispatch(p.in, [](auto) {});  // refuses f64
    const bool forward = options.activation != Activation::none, backward = options.backward != Activation::none;
    const Tensor product = forward && options.pre ? options.pre : out;
    bool done = false;
    {
        Op op(ctx, "matmul", p.flops(), gemm_workspace_bytes, matmul_bytes(out, a, b, options));
        done = op.run && fused(p, out, a, b, options, op.workspace, ctx);
        if (op.run && !done)
            product_with_bias(p, a.data, b.data, options.bias.data, product.data, op.workspace, ctx);
    }
    if (done) {
        if (options.value) activation_forward(options.value, options.pre, options.backward, ctx);
        return;
    }
    // Also while counting, when it is not known yet: the FLOPs are those of separate passes.
    if (forward) activation_forward(out, product, options.activation, ctx);
    if (backward) activation_backward(out, options.value, out, options.pre, options.backward, ctx);
}

// ------------------------------------------------------------------------------------------------------- bias_backward
namespace {

// partial[chunk, j] = sum over the rows of the chunk of dout[row, j].     dout [rows, n], partial [chunks, n] One block
// = one chunk and 32 * width columns: each lane owns `width` neighbouring columns, each warp every eighth row; the sums
// of the warps are added in shared memory. n is a multiple of width: a lane's columns exist all or not at all.
template <class T, int width>
__global__ void __launch_bounds__(block_size)
    column_sums_kernel(float* partial, const T* dout, int64_t rows, int64_t n, int64_t tiles, int64_t chunks) {
    constexpr int tile_columns = warp_size * width;
    SHARED(float, sums, [warps][tile_columns]);  // column lane * width + k at k * 32 + lane: no bank conflicts
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const int64_t chunk = blockIdx.x / tiles, first_column = blockIdx.x % tiles * tile_columns;
    const int64_t begin = rows * chunk / chunks, end = rows * (chunk + 1) / chunks;
    const int64_t column = first_column + lane * width;

    float sum[width] = {};
    if (column < n)
        for (int64_t row = begin + warp; row < end; row += warps) {
            if constexpr (width == 1) {
                sum[0] += to_float(dout[row * n + column]);
            } else {
                const Pack<T> pack = load_pack(dout + row * n + column);
                for (int k = 0; k < width; k++) sum[k] += to_float(pack[k]);
            }
        }
    for (int k = 0; k < width; k++) sums[warp][k * warp_size + lane] = sum[k];
    __syncthreads();
    for (int i = threadIdx.x; i < tile_columns; i += block_size) {
        const int64_t mine = first_column + i % warp_size * width + i / warp_size;
        float total = 0;
        for (int w = 0; w < warps; w++) total += sums[w][i];
        if (mine < n) partial[chunk * n + mine] = total;
    }
}

// dbias[j] (+)= sum over chunks of partial[chunk, j]. One block = 32 columns; each warp adds every eighth chunk.
__global__ void __launch_bounds__(block_size)
    sum_chunks_kernel(float* dbias, const float* partial, int64_t chunks, int64_t n, bool accumulate) {
    SHARED(float, sums, [warps][warp_size]);
    const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
    const int64_t column = int64_t(blockIdx.x) * warp_size + lane;
    float sum = 0;
    if (column < n)
        for (int64_t chunk = warp; chunk < chunks; chunk += warps) sum += partial[chunk * n + column];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < n) {
        float total = accumulate ? dbias[column] : 0.0f;
        for (int w = 0; w < warps; w++) total += sums[w][lane];
        dbias[column] = total;
    }
}

// The number of chunks depends on nothing but the rows, so the order of the sum does not either. No rows: one empty
// chunk, whose sum is 0.
int64_t bias_chunks(int64_t rows) { return std::clamp<int64_t>(rows / 64, 1, 128); }

template <class T, int width>
void column_sums(float* partial, const Tensor& dout, int64_t chunks, Context& ctx) {
    const int64_t n = dout.columns(), tiles = ceil_div(n, warp_size * width);
    launch(ctx, column_sums_kernel<T, width>, grid_of(tiles * chunks), block_size, 0, partial, ptr<const T>(dout),
           dout.rows(), n, tiles, chunks);
}

}  // namespace

void bias_backward(Tensor dbias, Tensor dout, bool accumulate, Context& ctx) {
    check_bias_backward(dbias, dout);
    const int64_t n = dout.columns(), chunks = bias_chunks(dout.rows());
    Op op(ctx, "bias_backward", dout.numel(), chunks * n * size_of(DType::f32), total_bytes({dbias, dout}));
    if (!op.run) return;
    float* partial = static_cast<float*>(op.workspace);
    dispatch(dout.dtype, [&](auto zero) {
        using T = decltype(zero);
        if (n % Pack<T>::size == 0 && aligned(dout)) column_sums<T, Pack<T>::size>(partial, dout, chunks, ctx);
        else column_sums<T, 1>(partial, dout, chunks, ctx);
    });
    launch(ctx, sum_chunks_kernel, grid_of(ceil_div(n, warp_size)), block_size, 0, ptr<float>(dbias), partial, chunks,
           n, accumulate);
}

}  // namespace llmc
