#include "llmc/train/transition.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "llmc/base/files.h"
#include "llmc/checkpoint/convert.h"
#include "llmc/infer/evaluate.h"
#include "llmc/step/session.h"
#include "llmc/train/commands.h"
#include "llmc/train/log.h"
#include "llmc/train/recovery.h"
#include "llmc/train/resume.h"

namespace llmc {

using nlohmann::json;

namespace {

// Whether the user decides about this field of the new run, whatever the old one had.
bool is_free(const std::string& name) { return name == "steps" || all_fields().at(name).change == Change::transition; }

// InputError for a flag about the other kind of sparse mixture, unless the old run had it the same.
void check_kind(Mixture to, const std::set<std::string>& given, const json& wanted, const json& old) {
    for (const std::string& name : given) {
        const std::string kind = all_fields().at(name).only_kind;
        if (!kind.empty() && kind != block_of(to) && wanted.at(name) != old.at(name))
            input_error(flag_of(name), " has no effect on a transition --to ", to, ": leave it out");
    }
}

// The given fields that say what the new run is to be. Not those that the transition sets and that say what the old run
// was: its configuration file may be given again. InputError for any other value of such a field.
std::set<std::string> without_the_old(std::set<std::string> given, const json& wanted, const json& old,
                                      const json& start, const std::string& where) {
    for (const auto& [name, value] : start.items()) {
        if (!given.contains(name) || is_free(name) || old.at(name) == value) continue;
        if (wanted.at(name) != old.at(name) && wanted.at(name) != value)
            input_error(flag_of(name), " is ", wanted.at(name).dump(), " but a transition makes it ", value.dump(),
                        " (the run in ", where, " has ", old.at(name).dump(), "): leave the flag out");
        given.erase(name);
    }
    return given;
}

struct Configuration {
    ModelConfig model;
    TrainConfig train;
};

// All its fields; no name is in both.
json joined(const Configuration& c) {
    json fields = to_json(c.model);
    fields.update(to_json(c.train));
    return fields;
}

Configuration saved_configuration(const Checkpoint& checkpoint) {
    const std::string where = checkpoint.directory + "/state.json";
    if (!checkpoint.state.contains("model") || !checkpoint.state.contains("train"))
        input_error(where, " is not the state of a training run");
    return {model_config_from_json(checkpoint.state.at("model"), where),
            train_config_from_json(checkpoint.state.at("train"), where)};
}

// The configuration that the new run starts with: the old one, converted, with the user's changes.
Configuration new_configuration(const TransitionCommand& command, const Checkpoint& from, const Configuration& wanted,
                                const std::set<std::string>& given) {
    const Configuration old = saved_configuration(from);
    const std::string& where = from.directory;
    if (!has_mot(old.model) && has_moe(old.model))
        input_error("the run in ", where, " has no Mixture-of-Tokens block: it is sparse already (--pattern \"",
                    old.model.pattern, "\")");
    Configuration start{converted(old.model, command.to, 0, where), old.train};
    if (given.count("top_k") && !given.count("expert_choice_fraction"))
        start.model.expert_choice_fraction = 0;  // follows from top_k
    start.train.steps = from.step + std::max<int64_t>(1, (from.step + 9) / 10);
    start.train.eval_group_sizes.clear(), start.train.eval_discrete = false;

    check_kind(command.to, given, joined(wanted), joined(old));
    Configuration result = wanted;
    take_saved_configuration(
        result.model, result.train, without_the_old(given, joined(wanted), joined(old), joined(start), where),
        {{"model", to_json(start.model)}, {"train", to_json(start.train)}}, where, Change::transition);
    TrainConfig& c = result.train;
    if (result.model.shared_experts)
        input_error("--shared-experts ", result.model.shared_experts, ": the run in ", where,
                    " has no weights of shared experts");
    if (c.steps <= from.step)
        input_error("--steps ", c.steps, " counts all steps, and the run in ", where, " has made ", from.step,
                    " already");
    if (c.micro_batch * c.grad_accumulation != old.train.micro_batch * old.train.grad_accumulation)
        input_error("--micro-batch ", c.micro_batch, " x --grad-accumulation ", c.grad_accumulation, " is not the ",
                    old.train.micro_batch * old.train.grad_accumulation, " sequences a step of the run in ", where,
                    ": its position in the data would be lost");
    if (command.reset_schedule) {
        c.schedule_origin = from.step;
        if (!given.count("decay_steps")) c.decay_steps = c.steps;
        if (!given.count("warmup_steps")) c.warmup_steps = std::min(c.warmup_steps, (c.steps - from.step) / 10);
    }
    if (c.decay_steps == 0) c.decay_steps = c.steps;
    return result;
}

// What a transition leaves that is killed before its first checkpoint: what it has written so far, and beginnings.
bool is_beginning(const std::string& name) {
    if (name.starts_with(".step-")) return name.ends_with(".tmp");
    for (const char* file : {"run.json", "tokenizer.tiktoken", "latest"})
        if (name.starts_with(str(file, ".tmp."))) return true;
    return false;
}
bool is_leftover(const std::string& name) {
    return is_beginning(name) || name == "run.json" || name == "tokenizer.tiktoken" || name == "log.jsonl";
}

// InputError unless the directory is new, empty, or of an interrupted transition.
void check_new_directory(const std::string& run_dir) {
    if (find_latest(run_dir))
        input_error("--run-dir ", run_dir, " holds a run already: a transition starts a new one; go on with it by ",
                    "train --resume, or choose another directory");
    const bool ours = !run_of_transition(run_dir).is_null();
    std::error_code error;
    for (std::filesystem::directory_iterator it(run_dir, error), end; !error && it != end; it.increment(error)) {
        const std::string name = it->path().filename().string();
        if (name == RunLock::file) continue;
        if (!(ours ? is_leftover(name) : is_beginning(name)))
            input_error("--run-dir ", run_dir, " holds ", name, ", which no transition wrote: empty the directory, ",
                        "or choose another one");
    }
}

void remove_leftovers(const std::string& run_dir) {
    std::vector<std::filesystem::path> leftovers;
    std::error_code error;
    for (std::filesystem::directory_iterator it(run_dir, error), end; !error && it != end; it.increment(error))
        if (is_leftover(it->path().filename().string())) leftovers.push_back(it->path());
    for (const auto& path : leftovers) std::filesystem::remove_all(path, error);
}

// Weights and optimizer state of the converted model.
void load(Session& session, const Checkpoint& from, bool reset_optimizer) {
    Model& model = session.model;
    Context& ctx = session.ctx;
    session.initialize();  // for what the old model did not have
    load_converted(from, model_file, model.parameters(), ctx, session.world);
    const double temperature = saved_configuration(from).model.temperature;
    scale_routers(model.parameters(), 1 / temperature, ctx);
    model.refresh_compute_copy();
    if (reset_optimizer) return;
    load_converted(from, optimizer_file, session.optimizer->state_parts(false), ctx, session.world);
    for (const StateBuffer& state : session.optimizer->states()) {
        double factor = 1;
        for (int i = 0; i < state.kind().degree; i++) factor *= temperature;
        scale_routers(state.parts(false), factor, ctx);
    }
}

// The losses of both modes at the switch, as state.json keeps them.
json compare(const TransitionCommand& command, const Checkpoint& from, Session& session,
             const std::optional<ModelConfig>& twin, const TrainConfig& config, const Evaluator& evaluator) {
    json transition = {{"from", from.directory},
                       {"step", from.step},
                       {"mode", name_of(command.to)},
                       {"mot_loss", nullptr},
                       {"sparse_loss", nullptr},
                       {"recovered_at", nullptr},
                       {"tokens", 0}};
    if (!evaluator.batches()) return transition;
    const EvalResult sparse = evaluator.run(*session.step, {}, session.world);
    transition["sparse_loss"] = sparse.loss, transition["tokens"] = sparse.tokens;
    const std::string step = str("step ", from.step);
    if (!twin) {
        std::printf("%s, validation loss as %s %.4f\n", step.c_str(), name_of(command.to), sparse.loss);
        return transition;
    }
    const std::unique_ptr<Model> other = model_as(*twin, session.model, session.ctx);
    const EvalResult mot = evaluator.run(*other, config, {}, session.arena, session.ctx, session.world);
    transition["mot_loss"] = mot.loss;
    watch_recovery(transition, from.step, sparse);
    std::printf("%s, validation loss as mot %.4f, as %s %.4f\n", step.c_str(), mot.loss, name_of(command.to),
                sparse.loss);
    return transition;
}

// The run directory with its first checkpoint.
void convert(const TransitionCommand& command, const Checkpoint& from, const Configuration& c,
             const std::optional<ModelConfig>& twin, const Plan& plan, const RunOptions& options, const Dataset& data,
             RunLock& lock, World& world) {
    Session session(c.model, c.train, world, {.threads = options.threads});
    check_memory(plan, session.ctx);
    if (lock.make(options.run_dir)) check_new_directory(options.run_dir);
    const Evaluator evaluator(data, c.model, c.train);
    session.allocate(true, plan.activation_bytes, plan.workspace_bytes);
    load(session, from, command.reset_optimizer);

    json identity = describe_run(c.model, c.train, data);
    identity["transition"] = compare(command, from, session, twin, c.train, evaluator);
    remove_leftovers(options.run_dir);
    start_run_directory(options.run_dir, identity, data);
    json event = identity.at("transition");
    event["event"] = "transition";
    if (RunLog log(options.run_dir + "/log.jsonl", identity); !log.append(event)) run_error(log.problem());

    StepState state = step_state_from(from.state);
    if (command.reset_optimizer) state.t = 0;
    const Loader loader(data.train, c.model.context, uint64_t(c.train.seed), true);
    const LoaderState position = loader.state_at(from.step * c.train.micro_batch * c.train.grad_accumulation);
    save_checkpoint(options.run_dir, from.step, session.model.parameters(), session.optimizer->state_parts(true),
                    checkpoint_state(identity, state, position, from.state.at("seconds"), evaluator.fillers()),
                    c.train.keep, session.ctx, world);
}

}  // namespace

int run_transition(const TransitionCommand& command, ModelConfig model, TrainConfig config, const RunOptions& options,
                   World& world) {
    const Checkpoint from = open_checkpoint(command.from);
    if (!from.note.empty()) std::fprintf(stderr, "warning: %s\n", from.note.c_str());
    check_training_state(from);
    RunLock lock;
    if (!command.dry_run) lock.take(options.run_dir);
    check_new_directory(options.run_dir);
    const Dataset data = open_dataset(options.data);
    if (model.vocab_size == 0) model.vocab_size = data.vocab_size;
    Configuration c = new_configuration(command, from, {model, config}, options.given);
    check_same_data(from.state, data, from.directory);
    c.model = resolved(c.model);
    const std::optional<ModelConfig> twin = twin_of(c.model, c.train, from.directory);
    if (!twin)
        std::printf(
            "--micro-batch %lld is no multiple of the %lld sequences that were mixed together: the weights are "
            "not evaluated as a Mixture of Tokens, and there is no recovery to tell\n",
            static_cast<long long>(c.train.micro_batch), static_cast<long long>(c.model.group_size));
    const Plan plan = check_run(c.model, c.train, options, data, from.step, twin, world);
    if (command.dry_run) return show_info(c.model, c.train, options.threads);
    convert(command, from, c, twin, plan, options, data, lock, world);

    RunOptions resumed = options;
    resumed.resume = Resume::must;
    resumed.given.clear();
    return train(c.model, c.train, resumed, world, std::move(lock));
}

}  // namespace llmc
