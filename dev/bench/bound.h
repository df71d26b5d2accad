// The least time that a training step needs on this machine, from rates that are measured now:
//   matrix products    FLOPs / the best rate of a product of these sizes on its own
//   every other op     the larger of FLOPs / peak and bytes / bandwidth, bytes being those of its inputs and outputs
// A product is measured as the step asks for it and, if that is faster, with contiguous matrices that need no
// transposing: what an awkward layout costs is not excused. Nor is the softmax of the head, which counts as its
// products only, nor attention's and the mixture's small products, which count at the peak, nor an activation that a
// product makes in its own pass, which counts as nothing.
//
// A product on its own meets the same matrices again and finds the smaller ones in the caches; in a step they come from
// memory or from another core. A second figure has every operand of every op come from memory.
#pragma once
#include <nlohmann/json.hpp>

#include "dev/bench/bench.h"
#include "llmc/ops/checks/matmul.h"

namespace llmc {

using Products = std::map<GemmProblem, int64_t>;  // how often a step asks for each

// A view of memory of its own: `batch` matrices of rows x columns, as a GemmProblem describes them.
inline Tensor matrices(Bench& bench, DType dtype, int64_t batch, int64_t rows, int64_t columns, int64_t ld,
                       int64_t stride, const char* name) {
    Tensor memory = bench.tensor(dtype, {(batch - 1) * stride + rows * ld}, name);
    const bool one = batch == 1;
    Tensor t(memory.data, dtype, one ? Shape{rows, columns} : Shape{batch, rows, columns}, name);
    t.stride = one ? Shape{ld, 1} : Shape{stride, ld, 1};
    return t;
}

struct Operands { Tensor out, a, b; };
inline Operands operands(const GemmProblem& p, Bench& bench) {
    return {matrices(bench, p.out, p.batch, p.m, p.n, p.ldc, p.stride_c, "out"),
            matrices(bench, p.in, p.batch, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.lda, p.stride_a,
                     "a"),
            matrices(bench, p.in, p.batch, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.ldb, p.stride_b,
                     "b")};
}

// The least seconds of a product that has `sets` of operands in turn.
inline double product_seconds(const GemmProblem& p, Bench& bench, int64_t sets = 1) {
    std::vector<Operands> all;
    for (int64_t i = 0; i < sets; i++) all.push_back(operands(p, bench));
    const MatmulOptions options{.transpose_a = p.transpose_a, .transpose_b = p.transpose_b, .accumulate = p.accumulate};
    size_t next = 0;
    const double seconds = bench.best_seconds(
        [&] {
            const Operands& o = all[next++ % all.size()];
            matmul(o.out, o.a, o.b, options, bench.ctx);
        },
        0.2);
    bench.clear();
    return seconds;
}

// So many sets of operands that a cache of 256 MiB has lost one before its turn comes again.
inline int64_t sets_beyond_caches(const GemmProblem& p) {
    constexpr int64_t cache = 256 << 20;
    const int64_t bytes = p.batch * ((p.m * p.k + p.k * p.n) * size_of(p.in) + p.m * p.n * size_of(p.out));
    return cache / std::max<int64_t>(bytes, 1 << 16) + 1;
}

inline GemmProblem contiguous(GemmProblem p) {
    p.transpose_a = p.transpose_b = p.accumulate = false;
    p.lda = p.k, p.ldb = p.ldc = p.n;
    if (p.batch > 1) p.stride_a = p.m * p.k, p.stride_b = p.k * p.n, p.stride_c = p.m * p.n;
    return p;
}

// Bytes per second of a += b, which writes nothing that it has not read, by what the two tensors need together: small
// ones stay in the caches.
inline std::map<int64_t, double> measure_bandwidth(Bench& bench) {
    std::map<int64_t, double> rates;
    for (int64_t bytes = 1 << 20; bytes <= 1 << 28; bytes *= 4) {
        Tensor a = bench.tensor(DType::f32, {bytes / 8}, "a"), b = bench.tensor(DType::f32, {bytes / 8}, "b");
        rates[bytes] = 1.5 * double(bytes) / bench.best_seconds([&] { add(a, a, b, bench.ctx); }, 0.2);
        bench.clear();
    }
    return rates;
}

// The best rate of any size that is not much smaller: small calls are slow for other reasons than memory.
inline double bandwidth_for(double bytes, const std::map<int64_t, double>& rates) {
    double best = rates.rbegin()->second;
    for (auto [size, rate] : rates)
        if (4 * double(size) > bytes) best = std::max(best, rate);
    return best;
}

// Seconds of an op's calls at these rates, and the bandwidth that they get: that of a call's size, whose inputs another
// op may have left in a cache. Most of what AdamW reads was last touched a step ago: its calls count as one large one.
struct OpBound {
    double seconds, bandwidth;
};
inline OpBound op_bound(const std::string& name, const OpCost& cost, double peak,
                        const std::map<int64_t, double>& rates) {
    const int64_t visits = name == "adamw_update" ? 1 : std::max<int64_t>(1, cost.calls);
    const double bandwidth = bandwidth_for(double(cost.bytes) / double(visits), rates);
    return {std::max(cost.flops / peak, double(cost.bytes) / bandwidth), bandwidth};
}

// costs: of one step, by op. Products of the ops `matmul` and `head_loss` are expected to be in `products`.
inline nlohmann::json measure_bound(const Products& products, const std::map<std::string, OpCost>& costs, int threads) {
    Bench bench({.threads = threads});
    double peak = 0, product_time = 0, product_flops = 0, other_time = 0, time_from_memory = 0;
    for (int i = 0; i < 3; i++) peak = std::max(peak, peak_flops(DType::f32, bench.ctx).flops);
    nlohmann::json list = nlohmann::json::array(), others = nlohmann::json::array();
    for (const auto& [p, calls] : products) {
        const GemmProblem easy = contiguous(p);
        const double as_asked = product_seconds(p, bench), plain = easy == p ? as_asked : product_seconds(easy, bench);
        const double flops = double(p.flops()), best = std::min(as_asked, plain);
        const GemmProblem& better = as_asked > plain ? easy : p;
        const double from_memory = std::max(best, product_seconds(better, bench, sets_beyond_caches(better)));
        product_time += double(calls) * best, product_flops += double(calls) * flops;
        time_from_memory += double(calls) * from_memory;
        list.push_back({{"product", p.text()},
                        {"calls", calls},
                        {"flops_per_second_as_asked", flops / as_asked},
                        {"flops_per_second_contiguous", flops / plain},
                        {"flops_per_second_from_memory", flops / from_memory}});
    }
    const auto rates = measure_bandwidth(bench);
    const double memory = rates.rbegin()->second;
    for (const auto& [name, cost] : costs) {
        if (name == "matmul" || name == "head_loss") continue;
        const auto [seconds, bandwidth] = op_bound(name, cost, peak, rates);
        other_time += seconds;
        time_from_memory += std::max(cost.flops / peak, double(cost.bytes) / memory);
        others.push_back({{"op", name}, {"calls", cost.calls}, {"seconds", seconds}, {"bandwidth", bandwidth}});
    }
    return {{"seconds", product_time + other_time},
            {"product_seconds", product_time},
            {"other_seconds", other_time},
            {"product_flops_per_second", product_flops / product_time},
            {"peak_flops_per_second", peak},
            {"memory_bytes_per_second", memory},
            {"seconds_from_memory", time_from_memory},
            {"products", list},
            {"other_ops", others}};
}

}  // namespace llmc
