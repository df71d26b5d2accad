// Streams of the emulator, for what runs on them: kernels, copies, and the emulated libraries.
#pragma once
#include <cuda_runtime_api.h>

#include <functional>
#include <mutex>

namespace emu {

// Enqueues work on a stream, as a library does with its kernels: it runs at once, or with EMU_LAZY=1 while the host
// waits for it, or is recorded while the stream is being captured. The work may touch device memory. An error (for
// example cudaErrorStreamCaptureInvalidated) belongs into the library's answer.
cudaError_t post(cudaStream_t stream, std::function<void()> work);

// For the emulator itself; the caller holds runtime_mutex().
cudaError_t enqueue(cudaStream_t stream, cudaGraphNodeType kind, std::function<void()> work);
void finish_everything();      // all work on all streams
void finish_legacy_streams();  // all that the default stream waits for
std::recursive_mutex& runtime_mutex();

// The result of a call of the runtime: an error is also remembered for cudaGetLastError. In device.cpp.
cudaError_t error(cudaError_t result);

// A call that is not allowed while a stream is being captured: makes the capture invalid and says so. In capture.cpp.
cudaError_t unsafe_in_capture();

}  // namespace emu
