// What bench_scaling measures: the tiny models of bench_models.h, and one size at a time that grows.
#pragma once
#include "dev/bench/bench_models.h"

namespace llmc {

struct ScalingPoint {
    int64_t value;  // of the size that grows
    ModelConfig model;
    int64_t batch = 32;
    int threads = 0;  // 0: as the others
};

struct ScalingSweep {
    std::string name, text;  // "T", "sequence length T, 4096 tokens"
    std::vector<ScalingPoint> points;
};

// change(point, size): sets what the sweep is about, in the sizes that the model is made of or else in the model.
template <class Change>
ScalingSweep sweep_of(const std::string& name, const std::string& text, const std::string& kind,
                      const std::vector<int64_t>& values, const Change& change) {
    ScalingSweep sweep{name, text + (kind == "dense" ? "" : ", " + kind), {}};
    for (int64_t value : values) {
        BenchSize size = bench_sizes.front();
        ScalingPoint point{.value = value, .model = {}};
        change(value, size, point);
        point.model = bench_model(size, kind);
        sweep.points.push_back(point);
    }
    return sweep;
}

// The same for experts: change(value, model).
template <class Change>
ScalingSweep expert_sweep_of(const std::string& name, const std::string& text, const std::string& kind,
                             const std::vector<int64_t>& values, const Change& change) {
    ScalingSweep sweep = sweep_of(name, text, kind, values, [](int64_t, BenchSize&, ScalingPoint&) {});
    for (ScalingPoint& point : sweep.points) {
        change(point.value, point.model);
        point.model = resolved(point.model);
    }
    return sweep;
}

inline std::vector<ScalingSweep> scaling_sweeps() {
    using Values = std::vector<int64_t>;
    // expert_size 0: experts as large as leaves the FLOPs of a token as they are.
    auto experts = [](int64_t value, ModelConfig& m) { m.experts = value, m.expert_size = 0; };
    return {
        sweep_of("T", "sequence length T, 4096 tokens a step", "dense", {256, 512, 1024, 2048, 4096},
                 [](int64_t value, BenchSize& s, ScalingPoint& p) { s.context = value, p.batch = 4096 / value; }),
        sweep_of("V", "vocabulary V", "dense", {1024, 4096, 16384, 65536},
                 [](int64_t value, BenchSize& s, ScalingPoint&) { s.vocabulary = value; }),
        sweep_of("d_model", "width d_model, heads of 32", "dense", {64, 128, 256, 512},
                 [](int64_t value, BenchSize& s, ScalingPoint&) { s.d_model = value, s.heads = value / 32; }),
        sweep_of("layers", "layers", "dense", {2, 4, 8, 16},
                 [](int64_t value, BenchSize& s, ScalingPoint&) { s.layers = value; }),
        sweep_of("batch", "sequences in a step", "dense", {4, 8, 16, 32, 64, 128},
                 [](int64_t value, BenchSize&, ScalingPoint& p) { p.batch = value; }),
        sweep_of("threads", "threads", "dense", {1, 2},
                 [](int64_t value, BenchSize&, ScalingPoint& p) { p.threads = int(value); }),
        expert_sweep_of("E_mot", "experts E at equal FLOPs of experts", "mot", Values{8, 16, 32, 64, 128}, experts),
        expert_sweep_of("E_switch", "experts E at equal active FLOPs", "switch", Values{8, 16, 32, 64, 128}, experts),
        expert_sweep_of("E_dropless", "experts E at equal active FLOPs", "dropless", Values{8, 16, 32, 64, 128},
                        experts),
        expert_sweep_of("g", "group size g, 32 experts", "mot", Values{4, 8, 16, 32},
                        [](int64_t value, ModelConfig& m) { m.group_size = value; }),
    };
}

}  // namespace llmc
