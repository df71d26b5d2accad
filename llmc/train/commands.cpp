#include "llmc/train/commands.h"

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "llmc/base/clock.h"
#include "llmc/checkpoint/checkpoint.h"
#include "llmc/checkpoint/convert.h"
#include "llmc/data/tokenizer.h"
#include "llmc/infer/evaluate.h"
#include "llmc/measure/profile.h"
#include "llmc/planner/plan.h"
#include "llmc/step/config_fields.h"
#include "llmc/step/step.h"
#include "llmc/train/resume.h"

namespace llmc {

int show_info(const ModelConfig& model_config, const TrainConfig& config, int threads, int ranks) {
    Context ctx({.threads = threads, .counting = true});
    Model model(model_config, Precision::of(config.precision), config.decay == Decay::all, ctx);
    if (ranks == 1 && (config.expert_parallel > 1 || config.group_ranks > 1))
        input_error("--expert-parallel and --group-ranks need several processes: set their number with --ranks");
    const Plan plan = make_plan(model_config, config, true, threads, {}, {}, ranks);
    std::printf("%s%s", describe_units(model).c_str(), describe_plan(plan, model, config, ranks).c_str());
    const int64_t available = device_memory_available(ctx);
    if (available < 0)
        std::printf("  %-28s %14s  %s\n", "available here", "no GPU", backend_description(ctx).c_str());
    else
        std::printf("  %-28s %14s  %s\n", "available here", bytes_text(double(available)).c_str(),
                    plan.total() > available ? "not enough to train this" : "");
    return 0;
}

namespace {

// A checkpoint's configuration, with its parameters on the device.
struct Loaded {
    Checkpoint checkpoint;
    ModelConfig config;
    TrainConfig train;
    std::unique_ptr<Context> ctx;
    std::unique_ptr<Model> model;
    std::vector<std::vector<int32_t>> fillers;
    Machine machine;  // with profile

    Loaded(const std::string& path, int threads, bool profile) : checkpoint(open_checkpoint(path)) {
        if (!checkpoint.note.empty()) std::fprintf(stderr, "warning: %s\n", checkpoint.note.c_str());
        const std::string where = checkpoint.directory + "/state.json";
        check_training_state(checkpoint);
        config = model_config_from_json(checkpoint.state.at("model"), where);
        train = train_config_from_json(checkpoint.state.at("train"), where);
        fillers = fillers_from(checkpoint.state, config, where);
        ctx = std::make_unique<Context>(ContextOptions{.threads = threads, .profile = profile});
        if (profile) machine = measure_machine(Precision::of(train.precision).act, *ctx);
    }

    void load_parameters(World& world) {
        model = std::make_unique<Model>(config, Precision::of(train.precision), true, *ctx);
        model->allocate(false);
        load_tensors(checkpoint, model_file, model->parameters(), *ctx, world);
        model->refresh_compute_copy();
    }

    void report_profile(const char* range) const {
        if (ctx->profile) print_profile(*ctx->profile, range, machine);
    }
};

// True if all mixtures of the model are of this kind: then it is evaluated as it is.
bool consists_of(const ModelConfig& config, Mixture mixture) {
    for (Mixture kind : {Mixture::mot, Mixture::token_choice, Mixture::expert_choice})
        if (has_block(config, block_of(kind)) != (kind == mixture)) return false;
    return true;
}

// What the checkpoint is evaluated as.
ModelConfig config_of(const EvalCommand& command, const Loaded& loaded) {
    const std::string& where = loaded.checkpoint.directory;
    ModelConfig config = loaded.config;
    if (command.as && !consists_of(config, *command.as)) {
        config = converted(config, *command.as, command.group_size, where);
        if (has_moe(loaded.config) && !loaded.checkpoint.state.contains("transition") && !command.group_size)
            input_error("--as ", *command.as, ": the model in ", where,
                        " was never a Mixture of Tokens: set the size of its groups with --group-size");
    }
    const bool sizes = command.group_size && (!command.as || has_mot(loaded.config));
    if (!has_mot(config) && (command.discrete || sizes))
        input_error(command.discrete ? "--discrete" : "--group-size",
                    " needs Mixture-of-Tokens blocks, but the model in ", where, " is evaluated without any");
    return config;
}

// Says on stderr every ten seconds how far an evaluation is; never stops it.
class Progress {
public:
    explicit Progress(int64_t batches) : batches(batches) {}
    bool operator()() {
        if (seconds_now() - said > 10) {
            std::fprintf(stderr, "evaluated %lld of %lld micro-batches\n", static_cast<long long>(done),
                         static_cast<long long>(batches));
            said = seconds_now();
        }
        done++;
        return false;
    }

private:
    const int64_t batches;
    int64_t done = 0;
    double said = seconds_now();
};

// A line for every group size.
void print_table(const Evaluator& evaluator, Step& step, const std::vector<ExtraEvaluation>& rows, World& world) {
    std::printf("%12s %10s %12s\n", "group size", "loss", "perplexity");
    for (const ExtraEvaluation& row : rows) {
        const EvalResult result = evaluator.run(step, row.options, world);
        std::printf("%12lld %10.4f %12.2f\n", static_cast<long long>(row.options.group_size), result.loss,
                    result.perplexity);
    }
}

}  // namespace

int run_eval(const EvalCommand& command, World& world) {
    Loaded loaded(command.checkpoint, command.threads, command.profile);
    const Dataset data = open_dataset(command.data);
    check_vocabulary(data, loaded.config.vocab_size);
    check_same_tokenizer(loaded.checkpoint.state, loaded.checkpoint.directory, data.tokenizer_crc32, data.path);
    const Split& split = command.split == "train" || data.bare ? data.train : data.val;
    if (split.shards.empty()) input_error(data.path, " has no ", command.split, " split");

    TrainConfig config = loaded.train;
    config.eval_batches = command.batches;
    if (command.micro_batch) config.micro_batch = command.micro_batch;
    config.eval_group_sizes = command.group_sizes;
    config.eval_discrete = false;
    EvalOptions options{.discrete = command.discrete, .group_size = command.group_size};
    if (command.group_fill) {
        const EvalSequences sequences(split, loaded.config.context, eval_seed);
        const int64_t count = sequences.count(command.batches);
        loaded.load_parameters(world);
        const double loss =
            evaluate_filled(*loaded.model, sequences, count, loaded.fillers, *command.group_fill, *loaded.ctx);
        std::printf("%lld single sequences, groups filled by rule %s: loss %.4f  perplexity %.2f\n",
                    static_cast<long long>(count), name_of(*command.group_fill), loss, std::exp(loss));
        loaded.report_profile("evaluation");
        return 0;
    }
    const ModelConfig as = config_of(command, loaded);
    std::vector<ExtraEvaluation> rows = extra_evaluations(as, config);
    for (ExtraEvaluation& row : rows) row.options.discrete = command.discrete;
    const Plan plan = make_plan(as, config, false, command.threads, options);
    check_memory(plan, *loaded.ctx);
    loaded.load_parameters(world);
    if (has_mot(loaded.config) && !has_mot(as)) {  // a sparse mixture has no temperature
        scale_routers(loaded.model->parameters(), 1 / loaded.config.temperature, *loaded.ctx);
        loaded.model->refresh_compute_copy();
    }
    const std::unique_ptr<Model> model = model_as(as, *loaded.model, *loaded.ctx);
    reserve_workspace(plan.workspace_bytes, *loaded.ctx);
    Arena arena("activations", *loaded.ctx);
    arena.allocate(plan.activation_bytes);
    UnitHooks hooks;
    Step step(*model, nullptr, config, arena, hooks, *loaded.ctx);
    const Evaluator evaluator(data, as, config, &split);
    const EvalResult result = evaluator.run(step, options, world, Progress(evaluator.batches()));
    std::printf("step %lld, %s split%s: %s\n", static_cast<long long>(loaded.checkpoint.step), split.name.c_str(),
                command.as ? str(", as ", *command.as).c_str() : "", result.text().c_str());
    if (!command.group_sizes.empty()) print_table(evaluator, step, rows, world);
    loaded.report_profile("evaluation");
    return 0;
}

int run_generate(const GenerateCommand& command, World& world) {
    Loaded loaded(command.checkpoint, command.threads, command.profile);
    std::string rank_file = command.tokenizer;
    if (rank_file.empty())
        rank_file =
            (std::filesystem::path(loaded.checkpoint.directory) / ".." / "tokenizer.tiktoken").lexically_normal();
    const Tokenizer tokenizer = Tokenizer::load(rank_file);
    if (tokenizer.vocab_size() != loaded.config.vocab_size)
        input_error(rank_file, " has ", tokenizer.vocab_size(), " tokens, the model has ", loaded.config.vocab_size,
                    ": give the training data's rank file with --tokenizer");
    check_same_tokenizer(loaded.checkpoint.state, loaded.checkpoint.directory, tokenizer.crc32(), rank_file);

    std::vector<std::vector<int32_t>> prompts;
    for (const std::string& text : command.prompts) {
        std::vector<int32_t> ids = {tokenizer.eot_id()};  // documents begin after an end-of-text
        for (uint16_t id : tokenizer.encode(text)) ids.push_back(id);
        prompts.push_back(ids);
    }
    GenerateOptions options = command.options;
    options.end_of_text = tokenizer.eot_id();
    loaded.load_parameters(world);
    const bool stream = prompts.size() == 1;  // one prompt: text appears as it is drawn
    if (stream) std::printf("%s", command.prompts[0].c_str());
    auto show = [&](int64_t, int32_t token) {
        std::printf("%s", tokenizer.decode(std::vector<int32_t>{token}).c_str());
        std::fflush(stdout);
    };
    const auto texts = generate(*loaded.model, prompts, loaded.fillers, options, *loaded.ctx,
                                stream ? TokenCallback(show) : TokenCallback());
    if (stream)
        std::printf("\n");
    else
        for (size_t i = 0; i < texts.size(); i++)
            std::printf("--- %zu\n%s%s\n", i + 1, command.prompts[i].c_str(), tokenizer.decode(texts[i]).c_str());
    loaded.report_profile("position");
    return 0;
}

}  // namespace llmc
