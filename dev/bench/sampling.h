// Timed steps of several workers in turn, and probes that tell which of them count.
//
// Two virtual CPUs may share one core for a while, which nothing but speed betrays. So a short loop of fused
// multiply-adds is timed before and after every sample, and a sample counts only if both reach 90 % of the best such
// probe of the whole run. Nor does it count if its threads waited for a CPU for 5 % of its time: then other programs
// were running (Worker::good_samples). Sampling goes on until enough count, or four times as many have been taken.
#pragma once
#include <thread>

#include "dev/bench/worker.h"
#include "llmc/ops/ops.h"

namespace llmc {

struct Prober {
    Context ctx;
    double best = 0;  // FLOP/s

    explicit Prober(int threads) : ctx({.threads = threads}) {}
    // OpenMP's threads turn in circles for some milliseconds before they sleep, those of the worker before this, and
    // this one's afterwards: each is given the time to end.
    double probe() {
        constexpr std::chrono::milliseconds rest(20);
        std::this_thread::sleep_for(rest);
        const double flops = peak_flops(DType::f32, ctx).flops;
        std::this_thread::sleep_for(rest);
        best = std::max(best, flops);
        return flops;
    }
};

struct Sampled {
    Worker& worker;
    Prober& prober;  // with as many threads as the worker

    bool enough(int64_t samples) const {
        return worker.failed || int64_t(worker.good_samples(prober.best).size()) >= samples;
    }
    void sample() {
        const double before = prober.probe(), waited = worker.waited();
        const nlohmann::json answer = worker.ask("sample");
        if (worker.failed) return;
        const double waits = worker.waited() - waited;
        worker.samples.push_back(
            {answer.at("seconds"), answer.value("processor_seconds", 0.0), std::min(before, prober.probe()), waits});
    }
};

inline void sample_in_turn(std::vector<Sampled>& turns, int64_t samples) {
    auto enough = [&](const Sampled& s) { return s.enough(samples); };
    for (int64_t i = 0; i < 4 * samples && !std::all_of(turns.begin(), turns.end(), enough); i++) {
        for (Sampled& s : turns) s.sample();
        std::fprintf(stderr, "."), std::fflush(stderr);
    }
}

}  // namespace llmc
