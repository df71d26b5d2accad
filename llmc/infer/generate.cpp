#include "llmc/infer/generate.h"

#include <algorithm>

#include "llmc/base/rng.h"

namespace llmc {

int64_t rows_with_fill(const ModelConfig& config, int64_t prompts) {
    const int64_t together = rows_together(config);
    return (prompts + together - 1) / together * together;
}

namespace {

using Sequences = std::vector<std::vector<int32_t>>;

void check_prompts(const Model& model, const Sequences& prompts, const Sequences& fillers, GroupFill fill) {
    if (prompts.empty()) input_error("there is no prompt to continue");
    if (model.config.balanced_routing && has_block(model.config, "moe_token_choice"))
        input_error("this model was trained with --balanced-routing, which ignores the router: it cannot generate");
    for (size_t i = 0; i < prompts.size(); i++) {
        if (prompts[i].empty()) input_error("prompt ", i + 1, " is empty");
        if (int64_t(prompts[i].size()) >= model.config.context)
            input_error("prompt ", i + 1, " has ", prompts[i].size(), " tokens; the model's context is ",
                        model.config.context);
    }
    const bool short_group = rows_with_fill(model.config, int64_t(prompts.size())) > int64_t(prompts.size());
    if (fill == GroupFill::data && short_group && fillers.empty())
        input_error("the checkpoint carries no sequences to fill MoT groups with: use --group-fill self or zero");
}

// A private run of the model: an arena made to measure by counting the calls it will serve.
struct Workbench {
    Context& ctx;
    Arena arena;
    Workbench(Context& ctx, const Model& model, const std::function<void(Model&, Arena&)>& calls)
        : ctx(ctx), arena("activations", ctx) {
        Context counting({.threads = ctx.threads, .counting = true});
        Model twin(model.config, model.precision, true, counting);
        twin.allocate(false);
        Arena measure("activations", counting);
        calls(twin, measure);
        const int64_t needed = measure.peak(), available = device_memory_available(ctx);
        if (needed > available)
            input_error("this needs ", needed >> 20, " MiB beside the model but ", available >> 20,
                        " MiB are available");
        arena.allocate(measure.peak());
    }
};

// Logits of one row on the host as float, whatever the model computes in.
const float* row_of(const std::vector<float>& logits, int64_t row, int64_t vocab) {
    return logits.data() + row * vocab;
}

void download_logits(std::vector<float>& host, Tensor logits, Context& ctx) {
    if (logits.dtype == DType::f32) return download(host.data(), logits, ctx);
    std::vector<double> wide(host.size());
    download(wide.data(), logits, ctx);
    std::copy(wide.begin(), wide.end(), host.begin());
}

}  // namespace

std::vector<std::vector<int32_t>> generate(Model& model, const Sequences& prompts, const Sequences& fillers,
                                           const GenerateOptions& options, Context& ctx,
                                           const TokenCallback& on_token) {
    check_prompts(model, prompts, fillers, options.fill);
    check_sampling(options.sampling);
    const int64_t P = int64_t(prompts.size()), rows = rows_with_fill(model.config, P), V = model.config.vocab_size;
    EvalOptions eval{.discrete = options.discrete};
    if (options.fill == GroupFill::zero) eval.live_rows = P;

    UnitHooks hooks;
    Tensor tokens, logits;
    Generation generation;
    auto begin = [&](Model& m, Arena& arena) {
        generation = m.start_generation(rows, arena);
        tokens = arena.tensor("tokens", DType::i32, {rows, 1});
        logits = arena.tensor("logits", m.stat(), {rows, V});
    };
    Workbench bench(ctx, model, [&](Model& m, Arena& arena) {
        begin(m, arena);
        m.extend(logits, tokens, generation, eval, arena, hooks);
    });
    begin(model, bench.arena);

    size_t longest = 0;
    for (const auto& prompt : prompts) longest = std::max(longest, prompt.size());
    const int64_t room = model.config.context - int64_t(longest);
    const int64_t last = int64_t(longest) + std::min(room, options.max_tokens);  // positions that may be filled
    std::vector<RandomStream> streams;
    for (int64_t i = 0; i < P; i++) streams.emplace_back(options.seed, str("generate prompt ", i));
    Sequences text = prompts, fresh(prompts.size());
    std::vector<bool> finished(prompts.size(), false);
    std::vector<int32_t> column(static_cast<size_t>(rows));
    std::vector<float> host_logits(size_t(rows * V));

    for (int64_t t = 0; t + 1 < last; t++) {
        const Range range("position", ctx);
        for (int64_t r = 0; r < rows; r++) {  // what stands at position t; a finished row repeats its last token
            const auto& source = r < P || options.fill != GroupFill::data ? text[size_t(r % P)]
                                                                          : fillers[size_t(r - P) % fillers.size()];
            column[size_t(r)] = source[std::min(size_t(t), source.size() - 1)];
        }
        upload(tokens, column.data(), ctx);
        model.extend(logits, tokens, generation, eval, bench.arena, hooks);
        bool drawing = false;
        for (int64_t p = 0; p < P; p++) drawing |= !finished[size_t(p)] && t + 1 >= int64_t(text[size_t(p)].size());
        if (!drawing) {
            if (std::all_of(finished.begin(), finished.end(), [](bool f) { return f; })) break;
            continue;  // every live prompt is still being read
        }
        download_logits(host_logits, logits, ctx);
        for (int64_t p = 0; p < P; p++) {
            const size_t i = size_t(p);
            if (finished[i] || t + 1 < int64_t(text[i].size())) continue;
            int32_t next =
                sample(row_of(host_logits, p, V), V, options.sampling, streams[i].uniform(uint64_t(fresh[i].size())));
            if (next == options.end_of_text) {
                finished[i] = true;
                continue;
            }
            text[i].push_back(next);
            fresh[i].push_back(next);
            if (on_token) on_token(p, next);
            if (int64_t(fresh[i].size()) >= options.max_tokens) finished[i] = true;
        }
    }
    return fresh;
}

double evaluate_filled(Model& model, const EvalSequences& sequences, int64_t count, const Sequences& fillers,
                       GroupFill fill, Context& ctx) {
    const int64_t T = model.config.context, rows = rows_with_fill(model.config, 1);
    if (fill == GroupFill::data && rows > 1 && fillers.empty())
        input_error("there are no sequences to fill MoT groups with");
    EvalOptions eval;
    if (fill == GroupFill::zero) eval.live_rows = 1;
    UnitHooks hooks;
    Tensor device_tokens, device_targets, losses;
    auto begin = [&](Model& m, Arena& arena) {
        device_tokens = arena.tensor("tokens", DType::i32, {rows, T});
        device_targets = arena.tensor("targets", DType::i32, {rows, T});
        losses = arena.tensor("losses", m.stat(), {rows * T});
    };
    Workbench bench(ctx, model, [&](Model& m, Arena& arena) {
        begin(m, arena);
        m.evaluate(losses, device_tokens, device_targets, eval, arena, hooks);
    });
    begin(model, bench.arena);

    std::vector<int32_t> batch(size_t(rows * T)), wanted(size_t(rows * T), -1);  // only row 0 counts
    std::vector<double> host64(size_t(rows * T));
    std::vector<float> host32(size_t(rows * T));
    double sum = 0;
    int64_t tokens = 0;
    for (int64_t i = 0; i < count; i++) {
        const Range range("evaluation", ctx);
        sequences.fill(batch.data(), wanted.data(), 1, i, count);
        for (int64_t r = 1; r < rows; r++) {
            const bool filler = fill == GroupFill::data;
            const int32_t* source = filler ? fillers[size_t(r - 1) % fillers.size()].data() : batch.data();
            std::copy_n(source, T, batch.begin() + r * T);
        }
        upload(device_tokens, batch.data(), ctx);
        upload(device_targets, wanted.data(), ctx);
        model.evaluate(losses, device_tokens, device_targets, eval, bench.arena, hooks);
        if (losses.dtype == DType::f64)
            download(host64.data(), losses, ctx);
        else
            download(host32.data(), losses, ctx), std::copy(host32.begin(), host32.end(), host64.begin());
        for (int64_t t = 0; t < T; t++)
            if (wanted[size_t(t)] >= 0) sum += host64[size_t(t)], tokens++;
    }
    return sum / double(tokens);
}

}  // namespace llmc
