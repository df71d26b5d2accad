// The least time a training step can take on a GPU, op by op, and (with --measure) the time it does take here.
//
//   roofline [--config FILE] [any model or training flag] [--measure] [--json FILE]
//
// FLOPs and bytes are not written down anywhere: a counting run of the real step adds them up (OpCost in
// llmc/ops/context.h). An op's floor is the larger of FLOPs / peak and bytes / bandwidth, with the datasheets' numbers.
// Bytes are those of inputs and outputs, once; what a cache keeps from one op to the next can beat such a floor.
//
// The prediction of a step assumes what good libraries reach, not what anyone has measured for this program:
// 75 % of the peak in matrix products and attention, 85 % of the bandwidth everywhere else (Shares, planner/cluster.h).
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "dev/bench/count_step.h"
#include "llmc/base/files.h"
#include "llmc/base/rng.h"
#include "llmc/measure/profile.h"
#include "llmc/planner/cluster.h"
#include "llmc/planner/plan.h"
#include "llmc/train/flags.h"

using namespace llmc;
using nlohmann::json;

namespace {

constexpr const char* gpu_names[] = {"A100", "H100"};

struct Measured {
    std::map<std::string, OpCost> costs;  // of one step
    double step_seconds = 0;              // without waiting after every op
};

// Some steps on the linked backend, on random tokens: as they are, then with every op timed.
Measured measure(const ModelConfig& model_config, const TrainConfig& train, int threads, int64_t steps) {
    Measured result;
    const Plan plan = make_plan(model_config, train, true, threads);
    for (bool profile : {false, true}) {
        Session session(model_config, train, World::alone(), {.threads = threads, .profile = profile});
        Context& ctx = session.ctx;
        check_memory(plan, ctx);
        session.allocate(true, plan.activation_bytes, plan.workspace_bytes, !profile && backend_has_graphs());
        session.initialize();
        Step& step = *session.step;
        std::vector<int32_t> tokens(size_t(train.micro_batch * model_config.context));
        RandomStream random(1, "bench tokens");
        for (size_t i = 0; i < tokens.size(); i++)
            tokens[i] = int32_t(random.bits(i) % uint64_t(model_config.vocab_size));
        auto run = [&](int64_t count) {
            for (int64_t i = 0; i < count; i++) {
                const Range range("step", ctx);
                step.begin(1e-4);
                for (int64_t k = 0; k < train.grad_accumulation; k++)
                    step.micro_batch(tokens.data(), tokens.data(), k, false);
                step.update();
            }
            synchronize(ctx);
        };
        run(3);  // warm up: algorithms are chosen, graphs recorded
        if (profile) ctx.profile->clear();
        const auto start = std::chrono::steady_clock::now();
        run(profile ? 1 : steps);
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (profile)
            result.costs = profile_of(*ctx.profile, "step").ops;
        else
            result.step_seconds = seconds / double(steps);
    }
    return result;
}

struct Options {
    ModelConfig model;
    TrainConfig train;
    bool measure = false;
    int64_t steps = 10;
    int threads = 0;
    std::string json_file;
};

int run(const Options& o) {
    const ModelConfig config = resolved(o.model);
    const DType act = Precision::of(o.train.precision).act;
    const auto costs = count_step(config, o.train);
    const Measured measured = o.measure ? measure(config, o.train, o.threads, o.steps) : Measured{};
    const double tokens = double(o.train.micro_batch * o.train.grad_accumulation * config.context);
    std::printf("%s, %s, %.0f tokens a step\n", config.pattern.c_str(), name_of(o.train.precision), tokens);
    std::printf("%-24s %6s %12s %12s %9s %9s", "op", "calls", "kFLOP/token", "kB/token", "A100 ms", "H100 ms");
    std::printf(o.measure ? " %12s\n" : "\n", "here ms");
    json ops = json::array();
    double flops = 0, floors[2] = {}, predicted[2] = {};
    const Gpu gpus[2] = {gpu_by_name("a100"), gpu_by_name("h100")};
    for (const auto& [name, cost] : costs) {
        if (cost.flops == 0 && cost.bytes == 0) continue;
        const Shares all{1, 1, 1};
        const OpTime on[2] = {op_time(name, cost, act, gpus[0], all), op_time(name, cost, act, gpus[1], all)};
        std::printf("%-24s %6lld %12.2f %12.2f %8.3f%c %8.3f%c", name.c_str(), static_cast<long long>(cost.calls),
                    cost.flops / tokens * 1e-3, double(cost.bytes) / tokens * 1e-3, on[0].seconds() * 1e3,
                    on[0].compute > on[0].memory ? 'c' : 'm', on[1].seconds() * 1e3,
                    on[1].compute > on[1].memory ? 'c' : 'm');
        const auto here = measured.costs.find(name);
        const double seconds = here == measured.costs.end() ? 0 : here->second.seconds;
        if (o.measure) std::printf(" %12.3f", seconds * 1e3);
        std::printf("\n");
        ops.push_back({{"op", name},
                       {"calls", cost.calls},
                       {"flops", cost.flops},
                       {"bytes", cost.bytes},
                       {"floor_a100", on[0].seconds()},
                       {"floor_h100", on[1].seconds()},
                       {"seconds", seconds}});
        flops += cost.flops;
        for (int i : {0, 1})
            floors[i] += on[i].seconds(), predicted[i] += op_time(name, cost, act, gpus[i], {}).seconds();
    }
    std::printf("(c: bound by arithmetic, m: by memory)\n");
    json file = {{"pattern", config.pattern},
                 {"precision", name_of(o.train.precision)},
                 {"tokens", tokens},
                 {"flops", flops},
                 {"ops", ops}};
    for (int i : {0, 1}) {
        const double peak = gpus[i].peak(act), mfu = flops / predicted[i] / peak;
        std::printf("%s: floor %.2f ms a step; predicted %.2f ms, %.0f tokens/s, MFU %.0f %% of %.0f TFLOP/s\n",
                    gpu_names[i], floors[i] * 1e3, predicted[i] * 1e3, tokens / predicted[i], 100 * mfu, peak * 1e-12);
        file[str("predicted_", gpu_names[i])] = {{"seconds", predicted[i]}, {"mfu", mfu}};
    }
    if (o.measure) {
        Context ctx({.threads = o.threads});
        const Peak peak = peak_flops(act, ctx);
        const double rate = flops / measured.step_seconds;
        std::printf("here: %.2f ms a step, %.0f tokens/s, %.1f TFLOP/s", measured.step_seconds * 1e3,
                    tokens / measured.step_seconds, rate * 1e-12);
        if (peak.flops > 0) std::printf(", MFU %.1f %% of %.2f", 100 * rate / peak.flops, peak.flops * 1e-12);
        std::printf(" (peak: %s)\n", peak.how.c_str());
        file["measured"] = {{"device", backend_description(ctx)},
                            {"seconds", measured.step_seconds},
                            {"tokens_per_second", tokens / measured.step_seconds},
                            {"flops_per_second", rate},
                            {"peak", peak.flops},
                            {"peak_source", peak.how},
                            {"mfu", peak.flops > 0 ? json(rate / peak.flops) : json()}};
    }
    if (!o.json_file.empty()) write_file_atomic(o.json_file, file.dump(1) + "\n");
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    Options options;
    options.model.vocab_size = 50257, options.train.precision = PrecisionMode::bf16_mixed;
    CLI::App app{"The least time of a training step on a GPU, op by op; --measure: and its time here."};
    add_fields(app, options.model, options.train);
    app.add_flag("--measure", options.measure, "also run the step on this build's device and time every op");
    app.add_option("--measured-steps", options.steps, "steps to time")->transform(whole_number(1));
    app.add_option("--threads", options.threads, "CPU threads; 0: all")->transform(whole_number(0, 4096));
    app.add_option("--json", options.json_file, "also write the numbers to this file");
    return run_program(app, argc, argv, [&] { return run(options); });
}
