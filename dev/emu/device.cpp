// What the emulated device says about itself, and errors.
#include <cuda_runtime_api.h>
#include <string.h>

#include "dev/emu/launch.h"
#include "dev/emu/settings.h"
#include "dev/emu/stream.h"

namespace emu {
namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

// Compute capability 9.0: what the kernels can rely on at most. All else as the smallest device of that kind has it.
constexpr int major = 9, minor = 0;

}  // namespace

cudaError_t error(cudaError_t result) {
    if (result != cudaSuccess) last_error = result;
    return result;
}

}  // namespace emu

using namespace emu;

extern "C" {

cudaError_t cudaGetLastError(void) {
    const cudaError_t result = last_error;
    last_error = cudaSuccess;
    return result;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }

// The names and words of the real runtime, for the errors the emulator can give.
const char* cudaGetErrorName(cudaError_t e) {
#define NAME(error) case error: return #error
    switch (e) {
        NAME(cudaSuccess);
        NAME(cudaErrorInvalidValue);
        NAME(cudaErrorMemoryAllocation);
        NAME(cudaErrorInvalidConfiguration);
        NAME(cudaErrorNoDevice);
        NAME(cudaErrorInvalidDevice);
        NAME(cudaErrorIllegalState);
        NAME(cudaErrorInvalidResourceHandle);
        NAME(cudaErrorNotReady);
        NAME(cudaErrorNotSupported);
        NAME(cudaErrorStreamCaptureUnsupported);
        NAME(cudaErrorStreamCaptureInvalidated);
        NAME(cudaErrorStreamCaptureUnmatched);
        NAME(cudaErrorStreamCaptureUnjoined);
        NAME(cudaErrorStreamCaptureIsolation);
        NAME(cudaErrorStreamCaptureImplicit);
        default: return "unrecognized error code";
    }
#undef NAME
}
const char* cudaGetErrorString(cudaError_t e) {
    switch (e) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorIllegalState: return "the operation cannot be performed in the present state";
        case cudaErrorInvalidResourceHandle: return "invalid resource handle";
        case cudaErrorNotReady: return "device not ready";
        case cudaErrorNotSupported: return "operation not supported";
        case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
        case cudaErrorStreamCaptureUnmatched: return "capture was not ended in the same stream as it began";
        case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
        case cudaErrorStreamCaptureIsolation: return "dependency created on uncaptured work in another stream";
        case cudaErrorStreamCaptureImplicit: return "operation would make the legacy stream depend on a capture";
        default: return "unrecognized error code";
    }
}

cudaError_t cudaGetDeviceCount(int* count) {
    *count = settings().devices;
    return *count > 0 ? cudaSuccess : error(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
    if (settings().devices == 0) return error(cudaErrorNoDevice);
    if (device < 0 || device >= settings().devices) return error(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    if (settings().devices == 0) return error(cudaErrorNoDevice);
    *device = current_device;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = settings().devices > 0 ? CUDART_VERSION : 0;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    if (device < 0 || device >= settings().devices) return error(cudaErrorInvalidDevice);
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = settings().multiprocessors; break;
        case cudaDevAttrComputeCapabilityMajor: *value = major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = minor; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = int(default_shared_bytes); break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(max_shared_bytes); break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = int(max_shared_bytes) + 1024; break;
        case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
        default: fail("cudaDeviceGetAttribute: the emulator does not know attribute %d", int(attribute));
    }
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    if (device < 0 || device >= settings().devices) return error(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    strcpy(p->name, "emulated GPU");
    p->uuid.bytes[0] = char(1 + device);
    p->major = major;
    p->minor = minor;
    p->multiProcessorCount = settings().multiprocessors;
    p->totalGlobalMem = settings().memory;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->sharedMemPerBlock = default_shared_bytes;
    p->sharedMemPerBlockOptin = max_shared_bytes;
    p->sharedMemPerMultiprocessor = max_shared_bytes + 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->l2CacheSize = 50 << 20;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;  // the others are hints
    return error(set_dynamic_shared_limit(kernel, value));
}

}  // extern "C"
