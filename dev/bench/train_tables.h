// What bench_train prints: medians of the samples that count, and our steps beside PyTorch's.
#pragma once
#include <cmath>

#include "dev/bench/worker.h"
#include "llmc/measure/profile.h"

namespace llmc {

struct Result {
    std::string name, model, mode;
    double median = 0, fastest = 0, slowest = 0;  // seconds; 0: no sample counts
    size_t kept = 0, all = 0;
    bool failed = false;
    nlohmann::json ready{}, end{}, bound{};

    double tokens_per_second(double seconds) const {
        return seconds > 0 ? ready.at("tokens").get<double>() / seconds : 0;
    }
    double flops_per_second() const { return median > 0 ? ready.value("flops", 0.0) / median : 0; }
    double resident() const { return end.value("resident_bytes", 0.0); }
    // What is not parameters, gradients and Adam's two moments.
    double resident_beside() const { return resident() - 16 * ready.value("parameters", 0.0); }
};

inline Result summarise(const Worker& w, double best_probe) {
    Result r{.name = w.name, .model = w.model, .mode = w.mode, .failed = w.failed};
    if (r.failed) return r;
    r.ready = w.ready, r.end = w.end, r.bound = w.bound;
    const std::vector<double> seconds = w.good_samples(best_probe);
    r.kept = seconds.size(), r.all = w.samples.size();
    if (!seconds.empty())
        r.median = seconds[seconds.size() / 2], r.fastest = seconds.front(), r.slowest = seconds.back();
    return r;
}

inline void print_profile(const Result& r, const Machine& machine) {
    Profile profile = profile_from_json(r.end.at("profile"));
    profile.machine = machine;
    std::printf("\n%s, all samples: %s", r.name.c_str(), profile_table(profile).c_str());
}

inline void print_table(const std::vector<Result>& results, double peak) {
    auto gb = [](const nlohmann::json& j, const char* key) { return j.value(key, 0.0) * 1e-9; };
    std::printf("\n%-24s %9s %17s %7s %8s %6s %9s %9s %9s\n", "", "tokens/s", "(slow - fast)", "samples", "GFLOP/s",
                "peak", "plan GB", "arena GB", "VmHWM GB");
    for (const Result& r : results)
        if (!r.failed)
            std::printf("%-24s %9.0f %8.0f -%7.0f %3zu of%2zu %8.1f %5.1f%% %9.3f %9.3f %9.3f\n", r.name.c_str(),
                        r.tokens_per_second(r.median), r.tokens_per_second(r.slowest), r.tokens_per_second(r.fastest),
                        r.kept, r.all, r.flops_per_second() * 1e-9, 100 * r.flops_per_second() / peak,
                        gb(r.ready, "planned_bytes"), gb(r.ready, "arena_bytes"), r.resident() * 1e-9);
    std::printf("peak measured in this run: %.0f GFLOP/s\n", peak * 1e-9);
}

// The largest relative difference of the first steps' losses and of the first gradient's norm: do both compute the
// same? Later norms tell nothing: rounding grows fast in the first steps at a high learning rate.
inline double difference(const Result& a, const Result& b) {
    double most = 0;
    auto compare = [&](double x, double y) {
        const double relative = std::abs(x - y) / std::abs(x);
        most = std::isfinite(relative) ? std::max(most, relative) : INFINITY;
    };
    compare(a.ready.at("norms").at(0), b.ready.at("norms").at(0));
    for (size_t i = 0; i < a.ready.at("losses").size(); i++)
        compare(a.ready.at("losses").at(i), b.ready.at("losses").at(i));
    return most;
}
inline constexpr double allowed_difference = 1e-4;  // in float32

inline void print_comparison_row(const Result& r, const Result* ours) {
    if (r.kept > 0)
        std::printf("%-24s %9.1f %8.1f -%8.1f %3zu of%2zu %9.0f", r.name.c_str(), r.median * 1e3, r.fastest * 1e3,
                    r.slowest * 1e3, r.kept, r.all, r.tokens_per_second(r.median));
    else
        std::printf("%-24s %-47s", r.name.c_str(), str("  all ", r.all, " samples were disturbed").c_str());
    const bool same = !ours || difference(*ours, r) <= allowed_difference;
    auto ratio = [&](double a, double b) {
        if (ours && same && a > 0 && b > 0)
            std::printf(" %7.2f", a / b);
        else
            std::printf(" %7s", "");
    };
    ratio(r.median, ours ? ours->median : 0);
    std::printf(" %8.3f %8.3f", r.resident() * 1e-9, r.resident_beside() * 1e-9);
    ratio(r.resident_beside(), ours ? ours->resident_beside() : 0);
    std::printf("\n");
    if (ours && same)
        std::printf("    losses of the first steps and the first gradient's norm differ by at most %.1e of them\n",
                    difference(*ours, r));
    if (!same)
        std::printf(
            "    no ratios: losses of the first steps or the first gradient's norm differ by %.1e of them, not by "
            "%.0e\n",
            difference(*ours, r), allowed_difference);
}

inline void print_bound(const Result& r) {
    auto ms = [&](const char* key) { return r.bound.at(key).get<double>() * 1e3; };
    auto print_share = [&](const char* key) {
        if (r.median > 0) std::printf(", %.0f %% of our step", ms(key) / (r.median * 1e3) * 100);
        std::printf("\n");
    };
    std::printf("    bound %.1f ms: products %.1f at %.0f GFLOP/s, other ops %.1f", ms("seconds"),
                ms("product_seconds"), r.bound.at("product_flops_per_second").get<double>() * 1e-9,
                ms("other_seconds"));
    print_share("seconds");
    std::printf("    with every operand from memory %.1f ms", ms("seconds_from_memory"));
    print_share("seconds_from_memory");
}

// Our rows are each followed by those of PyTorch that were measured in turn with it.
inline void print_comparison(const std::vector<Result>& results) {
    std::printf("\n%-24s %9s %18s %7s %9s %7s %8s %8s %7s\n", "", "ms/step", "(fast - slow)", "samples", "tokens/s",
                "x ours", "VmHWM GB", "beside*", "x ours");
    const Result* ours = nullptr;
    for (const Result& r : results) {
        if (r.failed) {
            std::printf("%-24s did not run\n", r.name.c_str());
            if (r.mode.empty()) ours = nullptr;
            continue;
        }
        if (r.mode.empty()) ours = &r;
        print_comparison_row(r, r.mode.empty() ? nullptr : ours);
        if (r.bound.is_object()) print_bound(r);
    }
    std::printf("* VmHWM without the 16 bytes of a parameter, its gradient and its moments\n");
}

inline nlohmann::json to_json(const Result& r, double peak) {
    if (r.failed) return {{"name", r.name}, {"model", r.model}, {"pytorch_mode", r.mode}, {"failed", true}};
    return {{"name", r.name},
            {"model", r.model},
            {"pytorch_mode", r.mode},
            {"tokens_per_second", r.tokens_per_second(r.median)},
            {"slowest", r.tokens_per_second(r.slowest)},
            {"fastest", r.tokens_per_second(r.fastest)},
            {"samples", r.all},
            {"kept", r.kept},
            {"flops_per_second", r.flops_per_second()},
            {"share_of_peak", r.flops_per_second() / peak},
            {"bound", r.bound},
            {"ready", r.ready},
            {"end", r.end}};
}

}  // namespace llmc
