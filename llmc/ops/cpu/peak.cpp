// The most that this machine can do: multiply-adds and bytes to and from memory a second, measured now.
#include <chrono>
#include <fstream>

#include "llmc/ops/backend.h"
#include "llmc/ops/cpu/cpu.h"
#include "llmc/ops/cpu/tile.h"

namespace llmc {

namespace {

// `rounds` times 12 independent vectors of multiply-adds: enough to hide the latency of an FMA at two per cycle.
template <class T>
T fma_rounds(int64_t rounds, T seed) {
    using Lane = typename TileVector<T>::type;
    constexpr int chains = 12;
    Lane x[chains];
    for (int i = 0; i < chains; i++)
        for (int j = 0; j < tile_lanes<T>; j++) x[i][j] = seed + T(i);
    Lane scale = x[0] * T(0) + T(0.5), shift = x[0] * T(0) + T(1);
    for (int64_t r = 0; r < rounds; r++)
        for (int i = 0; i < chains; i++) x[i] = x[i] * scale + shift;
    T sum = 0;
    for (int i = 0; i < chains; i++)
        for (int j = 0; j < tile_lanes<T>; j++) sum += x[i][j];
    return sum;
}

template <class T>
double measured_flops(int threads) {
    using clock = std::chrono::steady_clock;
    const int64_t flops_per_round = 2 * 12 * tile_lanes<T>;
    int64_t rounds = 1 << 16;
    double best = 0;
    volatile T sink = 0;  // so that the loop is not optimised away
    for (double total = 0; total < 0.1;) {
        auto start = clock::now();
        T sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
        sum += fma_rounds<T>(rounds, T(omp_get_thread_num()));
        sink = sum;
        double seconds = std::chrono::duration<double>(clock::now() - start).count();
        total += seconds;
        best = std::max(best, double(threads) * double(rounds * flops_per_round) / seconds);
        if (seconds < 0.01) rounds *= 2;
    }
    (void)sink;
    return best;
}

}  // namespace

Peak peak_flops(DType act, Context& ctx) {
    return {act == DType::f64 ? measured_flops<double>(ctx.threads) : measured_flops<float>(ctx.threads),
            "measured now"};
}

namespace {

// Of the cache that the cores share before memory; cautious where the system does not say.
int64_t last_cache_bytes() {
    int64_t kilobytes = 0;
    for (int index = 0; index < 8; index++) {
        std::ifstream file(str("/sys/devices/system/cpu/cpu0/cache/index", index, "/size"));
        int64_t size;
        if (file >> size) kilobytes = std::max(kilobytes, size);  // "32768K"
    }
    return std::max<int64_t>(kilobytes * 1024, 32 << 20);
}

// x += scale * y reads what it overwrites: no byte moves that is not counted, as a plain copy would have it, whose
// target is read too before it is written.
double update_seconds(float* x, const float* y, int64_t n, int threads) {
    const auto start = std::chrono::steady_clock::now();
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) x[i] += 0.5f * y[i];
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Bandwidth peak_bandwidth(Context& ctx) {
    // Two arrays of four times the cache: of what one pass has left there, the next finds next to nothing. They are
    // walked through in pieces of about a millisecond, so that on a busy machine some are not interrupted.
    constexpr int64_t piece_bytes = 16 << 20, piece = piece_bytes / int64_t(sizeof(float));
    const int64_t wanted = std::min(4 * last_cache_bytes(), device_memory_available(ctx) / 8);
    const int64_t pieces = std::max<int64_t>(1, wanted / piece_bytes), bytes = pieces * piece_bytes;
    auto* x = static_cast<float*>(device_alloc(bytes, ctx));
    auto* y = static_cast<float*>(device_alloc(bytes, ctx));
    double best = 0;
    {
        const Op op(ctx, "peak_bandwidth");  // the guard is lifted while an op runs
        double total = 0;
        for (int64_t i = 0; total < 0.2; i = (i + 1) % pieces) {
            const double seconds = update_seconds(x + i * piece, y + i * piece, piece, ctx.threads);
            total += seconds;
            best = std::max(best, 3 * double(piece_bytes) / seconds);
        }
    }
    device_free(x, bytes, ctx);
    device_free(y, bytes, ctx);
    return {best, "measured now"};
}

}  // namespace llmc
