// The GPU behind a Context: device, stream, cuBLASLt, ranges for Nsight.
#include <cublasLt.h>
#include <nvtx3/nvToolsExt.h>

#include <chrono>

#include "llmc/ops/backend.h"
#include "llmc/ops/cuda/cuda.cuh"
#include "llmc/ops/datasheets.h"

namespace llmc {

void check_cuda(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // else the next check would see this error once more
    run_error(what, ": CUDA says ", cudaGetErrorName(status), ": ", cudaGetErrorString(status));
}

namespace {

// Oldest GPU with bf16 tensor cores and cp.async.
constexpr int oldest_major = 8;

// The major number of its compute capability. InputError if there is no GPU that will do.
int require_device(int wish) {
    const char* help = "; use `make BACKEND=cpu` for a build that needs none";
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess || devices == 0)
        input_error("this build needs an NVIDIA GPU and found no usable one (",
                    status != cudaSuccess ? cudaGetErrorString(status) : "no device", ")", help);
    if (wish >= devices) input_error("there is no GPU number ", wish, ": this machine shows ", devices);
    if (wish >= 0) check_cuda(cudaSetDevice(wish), "cudaSetDevice");
    int device = 0, major = 0, minor = 0;
    check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
    if (major < oldest_major)
        input_error("this build needs a GPU of compute capability ", oldest_major, ".0 or newer, this one has ", major,
                    ".", minor, help);
    return major;
}

}  // namespace

Backend* backend_create(const ContextOptions& options, int) {
    auto backend = std::make_unique<Backend>();
    if (options.counting) return backend.release();
    // llm.c's users measured it: a gain from Hopper on, a loss on an RTX 4090.
    const int major = require_device(options.device);
    backend->fuse_gelu = major == 9 || major == 10;
    check_cuda(cudaStreamCreateWithFlags(&backend->stream, cudaStreamNonBlocking), "cudaStreamCreate");
    if (cublasLtCreate(&backend->cublas) != CUBLAS_STATUS_SUCCESS) run_error("cuBLASLt does not start");
    return backend.release();
}

void BackendDeleter::operator()(Backend* backend) const {
    if (backend->communication) cudaStreamSynchronize(backend->communication);
    if (backend->stream) cudaStreamSynchronize(backend->stream);
    backend->matmuls.reset();
    backend->staging.reset();
    if (backend->cublas) cublasLtDestroy(backend->cublas);
    for (auto& [data, bytes] : backend->allocations) cudaFree(data);
    if (backend->stream) cudaStreamDestroy(backend->stream);
    if (backend->communication) cudaStreamDestroy(backend->communication);
    delete backend;
}

void backend_op_begins(const char* name, Context&) { nvtxRangePushA(name); }
void backend_op_ends(Context&) { nvtxRangePop(); }

void backend_range_begins(const char* name) { nvtxRangePushA(name); }
void backend_range_ends() { nvtxRangePop(); }

void synchronize(Context& ctx) {
    if (!ctx.counting) check_cuda(cudaStreamSynchronize(ctx.backend->stream), "a kernel or copy");
}

bool backend_supports(DType act) { return act == DType::f32 || act == DType::bf16; }

namespace {

std::string device_name() {
    int device = 0;
    cudaDeviceProp properties;
    if (cudaGetDevice(&device) != cudaSuccess || cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
        cudaGetLastError();
        return "";
    }
    return properties.name;
}

}  // namespace

std::string backend_description(Context&) {
    int runtime = 0, driver = 0;
    cudaRuntimeGetVersion(&runtime);
    cudaDriverGetVersion(&driver);
    auto version = [](int v) { return str(v / 1000, ".", v % 1000 / 10); };
    const std::string name = device_name();
    return str("cuda ", version(runtime), ", ", name.empty() ? "no usable device" : name, ", ",
               driver ? "driver for " + version(driver) : "no driver");
}

Peak peak_flops(DType act, Context&) {
    std::string name = device_name();
    std::replace(name.begin(), name.end(), '-', ' ');  // NVIDIA A100-SXM4-80GB
    for (const Datasheet& sheet : datasheets)
        if ((" " + name + " ").find(str(" ", sheet.name, " ")) != std::string::npos)
            return {product_rate(act, sheet.bf16, sheet.fp32), str("datasheet of the ", sheet.name)};
    return {0, str("unknown for ", name)};
}

// Copies within device memory: each byte is read and written once.
Bandwidth peak_bandwidth(Context& ctx) {
    using clock = std::chrono::steady_clock;
    int device = 0, cache = 0;
    check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    check_cuda(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device), "cudaDeviceGetAttribute");
    const int64_t bytes = std::min(4 * std::max<int64_t>(cache, 32 << 20), device_memory_available(ctx) / 8);
    const Tensor to(device_alloc(bytes, ctx), DType::f32, {bytes / 4}, "to");
    const Tensor from(device_alloc(bytes, ctx), DType::f32, {bytes / 4}, "from");
    fill(from, 0, ctx);
    synchronize(ctx);
    constexpr int copies = 8;  // so long that the wait for the last one does not count
    double best = 0;
    for (double total = 0; total < 0.2;) {
        const auto start = clock::now();
        for (int i = 0; i < copies; i++) copy(to, from, ctx);
        synchronize(ctx);
        const double seconds = std::chrono::duration<double>(clock::now() - start).count();
        total += seconds;
        best = std::max(best, copies * double(to.bytes() + from.bytes()) / seconds);
    }
    device_free(to.data, bytes, ctx);
    device_free(from.data, bytes, ctx);
    return {best, "measured now"};
}

}  // namespace llmc
