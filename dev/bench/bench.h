// What the benchmarks of single ops share.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "llmc/base/clock.h"
#include "llmc/base/standard_output.h"
#include "llmc/ops/ops.h"

namespace llmc {

// Of all threads of this process.
inline double processor_seconds_now() {
    timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

// Tensors of a benchmark, freed together, and the time of what is done with them.
struct Bench {
    Context ctx;
    std::vector<std::pair<void*, int64_t>> owned;

    explicit Bench(const ContextOptions& options) : ctx(options) {}
    ~Bench() { clear(); }

    void clear() {
        for (auto& [data, bytes] : owned) device_free(data, bytes, ctx);
        owned.clear();
    }
    Tensor tensor(DType dtype, Shape shape, const char* name) {
        int64_t bytes = std::max<int64_t>(1, shape.numel() * size_of(dtype));
        Tensor t(device_alloc(bytes, ctx), dtype, shape, name);
        owned.emplace_back(t.data, bytes);
        if (dtype != DType::i32) {
            fill(t, 0.01, ctx);
            return t;
        }
        std::vector<int32_t> ids(size_t(shape.numel()));
        for (size_t i = 0; i < ids.size(); i++) ids[i] = int32_t(i * i % 9973);
        upload(t, ids.data(), ctx);
        return t;
    }

    // The least of at least 5 calls, and of up to 200 within `budget` seconds.
    double best_seconds(const std::function<void()>& f, double budget = 0.5) {
        double best = 1e30, total = 0;
        for (int i = 0; i < 5 || (total < budget && i < 200); i++) {
            const double start = seconds_now();
            f();
            synchronize(ctx);
            const double seconds = seconds_now() - start;
            best = std::min(best, seconds);
            total += seconds;
        }
        return best;
    }
};

}  // namespace llmc
