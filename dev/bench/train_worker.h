// The process of one model, on our side: trains a step whenever it is told to.
#pragma once
#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <iostream>

#include "dev/bench/bound.h"
#include "dev/bench/count_step.h"
#include "llmc/base/rng.h"
#include "llmc/base/safetensors.h"
#include "llmc/measure/profile.h"
#include "llmc/planner/plan.h"

namespace llmc {

struct WorkerOptions {
    std::string weights;
    ShardMode shard = ShardMode::none;
    int64_t batch = 32;
    int threads = 0;
    bool profile = false;
};

// Trained before the first sample, while pages are touched and primitives made. PyTorch's losses must be the same, and
// to show that they are, it takes steps that are long.
inline constexpr int checked_steps = 4;
inline constexpr double bench_learning_rate = 1e-3;

inline int64_t peak_resident_bytes() {
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
        if (world.rank > 0)
            sigwait(&wake, &signal);
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

// The batch that is trained on again and again: random tokens, each to be followed by the next.
struct BenchBatch {
    std::vector<int32_t> tokens, targets;
    BenchBatch(int64_t count, int64_t vocabulary) {
        RandomStream random(1, "bench tokens");
        for (int64_t i = 0; i <= count; i++)
            targets.push_back(int32_t(random.bits(uint64_t(i)) % uint64_t(vocabulary)));
        tokens.assign(targets.begin(), targets.end() - 1);
        targets.erase(targets.begin());
    }
};

// Parameters by their names, tokens and targets. One tensor after the other: the peak memory is hardly more for it.
inline void write_start(const std::string& path, const Model& model, const BenchBatch& batch, int64_t rows,
                        Context& ctx) {
    const std::vector<NamedTensor> tensors = named_tensors(model.table, model.params, "");
    std::vector<SafetensorsEntry> entries;
    for (const NamedTensor& t : tensors) entries.push_back({t.name, t.tensor.dtype, t.tensor.shape});
    for (const char* name : {"tokens", "targets"})
        entries.push_back({name, DType::i32, {rows, int64_t(batch.tokens.size()) / rows}});
    const SafetensorsLayout layout = lay_out_safetensors(entries, {});
    std::ofstream file(path, std::ios::binary);
    file << layout.header;
    std::vector<char> buffer;
    for (size_t i = 0; i < entries.size(); i++) {
        buffer.resize(size_t(entries[i].bytes()));
        if (i < tensors.size())
            download(buffer.data(), tensors[i].tensor, ctx);
        else
            std::memcpy(buffer.data(), (i == tensors.size() ? batch.tokens : batch.targets).data(), buffer.size());
        file.seekp(layout.tensors[i].offset);
        file.write(buffer.data(), std::streamsize(buffer.size()));
    }
    file.close();
    if (!file) run_error(path, " could not be written");
}

// Answers on standard output, one JSON object per line read: "sample" -> seconds of one training step; then "end" ->
// memory, and with --profile the profile; then "bound" -> see bound.h (one process only).
inline int train_worker(const ModelConfig& config, const WorkerOptions& o, World& world) {
    using nlohmann::json;
    if (world.rank > 0 && !std::freopen("/dev/null", "w", stdout)) run_error("/dev/null cannot be opened");
    TrainConfig train;
    if (o.batch % world.size) input_error("--batch ", o.batch, " cannot be dealt to ", world.size, " processes");
    train.micro_batch = o.batch / world.size, train.grad_accumulation = world.size;
    train.shard = o.shard;
    const Plan plan = make_plan(config, train, true, o.threads, {}, {}, world.size);
    Session session(config, train, world, {.threads = o.threads, .profile = o.profile});
    Context& ctx = session.ctx;
    check_memory(plan, ctx);
    session.allocate(true, plan.activation_bytes, plan.workspace_bytes);
    session.initialize();
    Step& step = *session.step;
    const BenchBatch batch(train.micro_batch * config.context, config.vocab_size);
    if (!o.weights.empty()) write_start(o.weights, session.model, batch, train.micro_batch, ctx);

    auto one_step = [&] {
        const Range range("step", ctx);
        step.begin(bench_learning_rate);
        step.micro_batch(batch.tokens.data(), batch.targets.data(), world.rank, false);
        step.update();
        synchronize(ctx);
        world.barrier();
    };
    Turn turn(world);
    Products products;
    json losses = json::array(), norms = json::array();
    for (int i = 0; i < checked_steps; i++) {
        ctx.products = i == 0 ? &products : nullptr;
        one_step();
        const StepState state = step.state();
        losses.push_back(state.loss_sum / state.loss_count), norms.push_back(state.grad_norm);
    }
    if (ctx.profile) ctx.profile->clear();
    std::cout << json{{"tokens", int64_t(batch.tokens.size()) * world.size},
                      {"parameters", session.model.table.count()},
                      {"flops", plan.step_flops},
                      {"planned_bytes", plan.total()},
                      {"arena_bytes", session.bytes()},
                      {"losses", losses},
                      {"norms", norms}}
              << std::endl;
    while (turn.asked_for_a_sample()) {
        const double start = seconds_now(), processor_start = processor_seconds_now();
        one_step();
        std::cout << json{{"seconds", seconds_now() - start},
                          {"processor_seconds", processor_seconds_now() - processor_start}}
                  << std::endl;
    }
    json end = {{"resident_bytes", peak_resident_bytes()}};
    if (ctx.profile) end["profile"] = to_json(profile_of(*ctx.profile, "step"));
    std::cout << end << std::endl;
    const auto costs = count_step(config, train);
    for (std::string line; world.size == 1 && std::getline(std::cin, line) && line == "bound";)
        std::cout << measure_bound(products, costs, o.threads) << std::endl;
    return 0;
}

}  // namespace llmc
