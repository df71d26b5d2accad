// train_mot: trains, evaluates and runs language models made of attention, dense and Mixture-of-Tokens blocks.
//
// This file only reads the command line. Where to read on: llmc/train/trainer.cpp (the run), llmc/step/step.cpp (one
// step), llmc/model/model.cpp (forward and backward), llmc/model/blocks/mot.cpp (the block), llmc/ops/ops.h (the
// operations).
#include "llmc/base/standard_output.h"
#include "llmc/base/version.h"
#include "llmc/data/shards.h"
#include "llmc/planner/scaling_flags.h"
#include "llmc/train/commands.h"
#include "llmc/train/flags.h"
#include "llmc/train/signals.h"
#include "llmc/train/trainer.h"
#include "llmc/train/transition.h"

using namespace llmc;

namespace {

struct CommandLine {
    CLI::App app{
        "Trains language models of attention, dense and Mixture-of-Tokens blocks.\n"
        "Sub-commands: train (the default), transition, eval, generate, info, plan. Example:\n"
        "  train_mot --data data/prose --run-dir runs/mot --config configs/tiny_mot.toml"};
    ModelConfig model;
    TrainConfig train;
    RunOptions run;
    EvalCommand eval;
    GenerateCommand generate;
    TransitionCommand transition;
    ScalingCommand plan;
    int ranks = 1;
    bool dry_run = false, resume = false, auto_resume = false;
    double comm_timeout = 600;
    CLI::App *train_app, *transition_app, *eval_app, *generate_app, *info_app, *plan_app;

    CommandLine() {
        app.option_defaults()
            ->take_last();  // a flag given twice: the last one counts, so that scripts can append their own
        app.set_version_flag("--version", [this] {
            Context ctx({.threads = run.threads, .counting = true});
            return version_text(backend_description(ctx));
        });
        add_fields(app, model, train);
        app.add_option("--data", run.data, "data directory made by data/prepare, or a .bin shard")->group("Run");
        app.add_option("--run-dir", run.run_dir, "directory for checkpoints, log.jsonl and the configuration")
            ->group("Run");
        app.add_flag("--resume", resume, "continue from the last checkpoint in --run-dir")->group("Run");
        app.add_flag("--auto-resume", auto_resume, "continue if --run-dir holds a checkpoint, else start a new run")
            ->group("Run");
        app.add_flag("--extend", run.extend,
                     "resume: if --steps is after the end of the schedule, begin a new one at the checkpoint; --lr, "
                     "--warmup-steps, --decay-steps and --final-lr-fraction may be new")
            ->group("Run");
        app.add_option("--threads", run.threads, "number of CPU threads; 0: all that this process may use")
            ->transform(whole_number(0, 4096))
            ->group("Run");
        app.add_option("--comm-timeout", comm_timeout,
                       "end the run when a process waits this many seconds for the others")
            ->transform(real_number(1.0, 1e9))
            ->capture_default_str()
            ->group("Run");
        app.add_flag("--dry-run", dry_run, "print parameters, FLOPs and memory of the run, and stop")->group("Run");
        app.add_option("--ranks", ranks, "info and --dry-run: number of processes to plan for")
            ->transform(whole_number(1, 1 << 20))
            ->capture_default_str()
            ->group("Run");
        app.add_flag("--profile", run.profile, "time every op and print a table at the end")->group("Run");
        app.add_option("--trace", run.trace, "--profile, and write the last steps to this file for chrome://tracing")
            ->group("Run");
        app.add_flag("--cuda-graph", run.cuda_graph,
                     "GPU, one process: launch each micro-batch, and the update, as a CUDA graph")
            ->group("Run");
        app.require_subcommand(0, 1);

        train_app = app.add_subcommand("train", "train a model (the default)")->fallthrough();
        info_app =
            app.add_subcommand("info", "parameters, FLOPs and memory of a model; the same as --dry-run")->fallthrough();

        plan_app = add_plan_command(app, plan);

        transition_app =
            app.add_subcommand("transition",
                               "convert a trained Mixture of Tokens to a sparse mixture of experts and train "
                               "that as a new run; takes the flags of train, and --steps includes those "
                               "of the old run")
                ->fallthrough();
        transition_app->add_option("--from", transition.from, "run directory or checkpoint directory to convert")
            ->required();
        add_word(*transition_app, "--to", transition.to, "kind of the new blocks: token-choice or expert-choice",
                 {"token-choice", "expert-choice"})
            ->required();
        transition_app->add_flag("--reset-optimizer", transition.reset_optimizer,
                                 "start with zero moments; default: keep those of the old run");
        transition_app->add_flag("--reset-schedule", transition.reset_schedule,
                                 "restart warm-up and cosine; default: continue the old schedule");

        eval_app = app.add_subcommand("eval", "compute the loss of a checkpoint");
        eval_app->add_option("--checkpoint", eval.checkpoint, "run directory or checkpoint directory")->required();
        eval_app->add_option("--data", eval.data, "data directory made by data/prepare, or a .bin shard")->required();
        eval_app->add_option("--split", eval.split, "part of the data: train or val")
            ->capture_default_str()
            ->check(CLI::IsMember({"train", "val"}));
        eval_app
            ->add_option("--eval-batches", eval.batches,
                         "number of micro-batches, with --group-fill of sequences; 0: all of the split")
            ->capture_default_str()
            ->transform(whole_number(0, 1000000000));
        auto* rows =
            eval_app->add_option("--micro-batch", eval.micro_batch, "sequences in a micro-batch; 0: as in training")
                ->transform(whole_number());
        auto* group = eval_app->add_option("--group-size", eval.group_size, "MoT group size; 0: as in training")
                          ->transform(whole_number());
        auto* sizes = eval_app
                          ->add_option("--eval-group-sizes", eval.group_sizes,
                                       "print a table for these MoT group sizes, e.g. 8,16,32")
                          ->excludes(group);
        auto* as = add_word(*eval_app, "--as", eval.as,
                            "use the weights in another kind of block: mot, token-choice, expert-choice");
        auto* discrete = eval_app->add_flag("--discrete", eval.discrete, "use one-hot merge and emit weights");
        add_word(*eval_app, "--group-fill", eval.group_fill,
                 "evaluate each sequence alone and fill its MoT group with: data, self, zero")
            ->excludes(rows)
            ->excludes(as)
            ->excludes(sizes)
            ->excludes(group)
            ->excludes(discrete);
        eval_app->add_option("--threads", eval.threads, "number of CPU threads; 0: all")
            ->transform(whole_number(0, 4096));
        eval_app->add_flag("--profile", eval.profile, "time every op and print a table at the end");

        generate_app = app.add_subcommand("generate", "generate text that continues prompts");
        generate_app->add_option("--checkpoint", generate.checkpoint, "run directory or checkpoint directory")
            ->required();
        generate_app->add_option("--prompt", generate.prompts, "text to continue; repeat the flag for several prompts")
            ->required()
            ->take_all()
            ->allow_extra_args(false);  // or CLI11 takes "[INST] a, b [/INST]" for a list
        generate_app->add_option("--tokenizer", generate.tokenizer,
                                 "tokenizer rank file; default: the one saved with the run");
        generate_app
            ->add_option("--max-tokens", generate.options.max_tokens, "number of tokens to generate for each prompt")
            ->capture_default_str()
            ->transform(whole_number(1));
        generate_app
            ->add_option("--temperature", generate.options.sampling.temperature,
                         "sampling temperature; 0: always the likeliest token")
            ->capture_default_str()
            ->transform(real_number());
        generate_app
            ->add_option("--top-k", generate.options.sampling.top_k, "sample among the k likeliest tokens; 0: all")
            ->capture_default_str()
            ->transform(whole_number());
        generate_app
            ->add_option("--top-p", generate.options.sampling.top_p,
                         "sample among the fewest tokens of this total probability")
            ->capture_default_str()
            ->transform(real_number(0.0, 1.0));
        generate_app->add_option("--seed", generate.options.seed, "random seed for sampling")
            ->transform(whole_number())
            ->capture_default_str();
        add_word(*generate_app, "--group-fill", generate.options.fill,
                 "what to fill incomplete MoT groups with: data, self, zero")
            ->default_str(name_of(generate.options.fill));
        generate_app->add_flag("--discrete", generate.options.discrete, "use one-hot merge and emit weights");
        generate_app->add_option("--threads", generate.threads, "number of CPU threads; 0: all")
            ->transform(whole_number(0, 4096));
        generate_app->add_flag("--profile", generate.profile, "time every op and print a table at the end");
    }

    int execute(World& world) {
        if (model.granularity && model.expansion) check_overruled(model, given_fields(app, model, train));
        const bool trains = !*eval_app && !*generate_app && !*info_app && !*plan_app && !*transition_app && !dry_run;
        if (world.size > 1 && !trains)
            input_error("only training can use several processes, but there are ", world.size,
                        ": start this without "
                        "the launcher");
        world.set_timeout(comm_timeout);
        run.device = choose_device(world);
        if (trains && ranks > 1)
            input_error("--ranks is for info and --dry-run: start ", ranks, " processes with mpirun -np ", ranks);
        if (*plan_app && ranks > 1) input_error("--ranks is for info and --dry-run: say --gpus ", ranks);
        if (*eval_app) return run_eval(eval, world);
        if (*generate_app) return run_generate(generate, world);
        if ((dry_run && !*transition_app) || *info_app || *plan_app) {
            if (!run.data.empty() && !given_fields(app, model, train).count("vocab_size")) model.vocab_size = 0;
            if (!run.data.empty() && model.vocab_size == 0) model.vocab_size = open_dataset(run.data).vocab_size;
            if (train.decay_steps == 0) train.decay_steps = train.steps;
            plan.threads = run.threads, plan.choose_experts = !given_fields(app, model, train).count("expert_parallel");
            if (*plan_app) return run_scaling(model, train, plan);
            return show_info(model, train, run.threads, ranks);
        }
        if (run.data.empty()) input_error("--data is missing: make it with data/prepare, see data/README.md");
        if (run.run_dir.empty()) input_error("--run-dir is missing: where checkpoints and the log of this run go");
        run.resume = resume ? Resume::must : auto_resume ? Resume::if_there : Resume::never;
        if (run.extend && run.resume == Resume::never) input_error("--extend goes with --resume or --auto-resume");
        run.given = given_fields(app, model, train);
        run.profile |= !run.trace.empty();
        if (!run.given.count("vocab_size")) model.vocab_size = 0;  // the data's
        if (*transition_app) {
            if (run.resume != Resume::never)
                input_error("transition starts a new run: to continue it, use train --resume --run-dir ", run.run_dir);
            transition.dry_run = dry_run;
            return run_transition(transition, model, train, run, world);
        }
        return llmc::train(model, train, run, world);
    }
};

}  // namespace

int main(int argc, char** argv) {
    hold_standard_streams();
    take_signals_in_their_own_thread();
    CommandLine line;
    std::optional<World> world;  // outlives the run: a rank that fails must still be able to end the others
    try {
        world.emplace();
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return dynamic_cast<const InputError*>(&error) ? 2 : 1;
    }
    if (world->rank > 0 && !std::freopen("/dev/null", "w", stdout)) world->abort("/dev/null cannot be opened");
    return run_program(line.app, argc, argv, [&] { return line.execute(*world); },
                       [&](const std::string& what, int code) {
                           if (world->size > 1) world->abort(what, code);
                       });
}
