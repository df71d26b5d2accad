// Speed and memory of whole training steps: tokens/s, GFLOP/s, share of the measured peak, planned and actual memory.
//
//   bench_train [--models tiny_dense,tiny_mot,medium_dense,medium_mot] [--samples N] [--batch B] [--threads N]
//               [--profile] [--bound] [--pytorch PYTHON] [--json FILE] [--ranks N --shards none,parameters]
//
// With --ranks, each model is also trained by N processes under mpirun, bound to a core each, which share batch and
// threads: once for each way of dividing it.
//
// With --pytorch, PYTHON (an interpreter that has torch) trains each model too (pytorch_trainer.py), from the same
// weights and on the same batch; ratios are printed if its first losses are ours. --bound: see bound.h.
//
// Sparse experts: medium_switch, medium_dropless, medium_expert_choice, and tiny ones. Name models of one size that fit
// into memory together.
//
// Each model lives in a process of its own (so that its peak memory is its own), waits until told to run a sample, and
// answers with the time. Samples of the models of one size, or of one model and PyTorch, alternate: A B A B, unless the
// memory is for one of them only. Which samples count: sampling.h.
#include <CLI/CLI.hpp>
#include <filesystem>

#include "dev/bench/bench_models.h"
#include "dev/bench/sampling.h"
#include "dev/bench/train_tables.h"
#include "dev/bench/train_worker.h"
#include "llmc/base/files.h"
#include "llmc/train/flags.h"

using namespace llmc;
using nlohmann::json;

namespace {

struct Options {
    std::vector<std::string> models = {"tiny_dense", "tiny_mot", "medium_dense", "medium_mot"};
    WorkerOptions worker;
    std::string worker_model;  // run as its process
    int64_t samples = 9;
    bool bound = false;
    std::string pytorch, json_file;
    std::vector<std::string> modes = {"eager", "compile"};
    int ranks = 1;
    std::vector<std::string> shards = {"none", "parameters"};
};

// Models, and ways to run PyTorch, that are measured in turn; or one after the other, each alone in memory.
struct Sitting {
    std::vector<std::string> models, modes;
    bool alone = false;
};

// The process of a model.
struct Recipe {
    std::string name, model, mode;
    std::vector<std::string> words;
    int ranks = 1;
};

// All models of one size together; or, with PyTorch, one model with all modes or, where the memory is short, with one
// or alone. That PyTorch needs up to 1.7 times our memory is an estimate; of models that fill the memory, most is
// parameters: 1.25 times (measured: 1.16, 1.18).
std::vector<Sitting> sittings_of(const Options& o, Context& ctx) {
    std::vector<Sitting> sittings;
    for (const std::string& model : o.models) {
        const std::string size = model.substr(0, model.find('_') + 1);
        if (o.pytorch.empty()) {
            if (sittings.empty() || !sittings.back().models.front().starts_with(size)) sittings.emplace_back();
            sittings.back().models.push_back(model);
            continue;
        }
        TrainConfig train;
        train.micro_batch = o.worker.batch;
        const double ours = double(make_plan(bench_model(model), train, true, o.worker.threads).total());
        const double available = double(device_memory_available(ctx));
        if (ours * (1 + 1.7 * double(o.modes.size())) <= available)
            sittings.push_back({{model}, o.modes});
        else if (ours * (1 + 1.7) <= available)
            for (const std::string& mode : o.modes) sittings.push_back({{model}, {mode}});
        else {
            const bool alone = 1.25 * ours <= available;
            if (alone) sittings.push_back({{model}, o.modes, true});
            std::fprintf(stderr, "%s %s: with PyTorch beside it, it needs about %s and %s are free\n", model.c_str(),
                         alone ? "and PyTorch take turns in memory" : "is left out", bytes_text(2.7 * ours).c_str(),
                         bytes_text(available).c_str());
        }
    }
    return sittings;
}

class Coordinator {
public:
    explicit Coordinator(const Options& options) : o(options), prober(options.worker.threads), ctx(prober.ctx) {
        std::printf("%s, batch %lld\n", backend_description(ctx).c_str(), static_cast<long long>(o.worker.batch));
        if (o.ranks > 1)
            std::printf("one process of %d threads, against %d bound to a core each with %d\n", ctx.threads, o.ranks,
                        std::max(1, ctx.threads / o.ranks));
    }

    int run() {
        for (const Sitting& sitting : sittings_of(o, ctx)) measure(sitting);
        std::vector<Result> results;
        json file = json::array();
        for (const auto& w : all) {
            results.push_back(summarise(*w, prober.best));
            file.push_back(to_json(results.back(), prober.best));
        }
        print_table(results, prober.best);
        if (o.bound || !o.pytorch.empty()) print_comparison(results);
        all.clear();  // they leave room to measure the bandwidth
        const Machine machine{prober.best, o.worker.profile ? peak_bandwidth(ctx).bytes : 0};
        for (const Result& r : results)
            if (r.end.contains("profile")) print_profile(r, machine);
        if (!o.json_file.empty()) write_file_atomic(o.json_file, file.dump(2) + "\n");
        const bool complete = std::none_of(results.begin(), results.end(), [](const Result& r) { return r.failed; });
        return complete ? 0 : 1;  // what the memory is too small for is no failure
    }

private:
    void start(Recipe r) {
        r.words.insert(r.words.end(),
                       {"--worker", r.model, "--threads", std::to_string(std::max(1, ctx.threads / r.ranks))});
        all.push_back(std::make_unique<Worker>(r.name, r.words));
        all.back()->model = r.model, all.back()->mode = r.mode;
        if (!all.back()->failed && all.back()->ready.contains("flops"))
            step_flops = all.back()->ready.at("flops");
        else
            all.back()->ready["flops"] = step_flops;  // PyTorch's row follows ours and is charged with the same work
    }

    // Ours writes the weights that PyTorch begins with.
    std::vector<Recipe> recipes_of(const std::string& model, const std::vector<std::string>& modes,
                                   const std::string& weights) const {
        const std::string self = std::filesystem::read_symlink("/proc/self/exe");
        const std::vector<std::string> batch = {"--batch", std::to_string(o.worker.batch)};
        std::vector<std::string> words = {self, batch[0], batch[1]};
        if (o.worker.profile) words.push_back("--profile");
        if (!o.pytorch.empty()) words.insert(words.end(), {"--weights", weights});
        std::vector<Recipe> recipes = {{model, model, "", words}};
        for (const std::string& shard : o.ranks > 1 ? o.shards : std::vector<std::string>{})
            recipes.push_back({str(model, ", ", shard), model, "",
                               {"mpirun", "--allow-run-as-root", "--bind-to", "core", "--map-by", "core", "-np",
                                std::to_string(o.ranks), self, "--shard", shard, batch[0], batch[1]},
                               o.ranks});
        for (const std::string& mode : o.pytorch.empty() ? std::vector<std::string>{} : modes)
            recipes.push_back({str("  PyTorch ", mode), model, mode,
                               {"env", "MALLOC_MMAP_MAX_=0", "MALLOC_TRIM_THRESHOLD_=100000000000", o.pytorch,
                                "dev/bench/pytorch_trainer.py", "--weights", weights, "--mode", mode, "--heads",
                                std::to_string(bench_model(model).heads)}});
        return recipes;
    }

    void measure(const Sitting& sitting) {
        const std::string weights = str("build/bench_weights.", ::getpid(), ".safetensors");
        std::vector<Recipe> together;
        for (const std::string& model : sitting.models)
            for (const Recipe& recipe : recipes_of(model, sitting.modes, weights)) {
                together.push_back(recipe);
                if (!sitting.alone) continue;
                sample(std::exchange(together, {}));
                if (all.back()->failed) break;
            }
        if (!sitting.alone) sample(together);
        std::filesystem::remove(weights);
    }

    void sample(const std::vector<Recipe>& together) {
        const size_t first = all.size();
        for (const Recipe& recipe : together) start(recipe);
        std::vector<Sampled> turns;
        for (size_t w = first; w < all.size(); w++) turns.push_back({*all[w], prober});
        sample_in_turn(turns, o.samples);
        for (size_t w = first; w < all.size(); w++) {
            all[w]->end = all[w]->ask("end");
            if (o.bound && o.ranks == 1 && all[w]->mode.empty()) find_bound(*all[w]);
            all[w]->finish();
        }
    }

    // Until nothing disturbs it, or three times; disturbed rates are low, so the least bound is the best known.
    void find_bound(Worker& w) {
        for (int i = 0; i < 3 && !w.failed; i++) {
            const double before = prober.probe(), waited = w.waited(), start = seconds_now();
            const json bound = w.ask("bound");
            const double seconds = bound.value("seconds", 0.0);
            if (seconds > 0 && (w.bound.is_null() || seconds < w.bound.at("seconds"))) w.bound = bound;
            const bool undisturbed = w.waited() - waited <= 0.05 * (seconds_now() - start);
            if (undisturbed && std::min(before, prober.probe()) >= 0.9 * prober.best) break;
        }
    }

    const Options& o;
    Prober prober;
    Context& ctx;
    double step_flops = 0;
    std::vector<std::unique_ptr<Worker>> all;
};

}  // namespace

int main(int argc, char** argv) {
    Options o;
    CLI::App app{"Speed and memory of training steps."};
    app.add_option("--models", o.models, "which")->delimiter(',')->check(CLI::IsMember(all_bench_models()));
    app.add_option("--samples", o.samples, "timed steps of each that must count")
        ->transform(whole_number(1, 1000))
        ->capture_default_str();
    app.add_option("--batch", o.worker.batch, "sequences in a step; MoT needs a multiple of 32")
        ->transform(whole_number(1, 4096))
        ->capture_default_str();
    app.add_option("--threads", o.worker.threads, "CPU threads; 0: all")->transform(whole_number(0, 4096));
    app.add_flag("--profile", o.worker.profile, "a table of op times for each model");
    app.add_flag("--bound", o.bound, "the least time a step needs, from rates of its products and of memory");
    app.add_option("--pytorch", o.pytorch, "a Python interpreter with torch, which trains each model in turn with us");
    app.add_option("--modes", o.modes, "of PyTorch: eager, compile")
        ->delimiter(',')
        ->check(CLI::IsMember({"eager", "compile"}));
    app.add_option("--json", o.json_file, "also write the results here");
    app.add_option("--ranks", o.ranks, "also measure each model shared by so many processes")
        ->transform(whole_number(1, 1024));
    app.add_option("--shards", o.shards, "divided like this: none, optimizer, gradients, parameters")->delimiter(',');
    app.add_option("--worker", o.worker_model, "run as the process of one model")->group("");
    add_word(app, "--shard", o.worker.shard, "of that process")->group("");
    app.add_option("--weights", o.worker.weights, "where that process writes its first weights and its batch")
        ->group("");
    return run_program(app, argc, argv, [&] {
        if (o.worker_model.empty()) return Coordinator(o).run();
        World world;
        return train_worker(bench_model(o.worker_model), o.worker, world);
    });
}
