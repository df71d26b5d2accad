#include "llmc/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "llmc/base/clock.h"
#include "llmc/base/standard_output.h"
#include "llmc/base/version.h"
#include "llmc/checkpoint/checkpoint.h"
#include "llmc/checkpoint/convert.h"
#include "llmc/data/loader.h"
#include "llmc/infer/evaluate.h"
#include "llmc/measure/profile.h"
#include "llmc/measure/trace.h"
#include "llmc/planner/plan.h"
#include "llmc/step/schedule.h"
#include "llmc/step/session.h"
#include "llmc/train/log.h"
#include "llmc/train/open_data.h"
#include "llmc/train/recovery.h"
#include "llmc/train/resume.h"
#include "llmc/train/signals.h"

namespace llmc {
namespace {

using nlohmann::json;

std::string duration_text(double seconds) {
    char text[64];
    const int64_t s = int64_t(seconds + 0.5);
    if (s < 60)
        std::snprintf(text, sizeof text, "%d s", int(s));
    else if (s < 3600)
        std::snprintf(text, sizeof text, "%d min %02d s", int(s / 60), int(s % 60));
    else
        std::snprintf(text, sizeof text, "%lld h %02d min", static_cast<long long>(s / 3600), int(s % 3600 / 60));
    return text;
}

// A run in progress.
struct Run : Session {
    const RunOptions& options;
    const Dataset& data;
    const Plan plan;
    Loader loader;
    Evaluator evaluator;
    std::optional<RunLog> log;  // rank 0
    const json identity;  // what every checkpoint says of itself
    const std::vector<ExtraEvaluation> extras;
    const std::optional<ModelConfig> twin;  // of a run that was a Mixture of Tokens: see twin_of
    json transition;                        // see recovery.h; null for any other run
    double peak_flops = 0;
    int64_t first_step = 0, steps_done = 0;
    StepState state;                  // after steps_done
    bool evaluation_missing = false;  // that of steps_done: a signal ended it
    bool saved = false;               // the newest checkpoint is of steps_done, and lacks nothing
    int64_t newest_checkpoint = -1;   // its step
    std::vector<int32_t> tokens, targets;  // one micro-batch on the host

    // The meter behind the console line: time and losses since the last line, without validation and saving.
    double busy_seconds = 0, all_busy_seconds = 0;
    int64_t busy_steps = 0;
    StepState last_state;

    Run(const ModelConfig& m, const TrainConfig& c, const RunOptions& o, World& world, const Dataset& d, const Plan& p,
        const json& identity, const std::optional<ModelConfig>& twin)
        : Session(m, c, world, {.threads = o.threads, .profile = o.profile, .device = o.device}), options(o), data(d),
          plan(p), loader(d.train, m.context, uint64_t(c.seed), true), evaluator(d, m, c), identity(identity),
          extras(extra_evaluations(m, c)), twin(twin), transition(identity.value("transition", json())) {
        if (world.rank == 0) log.emplace(o.run_dir + "/log.jsonl", identity);
        if (!o.trace.empty()) ctx.profile->keep_spans("step", traced_spans);
        allocate(true, plan.activation_bytes, plan.workspace_bytes, o.cuda_graph);
        tokens.resize(size_t(step->rows() * m.context)), targets.resize(tokens.size());
    }

    // ---- start
    void start_from(const Checkpoint& checkpoint) {
        load_tensors(checkpoint, model_file, model.parameter_parts(false), ctx, world);
        load_tensors(checkpoint, optimizer_file, optimizer->state_parts(false), ctx, world);
        model.refresh_compute_copy();
        shared.spread_parameters();
        first_step = steps_done = newest_checkpoint = checkpoint.step;
        saved = true;
        all_busy_seconds = checkpoint.state.at("seconds");
        evaluation_missing = checkpoint.state.value("evaluation_missing", false);
        state = step_state_from(checkpoint.state);
        step->set_state(state);
        last_state = state;
        record({{"event", "resumed"}, {"step", steps_done}});
    }

    // ---- output
    void record(const json& line) {
        if (log && !log->append(line)) std::fprintf(stderr, "warning: %s\n", log->problem().c_str());
    }

    void report(double lr) {
        const double loss = (state.total_loss_sum - last_state.total_loss_sum) /
                            double(state.total_loss_count - last_state.total_loss_count);  // nan if all were skipped
        const double step_seconds = busy_seconds / double(busy_steps);
        const double tokens_per_second = double(tokens_per_step()) / step_seconds;
        const double gflops = plan.step_flops / step_seconds * 1e-9;
        const int64_t skipped = state.skipped - last_state.skipped;
        std::string note = skipped ? str("  ", skipped, " skipped: loss or gradient not finite") : "";
        std::printf(
            "step %7lld/%lld  loss %8.4f  norm %8.3f  lr %.2e  %8.0f tok/s  %6.1f GFLOP/s (%2.0f %%)  ETA %s%s\n",
            static_cast<long long>(steps_done), static_cast<long long>(config.steps), loss, state.grad_norm, lr,
            tokens_per_second, gflops, peak_flops > 0 ? 100 * gflops * 1e9 / peak_flops : NAN,
            duration_text(double(config.steps - steps_done) * step_seconds).c_str(), note.c_str());
        std::fflush(stdout);
        record({{"step", steps_done},
                {"loss", loss},
                {"grad_norm", state.grad_norm},
                {"lr", lr},
                {"seconds", all_busy_seconds},
                {"tokens", steps_done * tokens_per_step()},
                {"tokens_per_second", tokens_per_second},
                {"gflops", gflops},
                {"peak_gflops", peak_flops * 1e-9},
                {"skipped", state.skipped}});
        last_state = state;
        busy_seconds = 0, busy_steps = 0;
    }

    void report_statistics() {
        const std::vector<double> values = step->metrics();
        json line = {{"step", steps_done}};
        std::string text;
        for (const MetricSlot& slot : model.metric_slots()) {
            line[slot.name] = values[size_t(slot.first)];
            if (slot.name.ends_with("entropy")) {
                char number[64];
                std::snprintf(number, sizeof number, "  %s %.3f", slot.name.c_str(), values[size_t(slot.first)]);
                text += number;
            }
        }
        std::printf("  %s\n", text.c_str());
        record(line);
    }

    // "the newest checkpoint is that of step 40"
    std::string where_it_is_safe() const {
        return newest_checkpoint < 0 ? "there is no checkpoint"
                                     : str("the newest checkpoint is that of step ", newest_checkpoint);
    }

    // The signal that asks to stop, on any rank; all get the same answer at the same moment. RunError on all of them if
    // an update has left something that is not finite: this is no model any more.
    int stop_requested() {
        constexpr int broken = 1 << 16;  // above all signals
        int news = state.broken ? broken : stop_signal();
        if (world.size > 1)
            for (const std::string& theirs : world.all_gather(std::to_string(news)))
                news = std::max(news, std::stoi(theirs));
        if (news == broken)
            run_error("the update of step ", steps_done,
                      " made parameters infinite or NaN: stopping, nothing is saved; ", where_it_is_safe(),
                      "; lower --lr, or look at --adam-eps");
        if (news && world.rank == 0) say_stopping(news);  // here, if only another rank has heard it
        return news;
    }
    const Evaluator::Stop stop = [this] { return stop_requested() != 0; };

    // False if a signal asked to stop.
    bool validate() {
        const EvalResult result = evaluator.run(*step, {}, world, stop);
        if (result.abandoned) return false;
        std::printf("  step %lld: validation %s\n", static_cast<long long>(steps_done), result.text().c_str());
        std::fflush(stdout);
        json line = {{"step", steps_done}, {"seconds", all_busy_seconds}};
        result.add_to(line, "val_");
        for (const ExtraEvaluation& extra : extras) {
            const EvalResult other = evaluator.run(*step, extra.options, world, stop);
            if (other.abandoned) return false;
            std::printf("    %-12s validation loss %.4f\n", extra.name.c_str(), other.loss);
            line["val_loss_" + extra.name] = other.loss;
        }
        std::fflush(stdout);
        record(line);
        if (watch_recovery(transition, steps_done, result)) {
            std::printf("  step %lld: back at the loss of the Mixture of Tokens, %.4f\n",
                        static_cast<long long>(steps_done), transition.at("mot_loss").get<double>());
            record({{"event", "recovered"}, {"step", steps_done}, {"val_loss", result.loss}});
        }
        return true;
    }

    // The end of a run that was a Mixture of Tokens: its weights in both modes. False if a signal asked to stop.
    bool compare_with_mot() {
        const EvalResult sparse = evaluator.run(*step, {}, world, stop);
        if (sparse.abandoned) return false;
        json mot_loss;
        if (twin) {
            const EvalResult mot = evaluator.run(*model_as(*twin, model, ctx), config, {}, arena, ctx, world, stop);
            if (mot.abandoned) return false;
            mot_loss = mot.loss;
        }
        std::printf("%s", transition_table(transition, steps_done, mot_loss, sparse).c_str());
        record({{"event", "transition end"},
                {"step", steps_done},
                {"mot_loss", mot_loss},
                {"sparse_loss", sparse.loss},
                {"tokens", sparse.tokens},
                {"recovered_at", transition.at("recovered_at")}});
        return true;
    }

    // What is due after a step. If a signal ends it, the run that is resumed makes up for it.
    void evaluate() {
        evaluation_missing = false;
        if (!evaluator.batches()) return;
        const bool last = steps_done == config.steps;
        const bool validates = config.eval_interval && (due(config.eval_interval, steps_done) || last);
        const bool compares = last && !transition.is_null();
        evaluation_missing = (validates && !validate()) || (compares && !compare_with_mot());
    }

    // False if it failed: reported, and the last good checkpoint is still there. All ranks write what they own.
    bool save() {
        stop_requested();  // no checkpoint of a broken model
        const LoaderState position = loader.state_at(steps_done * samples_per_step());
        json j = checkpoint_state(identity, state, position, all_busy_seconds, evaluator.fillers());
        if (!transition.is_null()) j["transition"] = transition;
        if (evaluation_missing) j["evaluation_missing"] = true;
        try {
            save_checkpoint(options.run_dir, steps_done, model.parameter_parts(true), optimizer->state_parts(true), j,
                            config.keep, ctx, world);
            newest_checkpoint = steps_done;
            return saved = true;
        } catch (const RunError& error) {
            if (world.rank == 0) std::fprintf(stderr, "warning: %s\n", error.what());
            record({{"event", "save failed"}, {"step", steps_done}, {"reason", error.what()}});
            return false;
        }
    }

    // ---- the loop
    int64_t samples_per_step() const { return config.micro_batch * config.grad_accumulation; }
    int64_t tokens_per_step() const { return samples_per_step() * model.config.context; }

    void fill_micro_batch(int64_t k) {
        const Range range("data", ctx);
        loader.fill(tokens.data(), targets.data(), step->rows(),
                    steps_done * samples_per_step() + k * config.micro_batch +
                        model.sharding.batch_part() * step->rows());
    }

    void one_step(double lr, bool statistics) {
        if (ctx.profile && steps_done == first_step + 1) ctx.profile->clear();  // of the step that warms up
        const double start = seconds_now();
        {
            const Range range("step", ctx);
            step->begin(lr, steps_done);
            for (int64_t k = model.sharding.batch(); k < config.grad_accumulation; k += model.sharding.batches()) {
                fill_micro_batch(k);
                step->micro_batch(tokens.data(), targets.data(), k, statistics);
            }
            step->update();
            state = step->state();  // waits for the device
        }
        steps_done++;
        saved = false;
        busy_steps++;
        busy_seconds += seconds_now() - start;
        all_busy_seconds += seconds_now() - start;
    }

    static bool due(int64_t interval, int64_t step) { return interval > 0 && step % interval == 0; }

    // The first step after this one that a checkpoint is due at.
    int64_t next_save() const {
        if (!config.save_interval) return std::numeric_limits<int64_t>::max();
        return (steps_done / config.save_interval + 1) * config.save_interval;
    }

    // A checkpoint that is due since step `due_at`. Returns when the next one is.
    int64_t save_if_sound(int64_t due_at) {
        constexpr int64_t retry_after = 10;  // steps
        if (state.skipped_in_a_row) {
            if (steps_done == due_at && world.rank == 0)
                std::fprintf(stderr, "warning: no checkpoint of step %lld before a step counts: %lld were skipped\n",
                             static_cast<long long>(steps_done), static_cast<long long>(state.skipped_in_a_row));
            return due_at;
        }
        if (save()) return next_save();
        const int64_t again = std::min({steps_done + retry_after, config.steps, next_save()});
        if (world.rank == 0)
            std::fprintf(stderr, "training goes on; the next try is after step %lld\n", static_cast<long long>(again));
        return again;
    }

    int loop() {
        const Schedule schedule = schedule_of(config);
        int64_t save_at = next_save();
        if (evaluation_missing) evaluate(), saved = false;
        int signal = 0;
        while (steps_done < config.steps && !(signal = stop_requested())) {
            const double lr = learning_rate(schedule, steps_done);
            const bool statistics = model.metric_count() && due(config.statistics_interval, steps_done + 1);
            one_step(lr, statistics);
            const bool last = steps_done == config.steps;
            const bool hopeless = state.skipped_in_a_row >= config.max_skipped;
            if (due(config.log_interval, steps_done) || last || hopeless || steps_done == first_step + 1) report(lr);
            if (hopeless)
                run_error(state.skipped_in_a_row,
                          " steps in a row had a loss or gradient that is not finite: stopping; ", where_it_is_safe(),
                          "; lower --lr, or look at the data");
            if (statistics) report_statistics();
            evaluate();
            if (steps_done >= save_at) save_at = save_if_sound(save_at);
        }
        if (evaluation_missing) signal = stop_requested();
        return end(signal);
    }

    // The last checkpoint and the last words. Returns the exit code.
    int end(int signal) {
        if (!saved && state.skipped_in_a_row) {
            if (world.rank == 0)
                std::fprintf(stderr, "%s after step %lld, not saved: the last %lld steps were skipped; %s\n",
                             signal ? "interrupted" : "error: the run ended", static_cast<long long>(steps_done),
                             static_cast<long long>(state.skipped_in_a_row), where_it_is_safe().c_str());
            return signal ? 128 + signal : 1;
        }
        if (!saved && !save()) return 1;
        if (signal) {
            std::printf("interrupted after step %lld; saved in %s: go on with --resume\n",
                        static_cast<long long>(steps_done), options.run_dir.c_str());
            return 128 + signal;
        }
        std::printf("done: %lld steps, %s of training\n", static_cast<long long>(steps_done),
                    duration_text(all_busy_seconds).c_str());
        return 0;
    }

    // False if the trace could not be written.
    bool report_profile(const Machine& machine) {
        json line = print_profile(*ctx.profile, "step", machine);
        line["event"] = "profile", line["step"] = steps_done;
        record(line);
        return options.trace.empty() || print_trace(*ctx.profile, options.trace, steps_done, world.rank, world.size);
    }
};

void warn_about_space(Run& run) {
    const TrainConfig& config = run.config;
    const int64_t steps = std::max<int64_t>(config.steps - run.first_step, 0);
    const int64_t saves = 1 + (config.save_interval ? steps / config.save_interval : 0);
    const std::string& directory = run.options.run_dir;
    const int64_t bytes = checkpoint_bytes(run.model.parameter_parts(true), run.optimizer->state_parts(true));
    const std::string warning = space_warning(directory, room_for_checkpoints(directory), bytes, saves, config.keep);
    if (!warning.empty()) std::fprintf(stderr, "warning: %s\n", warning.c_str());
}

// The configuration as a table, and what the run will need.
void announce(const ModelConfig& model, const TrainConfig& config, const Dataset& data, const Plan& plan, int threads,
              int ranks) {
    auto row = [](const FieldInfo& info, const auto& value) {
        std::printf("  %-20s %s\n", info.name, field_to_json(value).dump().c_str());
    };
    std::printf("configuration\n");
    for_each_model_field(model, row);
    for_each_train_field(config, row);
    std::printf("data\n  %s: %lld training tokens, %lld validation tokens\n", data.path.c_str(),
                static_cast<long long>(data.train.tokens), static_cast<long long>(data.val.tokens));
    Context counting({.threads = threads, .counting = true});
    Model shapes(model, Precision::of(config.precision), true, counting);
    std::printf("%s", describe_plan(plan, shapes, config, ranks).c_str());
    for (const std::string& warning : warnings_of(model)) std::printf("warning: %s\n", warning.c_str());
    std::fflush(stdout);
}

// What the data keeps from happening without an error.
void warn_about_data(const Run& run) {
    const Dataset& data = run.data;
    const int64_t used = run.loader.windows() * run.loader.seq_len();
    if (const double unused = 1 - double(used) / double(data.train.tokens); unused > 0.05)
        std::fprintf(stderr,
                     "warning: %.0f %% of the training tokens are never used: they are at the ends of shards, where no "
                     "sequence of %lld fits. Larger shards or a shorter --context use them\n",
                     100 * unused, static_cast<long long>(run.loader.seq_len()));
    if (run.config.eval_interval && data.val.shards.empty())
        std::fprintf(stderr, "warning: there is no validation: %s has no val split\n", data.path.c_str());
}

void warn_about_threads(World& world, int threads) {
    const std::string warning = thread_warning(world, threads);
    if (world.rank == 0 && !warning.empty()) std::fprintf(stderr, "warning: %s\n", warning.c_str());
}

}  // namespace

Schedule schedule_of(const TrainConfig& c) {
    return {c.lr, c.warmup_steps, c.decay_steps, c.final_lr_fraction, c.schedule_origin};
}

Plan check_run(ModelConfig& model, const TrainConfig& config, const RunOptions& options, const Dataset& data,
               int64_t first_step, const std::optional<ModelConfig>& twin, const World& world) {
    if (config.stochastic_rounding && config.precision != PrecisionMode::bf16)
        input_error("--stochastic-rounding is for --precision bf16: with ", config.precision,
                    " the parameters are not rounded");
    if (options.cuda_graph && !backend_has_graphs())
        input_error("--cuda-graph needs a GPU: leave it out with this build, which is for the CPU");
    const int ranks = world.size;
    if (ranks == 1)
        for (const auto& [field, value] : {std::pair("expert_parallel", config.expert_parallel),
                                           std::pair("group_ranks", config.group_ranks)})
            if (value > 1 && options.given.count(field))
                input_error(flag_of(field), " ", value,
                            " does not divide the number of processes, 1: start more with mpirun");
    if (options.cuda_graph && ranks > 1)
        input_error("--cuda-graph is for one process: this run has ", ranks);
    if (options.cuda_graph && options.profile)
        input_error("--profile times single ops and --cuda-graph launches them all at once: choose one");
    if (!options.trace.empty()) check_trace_path(trace_path(options.trace, world.rank, ranks));
    model = resolved(model);
    check_vocabulary(data, model.vocab_size);
    check_schedule(schedule_of(config));
    if (config.schedule_origin > first_step)
        input_error("--schedule-origin is ", config.schedule_origin, " but the run starts at step ", first_step,
                    ": no step has a learning rate before its origin");
    // Data shorter than a sequence is refused here, before anything is made.
    Loader(data.train, model.context, uint64_t(config.seed), true);
    return make_plan(model, config, true, options.threads, {}, twin, ranks);
}

int train(ModelConfig model, TrainConfig config, const RunOptions& options, World& world, RunLock lock) {
    const bool first = world.rank == 0;
    catch_stop_signals(first);
    take_on_all(lock, options.run_dir, world);
    const Dataset data = open_dataset_on_all(options.data, world);
    if (model.vocab_size == 0) model.vocab_size = data.vocab_size;
    if (config.decay_steps == 0) config.decay_steps = config.steps;

    std::optional<Checkpoint> found = find_checkpoint(options.run_dir, world);
    if (found && options.resume == Resume::never) refuse_second_run(options.run_dir);
    if (!found && options.resume != Resume::never) refuse_interrupted_transition(options.run_dir);
    if (!found && options.resume == Resume::must)
        input_error("--resume: there is no complete checkpoint in ", options.run_dir);
    if (found) {
        if (first && !found->note.empty()) std::fprintf(stderr, "warning: %s\n", found->note.c_str());
        resume_configuration(model, config, options.given, options.extend, *found, first);
        check_same_data(found->state, data, found->directory);
    }
    const json transition = found ? found->state.value("transition", json()) : json();
    std::optional<ModelConfig> twin;
    const bool whole =
        config.shard != ShardMode::parameters && config.expert_parallel == 1;  // or the twin has no parameters
    if (!transition.is_null() && whole) twin = twin_of(model, config, found->directory);
    const Plan plan = check_run(model, config, options, data, found ? found->step : 0, twin, world);
    announce(model, config, data, plan, options.threads, world.size);

    Context device({.threads = options.threads, .device = options.device});
    const bool on_cpu = options.device < 0;  // GPUs are not shared
    check_memory(plan, device, on_cpu ? world.local_size : 1);
    const Bandwidth bandwidth = options.profile ? peak_bandwidth(device) : Bandwidth{};  // while memory is free
    json identity = describe_run(model, config, data);
    if (!transition.is_null()) identity["transition"] = transition;
    if (first) prepare_run_directory(options.run_dir, lock, identity, data, found);
    if (world.size > 1) check_shared(options.run_dir, identity, world);
    Run run(model, config, options, world, data, plan, identity, twin);
    const Peak peak = peak_flops(run.model.precision.act, run.ctx);
    run.peak_flops = peak.flops * world.size;
    const std::string processes = world.size > 1 ? str(world.size, " processes, each: ") : "";
    std::printf("%s%s; peak %.0f GFLOP/s, %s\n", processes.c_str(), backend_description(run.ctx).c_str(),
                peak.flops * 1e-9, peak.how.c_str());
    warn_about_threads(world, run.ctx.threads);
    if (found)
        run.start_from(*found);
    else
        run.initialize();
    if (first) warn_about_data(run), warn_about_space(run);
    int code = run.loop();
    if (options.profile && !run.report_profile({peak.flops, bandwidth.bytes})) code = std::max(code, 1);
    forgive_lost_output();
    return code;
}

}  // namespace llmc
