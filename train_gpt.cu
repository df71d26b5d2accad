// train_gpt: a dense GPT, forward and backward written out op by op. The place to start reading.
//
//   x      = token row + position row                                                  (learned positions)
//   x     += Wproj attention(Wqkv norm1(x))         x += Wdown relu(Wup norm2(x) + b) + b     for every layer
//   logits = Whead x,    loss = mean over all tokens of logsumexp(logits) - logits[target]
//
// This is the dense baseline of Antoniak et al. 2023: norms before each branch, no final norm, head not tied to the
// embedding, biases only in the feed-forward. What each op computes stands in llmc/ops/ops.h; this file is what a model
// is made of them. Data, schedule, checkpoints and log come from the library. train_mot is the full trainer: on the
// model `Lx(attention ffn)` it computes the same numbers, and it reads the checkpoints written here.
//
// Letters: B sequences, T positions, C = d_model, H heads, F hidden size of the feed-forward, V vocabulary, L layers.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <optional>

#include "llmc/base/version.h"
#include "llmc/checkpoint/checkpoint.h"
#include "llmc/data/loader.h"
#include "llmc/infer/evaluate.h"
#include "llmc/model/initialize.h"
#include "llmc/model/params.h"
#include "llmc/ops/arena.h"
#include "llmc/planner/plan.h"
#include "llmc/step/schedule.h"
#include "llmc/train/flags.h"
#include "llmc/train/log.h"
#include "llmc/train/resume.h"
#include "llmc/train/run_directory.h"
#include "llmc/train/signals.h"

using namespace llmc;

namespace {

struct Options {
    ModelConfig model;  // heads, d_model, context, vocab_size, ...: what this file does not offer keeps its default
    TrainConfig train;  // train.micro_batch is B
    int64_t layers = 4;
    std::string data, run_dir;
    int threads = 0;
};

// ---------------------------------------------------------------------------------------------------------- parameters

// Every tensor, once: name, shape, initialisation. A unit is one flat range of the parameter buffer.
ParamTable declare_parameters(const Options& o) {
    const int64_t C = o.model.d_model, F = o.model.d_ff, V = o.model.vocab_size;
    ParamTable table;
    auto unit = [&](const std::string& name) -> Unit& {
        table.units.push_back({name, false, 0, 0, 0, {}, name});
        return table.units.back();
    };
    Unit& embedding = unit("embedding");
    embedding.weight("token.weight", {V, C}, 1);
    embedding.weight("position.weight", {o.model.context, C}, 1);
    for (int64_t l = 0; l < o.layers; l++) {
        Unit& attention = unit(str("blocks.", 2 * l));
        attention.ones("norm.weight", {C});
        attention.zeros("norm.bias", {C});
        attention.weight("qkv.weight", {3 * C, C}, C);
        attention.weight("proj.weight", {C, C}, C);
        Unit& ffn = unit(str("blocks.", 2 * l + 1));
        ffn.ones("norm.weight", {C});
        ffn.zeros("norm.bias", {C});
        ffn.weight("up.weight", {F, C}, C);
        ffn.weight("down.weight", {C, F}, F);
        ffn.bias("up.bias", {F}, C);
        ffn.bias("down.bias", {C}, F);
    }
    unit("head").weight("weight", {V, C}, C);
    table.finish(true);  // weight decay on everything, as in the paper
    return table;
}

// The tensors inside a buffer that is laid out like the table: parameters, or their gradients.
struct Layer {
    Tensor norm1_weight, norm1_bias;      // [C]
    Tensor qkv, proj;                     // [3C,C], [C,C]
    Tensor norm2_weight, norm2_bias;      // [C]
    Tensor up, up_bias, down, down_bias;  // [F,C], [F], [C,F], [C]
};
struct Weights {
    Tensor token, position;               // [V,C], [context,C]
    std::vector<Layer> layers;
    Tensor head;                          // [V,C]
};

Weights cut(const ParamTable& table, const Tensor& buffer, int64_t layers) {
    auto get = [&](const std::string& name) {
        ParamTable::Found found = table.find(name);
        return view_of(*found.spec, unit_range(*found.unit, buffer));
    };
    Weights w;
    w.token = get("embedding.token.weight"), w.position = get("embedding.position.weight");
    for (int64_t l = 0; l < layers; l++) {
        const std::string a = str("blocks.", 2 * l, "."), f = str("blocks.", 2 * l + 1, ".");
        w.layers.push_back({get(a + "norm.weight"), get(a + "norm.bias"), get(a + "qkv.weight"), get(a + "proj.weight"),
                            get(f + "norm.weight"), get(f + "norm.bias"), get(f + "up.weight"), get(f + "up.bias"),
                            get(f + "down.weight"), get(f + "down.bias")});
    }
    w.head = get("head.weight");
    return w;
}

// --------------------------------------------------------------------------------------------------------- activations

struct LayerActivations {     // what backward needs of one layer
    Tensor x1;                // [B,T,C] residual stream that enters the attention half
    Tensor mean1, rstd1;      // [B,T]
    Tensor norm1, qkv;        // [B,T,C], [B,T,3C]
    Tensor attended, lse;     // [B,T,C], [B,H,T]
    Tensor x2, mean2, rstd2;  // the same for the feed-forward half
    Tensor norm2, hidden;     // [B,T,C], [B,T,F]
};
struct Activations {
    Tensor tokens, targets;                                 // [B,T] i32
    std::vector<LayerActivations> layers;
    Tensor branch, h, losses;                               // [B,T,C], [B,T,C], [B*T]
    Tensor dstream, dnorm, dattended, dqkv, dhidden;        // scratch of backward: like x, norm, attended, qkv, hidden
    Tensor step, eval_step;                                 // StepState: sums, norm, learning rate (see ops.h)
};

Activations make_activations(const Options& o, Arena& arena) {
    const int64_t B = o.train.micro_batch, T = o.model.context, C = o.model.d_model, F = o.model.d_ff;
    auto f32 = [&](const char* name, Shape shape) { return arena.tensor(name, DType::f32, shape); };
    auto wide = [&](const char* name, int64_t width) { return f32(name, {B, T, width}); };
    auto i32 = [&](const char* name, Shape shape) { return arena.tensor(name, DType::i32, shape); };
    const Shape state{sizeof(StepState) / sizeof(int32_t)};
    Activations a;
    a.tokens = i32("tokens", {B, T}), a.targets = i32("targets", {B, T});
    for (int64_t l = 0; l < o.layers; l++)
        a.layers.push_back({wide("x1", C), f32("mean1", {B, T}), f32("rstd1", {B, T}), wide("norm1", C),
                            wide("qkv", 3 * C), wide("attended", C), f32("lse", {B, o.model.heads, T}),
                            wide("x2", C), f32("mean2", {B, T}), f32("rstd2", {B, T}), wide("norm2", C),
                            wide("hidden", F)});
    a.branch = wide("branch", C), a.h = wide("h", C), a.losses = f32("losses", {B * T});
    a.dstream = wide("dstream", C), a.dnorm = wide("dnorm", C), a.dattended = wide("dattended", C);
    a.dqkv = wide("dqkv", 3 * C), a.dhidden = wide("dhidden", F);
    a.step = step_state_tensor(i32("step state", state).data);
    a.eval_step = step_state_tensor(i32("evaluation sums", state).data);
    return a;
}

// ---------------------------------------------------------------------------------------------------------- the passes

constexpr double eps = 1e-5;  // of LayerNorm
constexpr Norm layernorm = Norm::layernorm;
constexpr Activation relu = Activation::relu;

struct Gpt {
    const Options o;
    Context& ctx;
    const ParamTable table;
    Arena memory;
    Tensor params, grads, moment1, moment2;  // [table.size]: weights, gradients, Adam's moments, one layout
    Weights w, dw;                           // views into params and grads
    Activations a;

    Gpt(const Options& options, Context& ctx)
        : o(options), ctx(ctx), table(declare_parameters(o)), memory("memory", ctx) {
        lay_out();  // with fake addresses, to learn the size
        const int64_t bytes = memory.peak();
        memory.release(0);
        memory.allocate(bytes);
        lay_out();
        for (const Tensor& t : {params, grads, moment1, moment2}) fill(t, 0, ctx);
        StepState zero;
        upload(a.step, &zero, ctx);
        upload(a.eval_step, &zero, ctx);
        initialize_parameters(table, params, o.model, uint64_t(o.train.seed), ctx);
    }

    void lay_out() {
        params = memory.tensor("parameters", DType::f32, {table.size});
        grads = memory.tensor("gradients", DType::f32, {table.size});
        moment1 = memory.tensor("adam m", DType::f32, {table.size});
        moment2 = memory.tensor("adam v", DType::f32, {table.size});
        w = cut(table, params, o.layers), dw = cut(table, grads, o.layers);
        a = make_activations(o, memory);
    }

    // Puts a batch (host, [B,T]) on the device and computes h [B,T,C], the input of the head.
    void forward(const int32_t* tokens, const int32_t* targets) {
        upload(a.tokens, tokens, ctx);
        upload(a.targets, targets, ctx);
        embedding_forward(a.layers[0].x1, a.tokens, w.token, w.position, 0, ctx);
        for (size_t l = 0; l < a.layers.size(); l++) {
            const Layer& p = w.layers[l];
            LayerActivations& s = a.layers[l];
            // attention: branch = Wproj attention(Wqkv norm1(x1)). The add of the branch before is fused into the norm.
            if (l == 0)
                norm_forward(s.norm1, s.mean1, s.rstd1, s.x1, p.norm1_weight, p.norm1_bias, layernorm, eps, ctx);
            else
                residual_norm_forward(s.x1, s.norm1, s.mean1, s.rstd1, a.layers[l - 1].x2, a.branch, p.norm1_weight,
                                      p.norm1_bias, layernorm, eps, ctx);
            matmul(s.qkv, s.norm1, p.qkv, {.transpose_b = true}, ctx);
            attention_forward(s.attended, s.lse, s.qkv, o.model.heads, ctx);
            matmul(a.branch, s.attended, p.proj, {.transpose_b = true}, ctx);
            // feed-forward: x2 = x1 + branch, branch = Wdown relu(Wup norm2(x2) + b) + b
            residual_norm_forward(s.x2, s.norm2, s.mean2, s.rstd2, s.x1, a.branch, p.norm2_weight, p.norm2_bias,
                                  layernorm, eps, ctx);
            matmul(s.hidden, s.norm2, p.up, {.transpose_b = true, .bias = p.up_bias, .activation = relu}, ctx);
            matmul(a.branch, s.hidden, p.down, {.transpose_b = true, .bias = p.down_bias}, ctx);
        }
        add(a.h, a.layers.back().x2, a.branch, ctx);
    }

    // Losses of the batch that forward has seen, and the gradient of their mean: all of grads is overwritten.
    void backward() {
        const int64_t N = a.losses.numel(), C = o.model.d_model;  // N = B*T
        head_loss(a.losses, a.dstream.view({N, C}), dw.head, a.h.view({N, C}), w.head, a.targets.view({N}),
                  1.0 / double(N), false, ctx);
        // dstream is the gradient of the residual stream; each half adds to it what comes back through its norm.
        for (size_t l = a.layers.size(); l-- > 0;) {
            const Layer &p = w.layers[l], &dp = dw.layers[l];
            LayerActivations& s = a.layers[l];
            // feed-forward
            matmul(a.dhidden, a.dstream, p.down, {}, ctx);
            matmul(dp.down, a.dstream, s.hidden, {.transpose_a = true}, ctx);
            bias_backward(dp.down_bias, a.dstream, false, ctx);
            activation_backward(a.dhidden, {}, a.dhidden, s.hidden, relu, ctx);
            matmul(a.dnorm, a.dhidden, p.up, {}, ctx);
            matmul(dp.up, a.dhidden, s.norm2, {.transpose_a = true}, ctx);
            bias_backward(dp.up_bias, a.dhidden, false, ctx);
            norm_backward(a.dstream, dp.norm2_weight, dp.norm2_bias, a.dnorm, s.x2, s.mean2, s.rstd2, p.norm2_weight,
                          layernorm, true, false, ctx);
            // attention
            matmul(a.dattended, a.dstream, p.proj, {}, ctx);
            matmul(dp.proj, a.dstream, s.attended, {.transpose_a = true}, ctx);
            attention_backward(a.dqkv, a.dattended, s.qkv, s.attended, s.lse, o.model.heads, ctx);
            matmul(a.dnorm, a.dqkv, p.qkv, {}, ctx);
            matmul(dp.qkv, a.dqkv, s.norm1, {.transpose_a = true}, ctx);
            norm_backward(a.dstream, dp.norm1_weight, dp.norm1_bias, a.dnorm, s.x1, s.mean1, s.rstd1, p.norm1_weight,
                          layernorm, true, false, ctx);
        }
        embedding_backward(dw.token, dw.position, a.dstream, a.tokens, false, false, ctx);
    }

    // One training step. Norm, clipping and the decision to skip a step that is not finite stay on the device.
    void step(const int32_t* tokens, const int32_t* targets, double lr) {
        const TrainConfig& t = o.train;
        step_begin(a.step, lr, ctx);
        forward(tokens, targets);
        backward();
        loss_accumulate(a.step, a.losses, a.targets.view({a.losses.numel()}), ctx);
        grad_norm_accumulate(a.step, grads, ctx);
        step_decide(a.step, t.clip, t.beta1, t.beta2, ctx);
        adamw_update(params, {}, moment1, moment2, grads, a.step, table.size,
                     {t.beta1, t.beta2, t.adam_eps, t.weight_decay}, ctx);
    }

    // Sum and count of the losses of a batch that is not trained on are added to a.eval_step.
    void evaluate(const int32_t* tokens, const int32_t* targets) {
        const int64_t N = a.losses.numel();
        forward(tokens, targets);
        head_loss(a.losses, {}, {}, a.h.view({N, o.model.d_model}), w.head, a.targets.view({N}), 0, false, ctx);
        loss_accumulate(a.eval_step, a.losses, a.targets.view({N}), ctx);
    }

    StepState read(Tensor state) const {  // waits for the device
        StepState host;
        download(&host, state, ctx);
        return host;
    }
};

// ------------------------------------------------------------------------------------------------------------- the run

struct Run {
    const Options o;
    const Dataset data;
    const Loader loader;
    std::optional<EvalSequences> validation;
    Context ctx;
    Gpt gpt;
    std::optional<RunLog> log;
    std::vector<int32_t> tokens, targets;  // [B,T] on the host
    double seconds = 0;                    // of training so far

    Run(const Options& options, Dataset dataset, RunLock& lock)
        : o(options), data(std::move(dataset)), loader(data.train, o.model.context, uint64_t(o.train.seed), true),
          ctx({.threads = o.threads}), gpt((prepare(), o), ctx), tokens(size_t(o.train.micro_batch * o.model.context)),
          targets(tokens.size()) {
        if (o.run_dir.empty()) return;
        if (lock.make(o.run_dir) && find_latest(o.run_dir)) refuse_second_run(o.run_dir);
        start_run_directory(o.run_dir, describe_run(o.model, o.train, data), data);
        std::filesystem::remove(o.run_dir + "/log.jsonl");  // of a run that ended before its first checkpoint
        log.emplace(o.run_dir + "/log.jsonl", describe_run(o.model, o.train, data));
    }

    // One step on a Context that only counts says what the run needs before anything is allocated.
    void prepare() {
        if (!data.val.shards.empty()) validation.emplace(data.val, o.model.context, eval_seed);
        Context counting({.threads = o.threads, .counting = true});
        Gpt dry(o, counting);
        dry.step(nullptr, nullptr, 0);
        const int64_t needed = dry.memory.peak() + counting.workspace_needed, available = device_memory_available(ctx);
        std::printf("%s parameters, %s of memory\n", count_text(double(dry.table.count())).c_str(),
                    bytes_text(double(needed)).c_str());
        if (needed > available)
            input_error("this run needs ", bytes_text(double(needed)), " of memory but ", bytes_text(double(available)),
                        " are available: make --batch smaller");
        reserve_workspace(counting.workspace_needed, ctx);
    }

    void record(const nlohmann::json& line) {
        if (log && !log->append(line)) std::fprintf(stderr, "warning: %s\n", log->problem().c_str());
    }

    // Mean loss of the first batches of the validation split: the same at every call.
    void validate(int64_t step) {
        if (!validation) return;
        step_begin(gpt.a.eval_step, 0, ctx);
        const int64_t B = o.train.micro_batch, count = validation->count(o.train.eval_batches * B);
        for (int64_t first = 0; first < count; first += B) {
            if (stop_signal()) return;
            validation->fill(tokens.data(), targets.data(), B, first, count);
            gpt.evaluate(tokens.data(), targets.data());
        }
        const StepState sums = gpt.read(gpt.a.eval_step);
        const double loss = sums.loss_sum / double(sums.loss_count);
        std::printf("step %7lld  validation loss %.4f\n", (long long)step, loss);
        record({{"step", step}, {"val_loss", loss}});
    }

    // False if it cannot be written (disk full). The checkpoint before it is still good then, and training can go on.
    bool save(int64_t step) {
        if (o.run_dir.empty()) return true;
        const StepState state = gpt.read(gpt.a.step);
        const LoaderState position = loader.state_at(step * o.train.micro_batch);
        const nlohmann::json j = checkpoint_state(describe_run(o.model, o.train, data), state, position, seconds, {});
        std::vector<NamedTensor> optimizer = named_tensors(gpt.table, gpt.moment1, "m.");
        for (const NamedTensor& t : named_tensors(gpt.table, gpt.moment2, "v.")) optimizer.push_back(t);
        try {
            save_checkpoint(o.run_dir, step, named_tensors(gpt.table, gpt.params, ""), optimizer, j, o.train.keep, ctx,
                            World::alone());
            return true;
        } catch (const RunError& e) {
            std::fprintf(stderr, "warning: the checkpoint of step %lld was not saved: %s\n", (long long)step, e.what());
            return false;
        }
    }

    int train() {
        const TrainConfig& t = o.train;
        const Schedule schedule{t.lr, t.warmup_steps, t.decay_steps, t.final_lr_fraction};
        auto due = [](int64_t interval, int64_t step) { return interval > 0 && step % interval == 0; };
        int64_t step = 0;
        bool sound = true;  // the last step counted
        while (step < t.steps && !stop_signal()) {
            const auto start = std::chrono::steady_clock::now();
            const double lr = learning_rate(schedule, step);
            loader.fill(tokens.data(), targets.data(), t.micro_batch, step * t.micro_batch);
            gpt.step(tokens.data(), targets.data(), lr);
            const StepState s = gpt.read(gpt.a.step);  // waits
            const double step_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            seconds += step_seconds;
            step++;
            const double loss = s.loss_sum / double(s.loss_count), rate = double(tokens.size()) / step_seconds;
            if (due(t.log_interval, step) || step == 1 || step == t.steps) {
                std::printf("step %7lld  loss %.6f  grad norm %.4f  lr %.2e  %.0f tokens/s%s\n", (long long)step, loss,
                            s.grad_norm, lr, rate, s.ok ? "" : "  skipped: not finite");
                std::fflush(stdout);
                record({{"step", step}, {"loss", loss}, {"grad_norm", s.grad_norm}, {"lr", lr}});
            }
            if (s.skipped_in_a_row >= t.max_skipped)
                run_error(s.skipped_in_a_row, " steps in a row had a loss or gradient that is not finite: lower --lr");
            if (s.broken) run_error("the update of step ", step, " made parameters infinite or NaN: lower --lr");
            if (due(t.eval_interval, step) || (t.eval_interval && step == t.steps)) validate(step);
            if (due(t.save_interval, step) && step < t.steps && !stop_signal() && s.ok) save(step);
            sound = s.ok;
        }
        if (!sound)
            run_error("the last step was skipped, because its loss or gradient is not finite: nothing is saved");
        if (!save(step)) return 1;
        return stop_signal() ? 128 + stop_signal() : 0;
    }
};

int run(Options o) {
    catch_stop_signals();
    RunLock lock;
    Dataset data = open_dataset(o.data);
    if (o.model.vocab_size == 0) o.model.vocab_size = data.vocab_size;
    if (o.train.decay_steps == 0) o.train.decay_steps = o.train.steps;
    o.model.pattern = str(o.layers, "x(attention ffn)");
    o.model = resolved(o.model);
    check_vocabulary(data, o.model.vocab_size);
    check_schedule({o.train.lr, o.train.warmup_steps, o.train.decay_steps, o.train.final_lr_fraction});
    if (!o.run_dir.empty()) {
        lock.take(o.run_dir);
        if (find_latest(o.run_dir)) input_error(o.run_dir, " holds a run already: choose another --run-dir");
    }
    const int code = Run(o, std::move(data), lock).train();
    if (!o.run_dir.empty()) forgive_lost_output();  // else it is all there is
    return code;
}

}  // namespace

int main(int argc, char** argv) {
    hold_standard_streams();
    take_signals_in_their_own_thread();
    Options o;
    o.model.vocab_size = 0, o.model.d_model = 128, o.model.heads = 4, o.model.context = 128, o.model.init_scale = 1;
    o.train.steps = 1000, o.train.lr = 6e-3, o.train.warmup_steps = 60;
    o.train.log_interval = 1, o.train.eval_interval = 200;
    CLI::App app{"Trains a dense GPT: the short program to read first. train_mot is the full trainer."};
    app.add_option("--data", o.data, "data directory made by data/prepare, or a .bin shard")->required();
    app.add_option("--run-dir", o.run_dir, "directory for the log and checkpoints; without it nothing is saved");
    app.add_option("--layers", o.layers, "number of layers")->transform(whole_number(1, 10000))->capture_default_str();
    app.add_option("--batch", o.train.micro_batch, "sequences in a step")
        ->transform(whole_number(1, 1 << 24))
        ->capture_default_str();
    app.add_option("--threads", o.threads, "number of CPU threads; 0: all")
        ->transform(whole_number(0, 4096))
        ->capture_default_str();
    app.set_version_flag("--version", [] {
        Context ctx({.counting = true});
        return version_text(backend_description(ctx));
    });
    const std::set<std::string> offered = {
        "d_model", "heads", "d_ff", "context", "vocab_size", "init", "init_scale", "steps", "seed", "lr", "clip",
        "warmup_steps", "decay_steps", "final_lr_fraction", "weight_decay", "log_interval", "eval_interval",
        "eval_batches", "save_interval", "keep"};
    auto offer = [&](const FieldInfo& info, auto& field) { if (offered.count(info.name)) add_field(app, info, field); };
    for_each_model_field(o.model, offer);
    for_each_train_field(o.train, offer);
    return run_program(app, argc, argv, [&] { return run(o); });
}
