// How the cost of a training step grows, one size at a time, beside the cost that its formula predicts.
//
//   bench_scaling [--sweeps T,V,d_model,...] [--samples N] [--threads N] [--busy] [--profile] [--json FILE]
//
// The formula is what the ops declare when the step is counted (count_step.h): the sum over its ops of the larger of
// FLOPs / peak and bytes / bandwidth, rates of this machine measured in this run with as many threads. No time is ever
// that low; what matters is that time / floor does not grow: then no cost hides that grows faster than it is known to.
//
// The table is one that gnuplot reads (scripts/plot_scaling.sh): a block for each sweep, two blank lines in between.
// Samples of all points of a sweep alternate, and count as in sampling.h.
#include <CLI/CLI.hpp>
#include <filesystem>

#include "dev/bench/sampling.h"
#include "dev/bench/scaling_sweeps.h"
#include "dev/bench/train_tables.h"
#include "dev/bench/train_worker.h"
#include "llmc/base/files.h"
#include "llmc/train/flags.h"

using namespace llmc;
using nlohmann::json;

namespace {

struct Options {
    std::vector<std::string> sweeps;
    WorkerOptions worker;
    std::string worker_point;  // run as its process
    int64_t samples = 5;
    bool busy = false;
    std::string json_file;
};

std::string name_of_point(const ScalingSweep& sweep, const ScalingPoint& point) {
    return str(sweep.name, "=", point.value);
}

// What can be asked of this machine with so many threads.
struct Rates {
    Prober prober;
    std::map<int64_t, double> bandwidth;

    explicit Rates(int threads) : prober(threads) {
        Bench bench({.threads = prober.ctx.threads});
        bandwidth = measure_bandwidth(bench);
        for (int i = 0; i < 3; i++) prober.probe();
    }
};

struct Floor {
    double flops = 0, bytes = 0, seconds = 0;
};

Floor floor_of(const ScalingPoint& point, const Rates& rates) {
    TrainConfig train;
    train.micro_batch = point.batch, train.grad_accumulation = 1;
    Floor floor;
    for (const auto& [name, cost] : count_step(point.model, train)) {
        floor.flops += cost.flops, floor.bytes += double(cost.bytes);
        floor.seconds += op_bound(name, cost, rates.prober.best, rates.bandwidth).seconds;
    }
    return floor;
}

class Coordinator {
public:
    explicit Coordinator(const Options& options)
        : o(options), threads(o.busy ? 1 : Context({.threads = o.worker.threads}).threads) {}

    int run() {
        std::printf("# %s; ms: median, fastest and slowest of the samples that count; floor: see bench_scaling.cpp\n",
                    backend_description(rates_of(threads).prober.ctx).c_str());
        json file = json::array();
        bool complete = true;
        for (const ScalingSweep& sweep : scaling_sweeps())
            if (wanted(sweep.name)) file.push_back(measure(sweep, complete));
        for (const auto& [count, r] : rates)
            std::printf("# with %d threads: %.0f GFLOP/s, %.1f GB/s from memory\n", count, r->prober.best * 1e-9,
                        r->bandwidth.rbegin()->second * 1e-9);
        for (const auto& [result, machine] : profiled) print_profile(result, machine);
        if (!o.json_file.empty()) write_file_atomic(o.json_file, file.dump(1) + "\n");
        return complete ? 0 : 1;
    }

private:
    // On a busy machine two threads wait for each other, and no clock says for how long: no sweep of threads there.
    bool wanted(const std::string& sweep) const {
        if (o.sweeps.empty()) return !(o.busy && sweep == "threads");
        return std::find(o.sweeps.begin(), o.sweeps.end(), sweep) != o.sweeps.end();
    }
    Rates& rates_of(int count) {
        std::unique_ptr<Rates>& r = rates[count];
        if (!r) r = std::make_unique<Rates>(count);
        return *r;
    }
    int threads_of(const ScalingPoint& point) const { return point.threads ? point.threads : threads; }

    json measure(const ScalingSweep& sweep, bool& complete) {
        std::vector<std::unique_ptr<Worker>> workers;
        std::vector<Sampled> turns;
        const std::string self = std::filesystem::read_symlink("/proc/self/exe");
        for (const ScalingPoint& point : sweep.points) {
            Prober& prober = rates_of(threads_of(point)).prober;
            std::vector<std::string> words = {self, "--worker", name_of_point(sweep, point), "--threads",
                                              std::to_string(prober.ctx.threads)};
            if (o.worker.profile) words.push_back("--profile");
            workers.push_back(std::make_unique<Worker>(words[2], words));
            workers.back()->by_processor_time = o.busy && prober.ctx.threads == 1;
            turns.push_back({*workers.back(), prober});
        }
        sample_in_turn(turns, o.samples);
        std::printf("# %s: %s\n#%9s %9s %9s %9s %5s %5s %9s %8s %9s %10s\n", sweep.name.c_str(), sweep.text.c_str(),
                    "value", "ms", "fastest", "slowest", "count", "of", "GFLOP", "GB", "floor_ms", "time/floor");
        json points = json::array();
        for (size_t i = 0; i < workers.size(); i++) {
            workers[i]->end = workers[i]->ask("end");
            workers[i]->finish();
            const Result result = summarise(*workers[i], turns[i].prober.best);
            points.push_back(report(sweep.points[i], result));
            complete = complete && result.kept > 0;
        }
        std::printf("\n\n");
        std::fflush(stdout);
        return {{"sweep", sweep.name}, {"text", sweep.text}, {"points", points}};
    }

    json report(const ScalingPoint& point, const Result& r) {
        const Rates& rates = rates_of(threads_of(point));
        const Floor floor = floor_of(point, rates);
        if (r.kept > 0)
            std::printf(" %9lld %9.2f %9.2f %9.2f %5zu %5zu %9.2f %8.3f %9.2f %10.2f\n",
                        static_cast<long long>(point.value), r.median * 1e3, r.fastest * 1e3, r.slowest * 1e3, r.kept,
                        r.all, floor.flops * 1e-9, floor.bytes * 1e-9, floor.seconds * 1e3, r.median / floor.seconds);
        else
            std::printf("# %8lld %s\n", static_cast<long long>(point.value),
                        r.failed ? "did not run" : str("all ", r.all, " samples were disturbed").c_str());
        if (r.end.contains("profile")) profiled.push_back({r, {rates.prober.best, rates.bandwidth.rbegin()->second}});
        return {
            {"value", point.value}, {"threads", rates.prober.ctx.threads},
            {"seconds", r.median},  {"fastest", r.fastest},
            {"slowest", r.slowest}, {"samples", r.all},
            {"kept", r.kept},       {"flops", floor.flops},
            {"bytes", floor.bytes}, {"floor", floor.seconds},
            {"ready", r.ready},     {"end", r.end},
        };
    }

    const Options& o;
    const int threads;
    std::map<int, std::unique_ptr<Rates>> rates;  // by number of threads
    std::vector<std::pair<Result, Machine>> profiled;
};

int work(Options& o) {
    World world;
    for (const ScalingSweep& sweep : scaling_sweeps())
        for (const ScalingPoint& point : sweep.points)
            if (name_of_point(sweep, point) == o.worker_point) {
                o.worker.batch = point.batch;
                return train_worker(point.model, o.worker, world);
            }
    input_error("--worker ", o.worker_point, " is not a point of a sweep");
}

}  // namespace

int main(int argc, char** argv) {
    Options o;
    std::vector<std::string> names;
    for (const ScalingSweep& sweep : scaling_sweeps()) names.push_back(sweep.name);
    CLI::App app{"How the cost of a training step grows with each size."};
    app.add_option("--sweeps", o.sweeps, "which; default: all")->delimiter(',')->check(CLI::IsMember(names));
    app.add_option("--samples", o.samples, "timed steps of each point that must count")
        ->transform(whole_number(1, 1000))
        ->capture_default_str();
    app.add_option("--threads", o.worker.threads, "CPU threads; 0: all")->transform(whole_number(0, 4096));
    app.add_flag("--busy", o.busy, "for a machine that is never quiet: one thread, by its processor time");
    app.add_flag("--profile", o.worker.profile, "a table of op times for each point");
    app.add_option("--json", o.json_file, "also write the results here");
    app.add_option("--worker", o.worker_point, "run as the process of one point")->group("");
    return run_program(app, argc, argv, [&] { return o.worker_point.empty() ? Coordinator(o).run() : work(o); });
}
