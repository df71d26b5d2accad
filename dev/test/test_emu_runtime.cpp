// The host side of the emulator: memory, launches, streams that work late, events, graph capture, and errors as the
// real runtime gives them. Only for BACKEND=emu.
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>

#include "dev/emu/stream.h"
#include "dev/test/emulated_device.h"

namespace llmc::test {
namespace {

// Every test may change the settings.
class EmuRuntime : public testing::Test {
protected:
    ~EmuRuntime() override { emu::settings() = before_; }
    emu::Settings before_ = emu::settings();
};
using EmuRuntimeDeathTest = EmuRuntime;

struct Stream {
    explicit Stream(unsigned flags = cudaStreamDefault) {
        EXPECT_EQ(cudaStreamCreateWithFlags(&handle, flags), cudaSuccess);
    }
    ~Stream() { EXPECT_EQ(cudaStreamDestroy(handle), cudaSuccess); }
    operator cudaStream_t() const { return handle; }
    cudaStream_t handle;
};
struct Event {
    Event() { EXPECT_EQ(cudaEventCreate(&handle), cudaSuccess); }
    ~Event() { EXPECT_EQ(cudaEventDestroy(handle), cudaSuccess); }
    operator cudaEvent_t() const { return handle; }
    cudaEvent_t handle;
};

__global__ void nothing() {}
__global__ void fill(float* x, float value) { x[threadIdx.x] = value; }
__global__ void use_dynamic_memory(int* out) {
    DYN_SHARED(int, memory);
    memory[0] = 5;
    *out = memory[0];
}

cudaError_t launch(void (*kernel)(), dim3 grid, dim3 block, size_t shared_bytes = 0, cudaStream_t stream = nullptr) {
    return enqueue(kernel, grid, block, shared_bytes, stream);
}

// -------------------------------------------------------------------------------------------------------------- memory
TEST_F(EmuRuntime, DeviceMemoryIsCountedAlignedAndJunk) {
    emu::settings().memory = 1 << 20;
    size_t free_before, free_now, total;
    EXPECT_EQ(cudaMemGetInfo(&free_before, &total), cudaSuccess);
    EXPECT_EQ(total, size_t(1) << 20);
    float* p;
    ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&p), 4000), cudaSuccess);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % 256, 0u);
    EXPECT_EQ(cudaMemGetInfo(&free_now, &total), cudaSuccess);
    EXPECT_EQ(free_before - free_now, 4000u);
    std::vector<float> host(1000);
    EXPECT_EQ(cudaMemcpy(host.data(), p, 4000, cudaMemcpyDeviceToHost), cudaSuccess);
    for (const float x : host) EXPECT_TRUE(std::isnan(x));
    void* too_much;
    EXPECT_EQ(cudaMalloc(&too_much, 1 << 20), cudaErrorMemoryAllocation);
    EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_EQ(cudaFree(p + 1), cudaErrorInvalidValue);
    EXPECT_EQ(cudaFree(p), cudaSuccess);
    EXPECT_EQ(cudaFree(p), cudaErrorInvalidValue);
    EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
}

TEST_F(EmuRuntime, CopiesCheckPointersAndKind) {
    Array<float> device(10, 0);
    float host[10] = {};
    EXPECT_EQ(cudaMemcpy(host, device.data(), 40, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(device.data(), host, 40, cudaMemcpyDefault), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(host, device.data(), 40, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpy(host, device.data() + 1, 40, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemcpyAsync(device.data(), host, 44, cudaMemcpyHostToDevice, nullptr), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemsetAsync(device.data() + 9, 0, 8, nullptr), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemset(host, 0, 8), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemset(device.data() + 9, 0, 4), cudaSuccess);
}

TEST_F(EmuRuntime, KnowsWhosePointerItIs) {
    Array<float> device(10, 0);
    float* pinned;
    float host;
    ASSERT_EQ(cudaMallocHost(reinterpret_cast<void**>(&pinned), 40), cudaSuccess);
    cudaPointerAttributes attributes;
    EXPECT_EQ(cudaPointerGetAttributes(&attributes, device.data() + 9), cudaSuccess);
    EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
    EXPECT_EQ(cudaPointerGetAttributes(&attributes, pinned + 9), cudaSuccess);
    EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
    EXPECT_EQ(cudaPointerGetAttributes(&attributes, &host), cudaSuccess);
    EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
    EXPECT_EQ(cudaFreeHost(&host), cudaErrorInvalidValue);
    EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST_F(EmuRuntimeDeathTest, GuardKeepsTheHostOut) {
    emu::settings().guard = true;
    Array<float> x(32, 0), y(100, 0);
    run(fill, dim3(1), dim3(32), 0, x.data(), 3.0f);
    EXPECT_EQ(x.host(), std::vector<float>(32, 3.0f));
    EXPECT_EXIT(printf("%f", double(x.data()[5])), testing::ExitedWithCode(97),
                "host code touches .* byte 20 of a device allocation of 128 bytes");
    EXPECT_EXIT(run(fill, dim3(1), dim3(32), 0, x.data() + 33, 3.0f), testing::ExitedWithCode(97),
                "a kernel touches .* byte 256 of a device allocation of 128 bytes.*(\n.*)*in kernel .*fill");
}

// ------------------------------------------------------------------------------------------------------------ launches
TEST_F(EmuRuntime, RefusesWhatDevicesRefuse) {
    EXPECT_EQ(launch(nothing, dim3(1), dim3(1024)), cudaSuccess);
    EXPECT_EQ(launch(nothing, dim3(1), dim3(1025)), cudaErrorInvalidConfiguration);
    EXPECT_EQ(launch(nothing, dim3(1), dim3(32, 32, 2)), cudaErrorInvalidConfiguration);
    EXPECT_EQ(launch(nothing, dim3(1), dim3(1, 1, 65)), cudaErrorInvalidConfiguration);
    EXPECT_EQ(launch(nothing, dim3(1), dim3(0)), cudaErrorInvalidConfiguration);
    EXPECT_EQ(launch(nothing, dim3(1, 65536), dim3(1)), cudaErrorInvalidConfiguration);
    EXPECT_EQ(launch(nothing, dim3(1, 1, 65536), dim3(1)), cudaErrorInvalidConfiguration);
    EXPECT_EQ(launch(nothing, dim3(0), dim3(32)), cudaSuccess);  // enqueue() launches nothing then
    EXPECT_EQ(launch(nothing, dim3(1), dim3(1), 0, reinterpret_cast<cudaStream_t>(&before_)),
              cudaErrorInvalidResourceHandle);
    EXPECT_EQ(cudaPeekAtLastError(), cudaErrorInvalidResourceHandle);
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidResourceHandle);
}

TEST_F(EmuRuntime, MuchDynamicSharedMemoryMustBeAskedFor) {
    Array<int> out({0});
    cudaLaunchConfig_t config = {};
    config.gridDim = config.blockDim = dim3(1);
    config.dynamicSmemBytes = (48 << 10) + 1;
    EXPECT_EQ(cudaLaunchKernelEx(&config, use_dynamic_memory, out.data()), cudaErrorInvalidValue);
    const void* kernel = reinterpret_cast<const void*>(use_dynamic_memory);
    const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    EXPECT_EQ(cudaFuncSetAttribute(kernel, attribute, (227 << 10) + 1), cudaErrorInvalidValue);
    EXPECT_EQ(cudaFuncSetAttribute(kernel, attribute, 100 << 10), cudaSuccess);
    EXPECT_EQ(cudaLaunchKernelEx(&config, use_dynamic_memory, out.data()), cudaSuccess);
    EXPECT_EQ(out.host()[0], 5);
    config.dynamicSmemBytes = (100 << 10) + 1;
    EXPECT_EQ(cudaLaunchKernelEx(&config, use_dynamic_memory, out.data()), cudaErrorInvalidValue);
    EXPECT_EQ(enqueue(use_dynamic_memory, dim3(1), dim3(1), 227 << 10, nullptr, out.data()), cudaSuccess);
    cudaGetLastError();
}

TEST_F(EmuRuntime, MachineWithoutDevice) {
    emu::settings().devices = 0;
    int count = 7;
    void* p;
    cudaStream_t stream;
    EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
    EXPECT_EQ(count, 0);
    EXPECT_EQ(cudaSetDevice(0), cudaErrorNoDevice);
    EXPECT_EQ(cudaMalloc(&p, 8), cudaErrorNoDevice);
    EXPECT_EQ(cudaStreamCreate(&stream), cudaErrorNoDevice);
    EXPECT_EQ(launch(nothing, dim3(1), dim3(1)), cudaErrorNoDevice);
    EXPECT_STREQ(cudaGetErrorString(cudaErrorNoDevice), "no CUDA-capable device is detected");
    EXPECT_STREQ(cudaGetErrorName(cudaGetLastError()), "cudaErrorNoDevice");
}

TEST_F(EmuRuntime, DescribesItsDevice) {
    emu::settings().multiprocessors = 9;
    int count, value;
    cudaDeviceProp properties;
    EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
    EXPECT_EQ(count, 1);
    EXPECT_EQ(cudaSetDevice(1), cudaErrorInvalidDevice);
    EXPECT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0), cudaSuccess);
    EXPECT_EQ(value, 9);
    EXPECT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
    EXPECT_EQ(properties.multiProcessorCount, 9);
    EXPECT_EQ(properties.sharedMemPerBlockOptin, size_t(227) << 10);
    cudaGetLastError();
}

// ------------------------------------------------------------------------------------------------- streams and events
TEST_F(EmuRuntime, LazyStreamsWorkOnlyWhenWaitedFor) {
    emu::settings().lazy = true;
    Stream stream;
    Array<float> x(2, 0);
    float *pinned, pageable = 1, result[2] = {};
    ASSERT_EQ(cudaMallocHost(reinterpret_cast<void**>(&pinned), 4), cudaSuccess);
    *pinned = 1;
    EXPECT_EQ(cudaMemcpyAsync(x.data(), pinned, 4, cudaMemcpyHostToDevice, stream), cudaSuccess);
    EXPECT_EQ(cudaMemcpyAsync(x.data() + 1, &pageable, 4, cudaMemcpyHostToDevice, stream), cudaSuccess);
    EXPECT_EQ(cudaMemcpyAsync(result, x.data(), 8, cudaMemcpyDeviceToHost, stream), cudaSuccess);
    *pinned = pageable = 2;  // too early: the copies have not read them yet
    EXPECT_EQ(result[0], 0);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(result[0], 2);
    EXPECT_EQ(result[1], 2);
    EXPECT_EQ(enqueue(fill, dim3(1), dim3(1), 0, stream, x.data(), 7.0f), cudaSuccess);
    EXPECT_EQ(x.host()[0], 7);  // cudaMemcpy waits for blocking streams
    EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST_F(EmuRuntime, EagerStreamsWorkAtOnce) {
    emu::settings().lazy = false;
    int done = 0;
    EXPECT_EQ(emu::post(nullptr, [&] { done++; }), cudaSuccess);
    EXPECT_EQ(done, 1);
}

// Two streams write letters; what comes out is an interleaving that the events allow.
std::string letters(bool with_event) {
    Stream a, b;
    Event event;
    std::string text;
    const auto write = [&](cudaStream_t stream, char letter) {
        EXPECT_EQ(emu::post(stream, [&text, letter] { text += letter; }), cudaSuccess);
    };
    write(a, '1'), write(a, '2');
    if (with_event) cudaEventRecord(event, a);
    write(a, '3');
    write(b, 'x');
    if (with_event) cudaStreamWaitEvent(b, event);
    write(b, 'y');
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return text;
}
TEST_F(EmuRuntime, LazyStreamsInterleaveAsEventsAllow) {
    emu::settings().lazy = true;
    std::set<std::string> free, ordered;
    for (int i = 0; i < 300; i++) free.insert(letters(false)), ordered.insert(letters(true));
    EXPECT_EQ(free, std::set<std::string>(
                        {"123xy", "12x3y", "12xy3", "1x23y", "1x2y3", "1xy23", "x123y", "x12y3", "x1y23", "xy123"}));
    EXPECT_EQ(ordered, std::set<std::string>({"123xy", "12x3y", "12xy3", "1x23y", "1x2y3", "x123y", "x12y3"}));
}

TEST_F(EmuRuntime, DefaultStreamAndBlockingStreamsWaitForEachOther) {
    emu::settings().lazy = true;
    Stream blocking, independent(cudaStreamNonBlocking);
    std::set<std::string> seen;
    for (int i = 0; i < 100; i++) {
        std::string text;
        const auto write = [&](cudaStream_t stream, char letter) {
            emu::post(stream, [&text, letter] { text += letter; });
        };
        write(blocking, 'a'), write(nullptr, 'b'), write(blocking, 'c'), write(independent, 'x');
        EXPECT_EQ(cudaStreamSynchronize(blocking), cudaSuccess);
        EXPECT_EQ(cudaStreamSynchronize(independent), cudaSuccess);
        seen.insert(text);
    }
    EXPECT_EQ(seen, std::set<std::string>({"abcx", "abxc", "axbc", "xabc"}));
}

TEST_F(EmuRuntime, EventsTellTheTime) {
    emu::settings().lazy = true;
    Stream stream;
    Event start, end, never;
    float ms = -1;
    EXPECT_EQ(cudaEventRecord(start, stream), cudaSuccess);
    EXPECT_EQ(launch(nothing, dim3(1), dim3(1), 0, stream), cudaSuccess);
    EXPECT_EQ(cudaEventRecord(end, stream), cudaSuccess);
    EXPECT_EQ(cudaEventElapsedTime(&ms, start, end), cudaErrorNotReady);
    int asked = 0;
    while (cudaEventQuery(end) == cudaErrorNotReady) asked++;
    EXPECT_EQ(asked, 3);
    EXPECT_EQ(cudaEventSynchronize(end), cudaSuccess);
    EXPECT_EQ(cudaEventElapsedTime(&ms, start, end), cudaSuccess);
    EXPECT_GE(ms, 0);
    EXPECT_EQ(cudaEventElapsedTime(&ms, start, never), cudaErrorInvalidResourceHandle);
    EXPECT_EQ(cudaEventQuery(never), cudaSuccess);
    EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
    cudaGetLastError();
}

// -------------------------------------------------------------------------------------------------------------- graphs
TEST_F(EmuRuntime, CaptureRecordsInsteadOfRunning) {
    Stream stream;
    Array<float> x(4, 0);
    int posted = 0;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamCaptureStatus status;
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    EXPECT_EQ(cudaStreamIsCapturing(stream, &status), cudaSuccess);
    EXPECT_EQ(status, cudaStreamCaptureStatusActive);
    EXPECT_EQ(enqueue(fill, dim3(1), dim3(4), 0, stream, x.data(), 7.0f), cudaSuccess);
    EXPECT_EQ(cudaMemsetAsync(x.data(), 0, 4, stream), cudaSuccess);
    EXPECT_EQ(emu::post(stream, [&] { posted++; }), cudaSuccess);
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    EXPECT_EQ(cudaStreamIsCapturing(stream, &status), cudaSuccess);
    EXPECT_EQ(status, cudaStreamCaptureStatusNone);
    EXPECT_EQ(x.host(), std::vector<float>(4));
    EXPECT_EQ(posted, 0);

    size_t nodes = 0;
    EXPECT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
    EXPECT_EQ(nodes, 3u);
    std::vector<cudaGraphNode_t> node(nodes);
    cudaGraphNodeType type;
    EXPECT_EQ(cudaGraphGetNodes(graph, node.data(), &nodes), cudaSuccess);
    EXPECT_EQ(cudaGraphNodeGetType(node[1], &type), cudaSuccess);
    EXPECT_EQ(type, cudaGraphNodeTypeMemset);

    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    for (int i = 0; i < 2; i++) EXPECT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
    EXPECT_EQ(x.host(), std::vector<float>({0, 7, 7, 7}));
    EXPECT_EQ(posted, 2);
    EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

TEST_F(EmuRuntime, CallsThatCannotBeCapturedSpoilTheCapture) {
    Array<float> x(4, 0);
    Event event;
    float host[4];
    void* p;
    Stream stream;
    const std::vector<std::function<cudaError_t()>> unsafe = {
        [&] { return cudaMalloc(&p, 8); },
        [&] { return cudaMallocHost(&p, 8); },
        [&] { return cudaMemcpy(host, x.data(), 16, cudaMemcpyDeviceToHost); },
        [&] { return cudaStreamSynchronize(stream); },
        [&] { return cudaDeviceSynchronize(); },
        [&] { return cudaFree(x.data()); },
    };
    for (const auto& call : unsafe) {
        cudaGraph_t graph = nullptr;
        cudaStreamCaptureStatus status;
        ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
        EXPECT_EQ(call(), cudaErrorStreamCaptureUnsupported);
        EXPECT_EQ(launch(nothing, dim3(1), dim3(1), 0, stream), cudaErrorStreamCaptureInvalidated);
        EXPECT_EQ(cudaStreamIsCapturing(stream, &status), cudaSuccess);
        EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated);
        EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
        EXPECT_EQ(graph, nullptr);
        EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    }
    EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal), cudaErrorStreamCaptureUnsupported);
    cudaGetLastError();
}

TEST_F(EmuRuntime, CaptureSpreadsThroughEvents) {
    Stream a, b;
    Event fork, join;
    std::string text;
    const auto write = [&](cudaStream_t stream, char letter) {
        return emu::post(stream, [&text, letter] { text += letter; });
    };
    for (const bool joined : {true, false}) {
        cudaGraph_t graph;
        ASSERT_EQ(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal), cudaSuccess);
        EXPECT_EQ(write(a, '1'), cudaSuccess);
        EXPECT_EQ(cudaEventRecord(fork, a), cudaSuccess);
        EXPECT_EQ(cudaStreamWaitEvent(b, fork), cudaSuccess);
        EXPECT_EQ(write(b, '2'), cudaSuccess);
        EXPECT_EQ(cudaEventRecord(join, b), cudaSuccess);
        if (!joined) write(b, '3');
        EXPECT_EQ(cudaStreamWaitEvent(a, join), cudaSuccess);
        EXPECT_EQ(cudaStreamEndCapture(b, &graph), cudaErrorStreamCaptureUnmatched);
        EXPECT_EQ(cudaStreamEndCapture(a, &graph), joined ? cudaSuccess : cudaErrorStreamCaptureUnjoined);
        if (!joined) continue;
        cudaGraphExec_t exec;
        EXPECT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
        EXPECT_EQ(text, "");
        EXPECT_EQ(cudaGraphLaunch(exec, a), cudaSuccess);
        EXPECT_EQ(cudaStreamSynchronize(a), cudaSuccess);
        EXPECT_EQ(text, "12");
        cudaGraphExecDestroy(exec);
        cudaGraphDestroy(graph);
    }
    EXPECT_EQ(write(b, '4'), cudaSuccess);  // no longer captured
    EXPECT_EQ(cudaStreamSynchronize(b), cudaSuccess);
    EXPECT_EQ(text, "124");
    cudaGetLastError();
}

TEST_F(EmuRuntime, CaptureDoesNotMixWithOtherWork) {
    Stream a, b;
    Event outside;
    cudaGraph_t graph;
    EXPECT_EQ(cudaEventRecord(outside, b), cudaSuccess);
    ASSERT_EQ(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal), cudaSuccess);
    EXPECT_EQ(cudaStreamWaitEvent(a, outside), cudaErrorStreamCaptureIsolation);
    EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaErrorStreamCaptureInvalidated);
    ASSERT_EQ(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal), cudaSuccess);
    EXPECT_EQ(launch(nothing, dim3(1), dim3(1)), cudaErrorStreamCaptureImplicit);
    EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaErrorStreamCaptureInvalidated);
    cudaGetLastError();
}

}  // namespace
}  // namespace llmc::test
