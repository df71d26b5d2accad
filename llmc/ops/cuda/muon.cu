// Muon's passes over memory on the GPU: momentum, the norms of matrices, the polynomial, the update.
#include "llmc/ops/checks/muon.h"

#include "llmc/ops/cuda/update.cuh"

namespace llmc {

namespace {

constexpr int64_t most_blocks = 2048;

// Blocks for n elements, `width` of them a thread; threads walk on by the size of the grid.
dim3 blocks_for(int64_t n, int64_t width) {
    return grid_of(std::min(ceil_div(ceil_div(n, width), most_threads), most_blocks));
}

template <int W>
__global__ void momentum_kernel(float* direction, float* m, const float* grad, const StepState* step, float old,
                                float fresh, int64_t n) {
    const bool ok = step->ok != 0;
    const float scale = float(step->grad_scale);
    const int64_t stride = int64_t(gridDim.x) * blockDim.x * W;
    for (int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * W; i < n; i += stride) {
        Floats<W> moment = load<W>(m + i), out = zeros<W>();
        const Floats<W> g = load<W>(grad + i);
        for (int j = 0; j < W && ok; j++) {
            const float share = fresh * (g[j] * scale);
            moment[j] = old * moment[j] + share;
            out[j] = old * moment[j] + share;
        }
        if (ok) store<W>(m + i, moment);
        store<W>(direction + i, out);
    }
}

// How a matrix of `size` elements is cut for the sum of its squares: fixed by the size alone.
struct MatrixParts {
    int64_t count, part;
    explicit MatrixParts(int64_t size)
        : count(std::min<int64_t>(ceil_div(size, 8192), 256)), part(count ? ceil_div(size, count) : 0) {}
};

// partial[block] = sum of the squares of part block % parts of matrix block / parts, added in double.
__global__ void matrix_squares_kernel(double* partial, const float* x, int64_t parts, int64_t part, int64_t size) {
    const float* matrix = x + blockIdx.x / parts * size;
    const int64_t first = blockIdx.x % parts * part, end = min(size, first + part);
    double sum = 0;
    for (int64_t i = first + threadIdx.x; i < end; i += blockDim.x) sum += double(matrix[i]) * double(matrix[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Divides what matrix_squares_kernel has added up, block by block, by (norm of the matrix + eps).
__global__ void divide_by_norm_kernel(float* x, const double* partial, int64_t parts, int64_t part, int64_t size,
                                      double eps) {
    const int64_t matrix = blockIdx.x / parts;
    SHARED(float, factor, [1]);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < parts; i += blockDim.x) sum += partial[matrix * parts + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) factor[0] = float(1 / (sqrt(sum) + eps));
    __syncthreads();
    const int64_t first = blockIdx.x % parts * part, end = min(size, first + part);
    for (int64_t i = first + threadIdx.x; i < end; i += blockDim.x) x[matrix * size + i] *= factor[0];
}

__global__ void polynomial_kernel(float* out, const float* s, float a, float b, float c, int64_t size, int64_t n) {
    const int64_t stride = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
        const bool diagonal = i / size % size == i % size;
        out[i] = b * s[i] + c * out[i] + (diagonal ? a : 0.0f);
    }
}

template <class P>
struct Target {
    P* param;
    nv_bf16* compute_copy;  // or nullptr
    const float* direction;
    int64_t size;
    MuonUpdate options;
};

// Returns 0, or NaN if a new parameter is not finite.
template <int W, class P>
__device__ inline float update_at(const Target<P>& a, float keep, float rate, int64_t t, int64_t i) {
    Floats<W> p = load<W>(a.param + i);
    const Floats<W> direction = load<W>(a.direction + i);
    for (int j = 0; j < W; j++) p[j] = p[j] * keep - rate * direction[j];
    const float sum = unfit(p);
    if constexpr (std::is_same_v<P, nv_bf16>)
        if (a.options.stochastic_rounding) p = rounded_stochastically(p, a.options.first_index + i, a.options.seed, t);
    store<W>(a.param + i, p);
    if (a.compute_copy) store<W>(a.compute_copy + i, p);
    return sum;
}

// The first `packed` elements are updated eight at a time.
template <class P>
__global__ void muon_kernel(Target<P> a, StepState* step, int64_t packed) {
    if (!step->ok) return;
    const float keep = float(1 - step->lr * a.options.weight_decay), rate = float(step->lr * a.options.scale);
    const int64_t t = step->t;
    const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
    float sum = 0;
    for (int64_t i = thread * update_width; i < packed; i += threads * update_width)
        sum += update_at<update_width>(a, keep, rate, t, i);
    for (int64_t i = packed + thread; i < a.size; i += threads) sum += update_at<1>(a, keep, rate, t, i);
    report_unfit(sum, step);
}

}  // namespace

void muon_momentum(Tensor direction, Tensor m, Tensor grad, Tensor step, double momentum, Context& ctx) {
    check_muon_momentum(direction, m, grad, step);
    check_dtype(grad, DType::f32, "grad");
    const int64_t n = direction.numel();
    Op op(ctx, "muon_momentum", 7 * n, 0, total_bytes({direction, m, m, grad}));
    if (!op.run) return;
    dispatch_width<float>(aligned(direction, m, grad) && n % Pack<float>::size == 0, [&](auto width) {
        constexpr int W = decltype(width)::value;
        launch(ctx, momentum_kernel<W>, blocks_for(n, W), most_threads, 0, ptr<float>(direction), ptr<float>(m),
               ptr<const float>(grad), step_state(step), float(momentum), float(1 - momentum), n);
    });
}

void normalize_matrices(Tensor x, Context& ctx) {
    check_matrices(x, "x");
    check_dtype(x, DType::f32, "x");
    const int64_t count = x.shape[0], size = x.shape[1] * x.shape[2];
    const MatrixParts parts(size);
    Op op(ctx, "normalize_matrices", 3 * x.numel(), count * parts.count * int64_t(sizeof(double)),
          total_bytes({x, x, x}));
    if (!op.run) return;
    double* partial = static_cast<double*>(op.workspace);
    const dim3 grid = grid_of(count * parts.count);
    launch(ctx, matrix_squares_kernel, grid, most_threads, 0, partial, ptr<const float>(x), parts.count, parts.part,
           size);
    launch(ctx, divide_by_norm_kernel, grid, most_threads, 0, ptr<float>(x), partial, parts.count, parts.part, size,
           matrix_norm_eps);
}

void matrix_polynomial(Tensor out, Tensor s, const Polynomial& p, Context& ctx) {
    check_matrix_polynomial(out, s);
    check_dtype(s, DType::f32, "s");
    const int64_t n = s.numel();
    Op op(ctx, "matrix_polynomial", 3 * n, 0, total_bytes({out, out, s}));
    if (!op.run) return;
    launch(ctx, polynomial_kernel, blocks_for(n, 1), most_threads, 0, ptr<float>(out), ptr<const float>(s), float(p.a),
           float(p.b), float(p.c), s.columns(), n);
}

void muon_update(Tensor param, Tensor compute_copy, Tensor direction, Tensor step, const MuonUpdate& options,
                 Context& ctx) {
    check_muon_update(param, compute_copy, direction, step);
    const int64_t n = param.numel();
    Op op(ctx, "muon_update", 3 * n, 0, total_bytes({param, param, compute_copy, direction}));
    if (!op.run) return;
    dispatch(param.dtype, [&](auto zero) {
        using P = decltype(zero);
        const Target<P> a{ptr<P>(param), ptr<nv_bf16>(compute_copy), ptr<const float>(direction), n, options};
        const bool packable = aligned(param, compute_copy, direction) && options.first_index % update_width == 0;
        launch(ctx, muon_kernel<P>, blocks_for(n, packable ? update_width : 1), most_threads, 0, a, step_state(step),
               packable ? n / update_width * update_width : 0);
    });
}

}  // namespace llmc
