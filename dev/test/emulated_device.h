// For the tests of the emulator: arrays in device memory, and a launch that waits and expects success.
#pragma once
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "dev/emu/settings.h"
#include "llmc/ops/cuda/gpu.cuh"

namespace llmc::test {

template <class T>
class Array {
public:
    explicit Array(const std::vector<T>& values) : size_(values.size()) {
        EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), size_ * sizeof(T)), cudaSuccess);
        EXPECT_EQ(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
    }
    Array(size_t size, T value) : Array(std::vector<T>(size, value)) {}
    ~Array() { cudaFree(data_); }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;

    T* data() { return data_; }
    size_t size() const { return size_; }
    std::vector<T> host() const {  // waits for the device
        std::vector<T> values(size_);
        EXPECT_EQ(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
        return values;
    }

private:
    size_t size_;
    T* data_ = nullptr;
};

template <class... Params, class... Args>
void run(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Args&&... args) {
    EXPECT_EQ(enqueue(kernel, grid, block, shared_bytes, nullptr, std::forward<Args>(args)...), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace llmc::test
