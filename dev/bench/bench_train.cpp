// Speed and memory of whole training steps: tokens/s, GFLOP/s, share of the measured peak, planned and actual memory.
//
//   bench_train [--models tiny_dense,tiny_mot,medium_dense,medium_mot] [--samples N] [--batch B] [--threads N]
//               [--profile] [--pytorch PYTHON] [--json FILE] [--ranks N --shards none,parameters]
//
// With --ranks, each model is also trained by N processes under mpirun, bound to a core each, which share batch and
// threads: once for each way of dividing it.
//
// Sparse experts: medium_switch, medium_dropless, medium_expert_choice, and tiny ones. Name models of one size that fit
// into memory together.
//
// Each model lives in a process of its own (so that its peak memory is its own), waits until told to run a sample, and
// answers with the time. Samples of the models of one size alternate, A B A B; with --pytorch, PYTHON (an interpreter
// that has torch) runs dev/bench/pytorch_eager.py as the second process beside each model.
//
// Two virtual CPUs may share one core for a while, which nothing but speed betrays. So a short loop of fused
// multiply-adds is timed before and after every sample, and a sample counts only if both reach 90 % of the best such
// probe of the whole run. Sampling goes on until enough count, or four times as many have been taken.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "llmc/base/rng.h"
#include "llmc/ops/ops.h"
#include "llmc/train/plan.h"
#include "llmc/train/profile.h"
#include "llmc/train/step.h"

using namespace llmc;
using nlohmann::json;

namespace {

struct Options {
    std::vector<std::string> models = {"tiny_dense", "tiny_mot", "medium_dense", "medium_mot"};
    int64_t samples = 9, batch = 32;
    int threads = 0;
    bool profile = false;
    std::string worker, pytorch, json_file, shard = "none";
    int ranks = 1;
    std::vector<std::string> shards = {"none", "parameters"};
};

const std::vector<std::string> kinds = {"dense", "mot", "switch", "dropless", "expert_choice"};

std::vector<std::string> all_models() {
    std::vector<std::string> names;
    for (const char* size : {"tiny_", "medium_"})
        for (const std::string& kind : kinds) names.push_back(size + kind);
    return names;
}

// Tied head, final norm, no biases; tanh-GELU in dense feed-forwards, ReLU in experts. Experts are in the last half of
// the layers, 32 of a dense layer's size; sparse ones get one token in 32 each, all the same number.
ModelConfig model_config(const std::string& name) {
    ModelConfig c;
    const bool tiny = name.starts_with("tiny");
    c.d_model = tiny ? 128 : 512, c.heads = tiny ? 4 : 8, c.d_ff = tiny ? 512 : 2048;
    c.vocab_size = tiny ? 4096 : 50257, c.context = tiny ? 128 : 256;
    c.tied_head = c.final_norm = true, c.norm_bias = c.ffn_bias = c.attention_bias = false, c.ffn_activation = "gelu";
    const int64_t layers = tiny ? 4 : 8;
    const std::string kind = name.substr(name.find('_') + 1);
    const std::string block = kind == "dense"           ? "ffn"
                              : kind == "mot"           ? "mot"
                              : kind == "expert_choice" ? "moe_expert_choice"
                                                        : "moe_token_choice";
    c.pattern = str(layers / 2, "x(attention ffn) ", layers / 2, "x(attention ", block, ")");
    c.balanced_routing = block == "moe_token_choice", c.capacity_factor = 1.25, c.dropless = kind == "dropless";
    return resolved(c);
}

double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// ------------------------------------------------------------------------------------------------- one model's process

int64_t peak_resident_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
    return 0;
}

// Rank 0 hears what the coordinator wants next and tells the others. These sleep until then: who waits in MPI keeps a
// core busy, and it is another worker's turn.
class Turn {
public:
    explicit Turn(World& w) : world(w) {
        sigemptyset(&wake);
        sigaddset(&wake, SIGUSR1);
        pthread_sigmask(SIG_BLOCK, &wake, nullptr);
        for (const std::string& text : world.all_gather(std::to_string(::getpid()))) ids.push_back(std::stoi(text));
    }
    bool asked_for_a_sample() {
        std::string line;
        char sample = world.rank == 0 && std::getline(std::cin, line) && line == "sample";
        int signal;
        if (world.rank > 0) sigwait(&wake, &signal);
        else
            for (pid_t id : ids)
                if (id != ::getpid()) ::kill(id, SIGUSR1);
        world.broadcast(&sample, 1);
        return sample;
    }

private:
    World& world;
    sigset_t wake;
    std::vector<pid_t> ids;
};

// Answers on standard output, one JSON object per line read: "sample" -> seconds of one training step; "end" -> memory,
// with --profile also the profile.
int work(const Options& o, World& world) {
    if (world.rank > 0 && !std::freopen("/dev/null", "w", stdout)) run_error("/dev/null cannot be opened");
    const ModelConfig config = model_config(o.worker);
    TrainConfig train;
    if (o.batch % world.size) input_error("--batch ", o.batch, " cannot be dealt to ", world.size, " processes");
    train.micro_batch = o.batch / world.size, train.grad_accumulation = world.size;
    train.shard = o.shard;
    const Plan plan = make_plan(config, train, true, o.threads, {}, {}, world.size);
    const Sharding sharding = sharding_of(config, train, world.size, world.rank);
    Context ctx({.threads = o.threads, .profile = o.profile});
    Mesh mesh(world, ctx, sharding);
    check_memory(plan, ctx);
    reserve_workspace(plan.workspace_bytes, ctx);
    Arena arena("activations", ctx);
    arena.allocate(plan.activation_bytes);
    Model model(config, Precision::from_name("fp32"), true, ctx, sharding, &mesh);
    model.allocate(true);
    model.initialize(1);
    SharedUnits units(model, mesh, ctx);
    units.allocate(true);
    UnitHooks hooks;
    Step step(model, train, arena, hooks, ctx, false, world.size > 1 ? &units : nullptr);

    const int64_t N = train.micro_batch * config.context;
    std::vector<int32_t> tokens(static_cast<size_t>(N));
    RandomStream random(1, "bench tokens");
    for (int64_t i = 0; i < N; i++) tokens[size_t(i)] = int32_t(random.bits(uint64_t(i)) % uint64_t(config.vocab_size));
    auto one_step = [&] {
        const Range range("step", ctx);
        step.begin(1e-4);
        step.micro_batch(tokens.data(), tokens.data(), world.rank, false);
        step.update();
        synchronize(ctx);
        world.barrier();
    };
    Turn turn(world);
    one_step();  // pages are touched and primitives made
    if (ctx.profile) ctx.profile->clear();
    std::cout << json{{"tokens", N * world.size},
                      {"parameters", model.table.count()},
                      {"flops", plan.step_flops},
                      {"planned_bytes", plan.total()},
                      {"arena_bytes", arena.bytes() + model.buffers.bytes() + units.bytes() + plan.workspace_bytes}}
              << std::endl;
    while (turn.asked_for_a_sample()) {
        const double start = seconds_now();
        one_step();
        std::cout << json{{"seconds", seconds_now() - start}} << std::endl;
    }
    json end = {{"resident_bytes", peak_resident_bytes()}};
    if (ctx.profile) end["profile"] = to_json(profile_of(*ctx.profile, "step"));
    std::cout << end << std::endl;
    return 0;
}

// A process that speaks the protocol of work().
struct Worker {
    std::string name;
    pid_t id = -1;
    FILE *to = nullptr, *from = nullptr;
    json ready, end;
    struct Sample {
        double seconds, probe;
    };
    std::vector<Sample> samples;
    bool failed = false;

    Worker(const std::string& worker_name, std::vector<std::string> words) : name(worker_name) {
        int in[2], out[2];
        if (::pipe2(in, O_CLOEXEC) || ::pipe2(out, O_CLOEXEC)) run_error("cannot make a pipe");
        id = ::fork();
        if (id == 0) {
            ::dup2(in[0], 0);
            ::dup2(out[1], 1);
            std::vector<char*> arguments;
            for (std::string& word : words) arguments.push_back(word.data());
            arguments.push_back(nullptr);
            ::execvp(arguments[0], arguments.data());
            ::_exit(127);
        }
        ::close(in[0]);
        ::close(out[1]);
        to = ::fdopen(in[1], "w"), from = ::fdopen(out[0], "r");
        ready = read();
    }
    ~Worker() {
        std::fclose(to);
        std::fclose(from);
        ::waitpid(id, nullptr, 0);
    }
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    // The next line; a process that has died gives none, and takes no further part.
    json read() {
        std::string line;
        for (int c; (c = std::fgetc(from)) != EOF && c != '\n';) line.push_back(char(c));
        json answer = json::parse(line, nullptr, false);
        if (answer.is_object()) return answer;
        if (!failed) std::fprintf(stderr, "%s: the process ended early\n", name.c_str());
        failed = true;
        return json::object();
    }
    // Seconds of the samples that count, sorted.
    std::vector<double> good_samples(double best_probe) const {
        std::vector<double> seconds;
        for (const Sample& s : samples)
            if (s.probe >= 0.9 * best_probe) seconds.push_back(s.seconds);
        std::sort(seconds.begin(), seconds.end());
        return seconds;
    }
    json ask(const char* word) {
        if (failed) return json::object();
        std::fprintf(to, "%s\n", word);
        std::fflush(to);
        return read();
    }
};

// ----------------------------------------------------------------------------------------------------------- the table

struct Result {
    std::string name;
    double tokens_per_second = 0, low = 0, high = 0, flops_per_second = 0;
    size_t kept = 0, all = 0;
    json ready, end;
};

// The median of the samples that count.
Result summarise(const Worker& w, double best_probe, int64_t flops) {
    Result r{w.name, 0, 0, 0, 0, 0, w.samples.size(), w.ready, w.end};
    const std::vector<double> seconds = w.good_samples(best_probe);
    r.kept = seconds.size();
    if (seconds.empty()) return r;
    const double tokens = w.ready.at("tokens"), median = seconds[seconds.size() / 2];
    r.tokens_per_second = tokens / median, r.low = tokens / seconds.back(), r.high = tokens / seconds.front();
    r.flops_per_second = double(flops) / median;
    return r;
}

void print_profile(const Result& r, const Machine& machine) {
    Profile profile = profile_from_json(r.end.at("profile"));
    profile.machine = machine;
    std::printf("\n%s, all samples: %s", r.name.c_str(), profile_table(profile).c_str());
}

void print_table(const std::vector<Result>& results, double peak) {
    auto gb = [](const json& j, const char* key) { return j.value(key, 0.0) * 1e-9; };
    std::printf("\n%-24s %9s %17s %7s %8s %6s %9s %9s %9s\n", "", "tokens/s", "(slow - fast)", "samples", "GFLOP/s",
                "peak", "plan GB", "arena GB", "VmHWM GB");
    for (const Result& r : results)
        std::printf("%-24s %9.0f %8.0f -%7.0f %3zu of%2zu %8.1f %5.1f%% %9.3f %9.3f %9.3f\n", r.name.c_str(),
                    r.tokens_per_second, r.low, r.high, r.kept, r.all, r.flops_per_second * 1e-9,
                    100 * r.flops_per_second / peak, gb(r.ready, "planned_bytes"), gb(r.ready, "arena_bytes"),
                    gb(r.end, "resident_bytes"));
    std::printf("peak measured in this run: %.0f GFLOP/s\n", peak * 1e-9);
}

json to_json(const Result& r, double peak) {
    return {{"name", r.name},
            {"tokens_per_second", r.tokens_per_second},
            {"slowest", r.low},
            {"fastest", r.high},
            {"samples", r.all},
            {"kept", r.kept},
            {"flops_per_second", r.flops_per_second},
            {"share_of_peak", r.flops_per_second / peak},
            {"ready", r.ready},
            {"end", r.end}};
}

// Models that are measured together: all of one size, or (with PyTorch, which needs the memory) one.
std::vector<std::vector<std::string>> groups_of(const Options& o) {
    std::vector<std::vector<std::string>> groups;
    for (const std::string& model : o.models) {
        const std::string size = model.substr(0, model.find('_'));
        if (groups.empty() || !o.pytorch.empty() || !groups.back().front().starts_with(size)) groups.emplace_back();
        groups.back().push_back(model);
    }
    return groups;
}

int coordinate(const Options& o) {
    Context ctx({.threads = o.threads});
    const std::string self = std::filesystem::read_symlink("/proc/self/exe");
    std::printf("%s, batch %lld\n", backend_description(ctx).c_str(), static_cast<long long>(o.batch));
    if (o.ranks > 1)
        std::printf("one process of %d threads, against %d bound to a core each with %d\n", ctx.threads, o.ranks,
                    std::max(1, ctx.threads / o.ranks));
    double best_probe = 0;
    std::vector<std::unique_ptr<Worker>> all;
    auto probe = [&] {
        const double flops = peak_flops(DType::f32, ctx).flops;
        best_probe = std::max(best_probe, flops);
        return flops;
    };
    for (const auto& group : groups_of(o)) {
        const size_t first = all.size();
        for (const std::string& model : group) {
            auto start = [&](const std::string& name, std::vector<std::string> words, int ranks = 1) {
                words.insert(words.end(), {"--worker", model, "--batch", std::to_string(o.batch), "--threads",
                                           std::to_string(std::max(1, ctx.threads / ranks))});
                if (name == model && o.profile) words.push_back("--profile");
                all.push_back(std::make_unique<Worker>(name, words));
            };
            start(model, {self});
            for (const std::string& shard : o.ranks > 1 ? o.shards : std::vector<std::string>{})
                start(str(model, ", ", shard),
                      {"mpirun", "--allow-run-as-root", "--bind-to", "core", "--map-by", "core", "-np",
                       std::to_string(o.ranks), self, "--shard", shard},
                      o.ranks);
            if (!o.pytorch.empty()) start(model + " PyTorch", {o.pytorch, "dev/bench/pytorch_eager.py"});
        }
        auto enough = [&] {
            return std::all_of(all.begin() + int64_t(first), all.end(), [&](const auto& w) {
                return w->failed || int64_t(w->good_samples(best_probe).size()) >= o.samples;
            });
        };
        for (int64_t i = 0; i < 4 * o.samples && !enough(); i++) {
            for (size_t w = first; w < all.size(); w++) {
                const double before = probe();
                const json answer = all[w]->ask("sample");
                if (!all[w]->failed) all[w]->samples.push_back({answer.at("seconds"), std::min(before, probe())});
            }
            std::fprintf(stderr, "."), std::fflush(stderr);
        }
        for (size_t w = first; w < all.size(); w++) all[w]->end = all[w]->ask("end");
    }
    std::vector<Result> results;
    json file = json::array();
    int64_t flops = 0;  // PyTorch's row follows ours and is charged with the same work
    for (const auto& w : all) {
        if (w->failed) continue;
        flops = w->ready.value("flops", flops);
        results.push_back(summarise(*w, best_probe, flops));
        file.push_back(to_json(results.back(), best_probe));
    }
    print_table(results, best_probe);
    const bool complete = results.size() == all.size();
    all.clear();  // they leave room to measure the bandwidth
    const Machine machine{best_probe, o.profile ? peak_bandwidth(ctx).bytes : 0};
    for (const Result& r : results)
        if (r.end.contains("profile")) print_profile(r, machine);
    if (!o.json_file.empty()) std::ofstream(o.json_file) << file.dump(2) << "\n";
    return complete ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    Options o;
    CLI::App app{"Speed and memory of training steps."};
    app.add_option("--models", o.models, "which")->delimiter(',')->check(CLI::IsMember(all_models()));
    app.add_option("--samples", o.samples, "timed steps of each that must count")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    app.add_option("--batch", o.batch, "sequences in a step; MoT needs a multiple of 32")
        ->check(CLI::Range(1, 4096))
        ->capture_default_str();
    app.add_option("--threads", o.threads, "CPU threads; 0: all")->check(CLI::Range(0, 4096));
    app.add_flag("--profile", o.profile, "a table of op times for each model");
    app.add_option("--pytorch", o.pytorch,
                   "a Python interpreter with torch: measures dev/bench/pytorch_eager.py in turn");
    app.add_option("--json", o.json_file, "also write the results here");
    app.add_option("--ranks", o.ranks, "also measure each model shared by so many processes")
        ->check(CLI::Range(1, 1024));
    app.add_option("--shards", o.shards, "divided like this: none, optimizer, gradients, parameters")->delimiter(',');
    app.add_option("--worker", o.worker, "run as the process of one model")->group("");
    app.add_option("--shard", o.shard, "of that process")->group("");
    try {
        app.parse(argc, argv);
        if (o.worker.empty()) return coordinate(o);
        World world;
        return work(o, world);
    } catch (const CLI::ParseError& e) {
        return app.exit(e) == 0 ? 0 : 2;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "error: %s\n", e.what());
        return dynamic_cast<const InputError*>(&e) ? 2 : 1;
    }
}
