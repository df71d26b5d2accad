// Device memory on the GPU: cudaMalloc, copies over the bus, fill, and conversion between element types.
#include <cstring>
#include <type_traits>

#include "llmc/ops/backend.h"
#include "llmc/ops/cuda/cuda.cuh"

namespace llmc {

void* backend_alloc(int64_t bytes, Context& ctx) {
    void* data = nullptr;
    const cudaError_t status = cudaMalloc(&data, size_t(bytes));
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return nullptr;
    }
    check_cuda(status, "cudaMalloc");
    ctx.backend->allocations[data] = bytes;
    return data;
}

void backend_free(void* data, int64_t bytes, Context& ctx) {
    auto found = ctx.backend->allocations.find(data);
    if (found == ctx.backend->allocations.end() || found->second != bytes)
        run_error("device_free: ", data, " with ", bytes, " bytes is not a live allocation of this context");
    check_cuda(cudaFree(data), "cudaFree");
    ctx.backend->allocations.erase(found);
}

// Kernels, of this program and of cuBLASLt, are loaded when they are first used, and need memory too.
constexpr int64_t kept_for_kernels = int64_t(512) << 20;

int64_t device_memory_available(Context&) {
    size_t available = 0, total = 0;
    if (cudaMemGetInfo(&available, &total) == cudaSuccess)
        return std::max<int64_t>(0, int64_t(available) - kept_for_kernels);
    cudaGetLastError();
    return -1;
}

// Uploads go through pinned buffers, so that the caller may change its memory at once and still waits for no kernel:
// only when all buffers are on their way does the host wait for the oldest. A step's tokens are far smaller than one.
struct Staging {
    static constexpr int buffers = 4;
    static constexpr int64_t buffer_bytes = 4 << 20;
    char* data[buffers] = {};
    cudaEvent_t sent[buffers] = {};
    int next = 0;

    Staging() {
        for (int i = 0; i < buffers; i++) {
            check_cuda(cudaMallocHost(reinterpret_cast<void**>(&data[i]), buffer_bytes), "cudaMallocHost");
            check_cuda(cudaEventCreateWithFlags(&sent[i], cudaEventDisableTiming), "cudaEventCreate");
        }
    }
    ~Staging() {
        for (int i = 0; i < buffers; i++) {
            if (sent[i]) cudaEventDestroy(sent[i]);
            if (data[i]) cudaFreeHost(data[i]);
        }
    }
    Staging(const Staging&) = delete;
    Staging& operator=(const Staging&) = delete;

    void upload(char* device, const char* host, int64_t bytes, cudaStream_t stream) {
        check_cuda(cudaEventSynchronize(sent[next]), "an earlier upload");
        std::memcpy(data[next], host, size_t(bytes));
        check_cuda(cudaMemcpyAsync(device, data[next], size_t(bytes), cudaMemcpyHostToDevice, stream), "upload");
        check_cuda(cudaEventRecord(sent[next], stream), "upload");
        next = (next + 1) % buffers;
    }
};

void backend_upload(Tensor dst, const void* host, Context& ctx) {
    Backend& backend = *ctx.backend;
    if (!backend.staging) backend.staging = std::make_shared<Staging>();
    for (int64_t done = 0; done < dst.bytes(); done += Staging::buffer_bytes)
        backend.staging->upload(static_cast<char*>(dst.data) + done, static_cast<const char*>(host) + done,
                                std::min(Staging::buffer_bytes, dst.bytes() - done), backend.stream);
}

void backend_download(void* host, Tensor src, Context& ctx) {
    check_cuda(cudaMemcpyAsync(host, src.data, size_t(src.bytes()), cudaMemcpyDeviceToHost, ctx.backend->stream),
               "download");
    synchronize(ctx);
}

namespace {

constexpr int block_size = 256, most_blocks = 4096;  // each thread walks on by the size of the grid

dim3 grid_for(int64_t n) { return grid_of(std::min<int64_t>(ceil_div(n, block_size), most_blocks)); }

__device__ inline int64_t first_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t all_threads() { return int64_t(gridDim.x) * blockDim.x; }

template <class T>
__global__ void fill_kernel(T* data, T value, int64_t n) {
    for (int64_t i = first_index(); i < n; i += all_threads()) data[i] = value;
}

// Also on the host: backend_fill converts its value there. (Host code that calls a function which is only __device__
// compiles without a word in nvcc and ends the program.)
template <class To, class From>
__host__ __device__ inline To converted(From x) {
    return To(x);
}
template <> __host__ __device__ inline nv_bf16 converted(float x) { return __float2bfloat16(x); }
template <> __host__ __device__ inline float converted(nv_bf16 x) { return __bfloat162float(x); }
template <> __host__ __device__ inline nv_bf16 converted(double x) { return __float2bfloat16(float(x)); }
template <> __host__ __device__ inline double converted(nv_bf16 x) { return double(__bfloat162float(x)); }

template <class To, class From>
__global__ void convert_kernel(To* out, const From* in, int64_t n) {
    for (int64_t i = first_index(); i < n; i += all_threads()) out[i] = converted<To>(in[i]);
}

// f(T{}) for every type that a tensor on the device can have, metrics in f64 among them.
template <class F>
void dispatch_storage(DType dtype, F&& f) {
    switch (dtype) {
        case DType::f32: return f(float{});
        case DType::bf16: return f(nv_bf16{});
        case DType::f64: return f(double{});
        case DType::i32: return f(int32_t{});
    }
}

// Only floats are converted into each other; equal types are copied.
template <class To, class From>
constexpr bool convertible = !std::is_same_v<To, From> && !std::is_integral_v<To> && !std::is_integral_v<From>;

// out [B,A,n] = in [A,B,n], n words of W. The blocks of a row of out (y) follow one another along x.
template <class W>
__global__ void swap_axes_kernel(W* out, const W* in, int64_t A, int64_t B, int64_t n) {
    for (int64_t row = blockIdx.y; row < A * B; row += gridDim.y) {
        const W* from = in + (row % A * B + row / A) * n;
        for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x)
            out[row * n + i] = from[i];
    }
}

}  // namespace

void backend_swap_axes(Tensor out, Tensor in, Context& ctx) {
    const int64_t A = in.shape[0], B = in.shape[1], bytes = in.shape[2] * size_of(in.dtype);
    auto swap = [&](auto word) {
        using W = decltype(word);
        const int64_t n = bytes / int64_t(sizeof(W)), blocks = std::min<int64_t>(ceil_div(n, block_size), 64);
        const dim3 grid(unsigned(blocks), unsigned(std::min<int64_t>(A * B, 65535)));
        launch(ctx, swap_axes_kernel<W>, grid, block_size, 0, ptr<W>(out), ptr<const W>(in), A, B, n);
    };
    if (bytes % 16 == 0 && aligned(out, in)) swap(int4{});
    else if (bytes % 4 == 0) swap(int32_t{});
    else swap(int16_t{});
}

void backend_fill(Tensor t, double value, Context& ctx) {
    const int64_t n = t.numel();
    dispatch_storage(t.dtype, [&](auto zero) {
        using T = decltype(zero);
        launch(ctx, fill_kernel<T>, grid_for(n), block_size, 0, ptr<T>(t), converted<T>(value), n);
    });
}

void backend_copy(Tensor dst, Tensor src, Context& ctx) {
    if (dst.dtype == src.dtype) {
        check_cuda(cudaMemcpyAsync(dst.data, src.data, size_t(dst.bytes()), cudaMemcpyDeviceToDevice,
                                   ctx.backend->stream),
                   "copy");
        return;
    }
    const int64_t n = dst.numel();
    dispatch_storage(dst.dtype, [&](auto to) {
        dispatch_storage(src.dtype, [&](auto from) {
            using To = decltype(to);
            using From = decltype(from);
            if constexpr (convertible<To, From>)
                launch(ctx, convert_kernel<To, From>, grid_for(n), block_size, 0, ptr<To>(dst), ptr<From>(src), n);
        });
    });
}

}  // namespace llmc
