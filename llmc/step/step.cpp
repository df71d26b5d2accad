#include "llmc/step/step.h"

#include <algorithm>
#include <cmath>

#include "llmc/base/rng.h"

namespace llmc {

Step::Step(Model& model, Optimizer* optimizer, const TrainConfig& config, Arena& arena, UnitHooks& hooks, Context& ctx,
           bool graphs, SharedUnits* shared)
    : model(model), optimizer(optimizer), config(config), arena(arena), hooks(shared ? *shared : hooks), ctx(ctx),
      graphs(graphs), shared(shared) {
    const int64_t B = config.micro_batch / model.sharding.group_ranks, T = model.config.context;
    tokens = arena.tensor("tokens", DType::i32, {B, T});
    targets = arena.tensor("targets", DType::i32, {B, T});
    losses = arena.tensor("losses", model.stat(), {B * T});
    const int64_t words = sizeof(StepState) / sizeof(int32_t);
    step = step_state_tensor(arena.tensor("step state", DType::i32, {words}).data);
    eval_step = step_state_tensor(arena.tensor("evaluation sums", DType::i32, {words}).data);
    metric_values = arena.tensor("metrics", DType::f64, {model.metric_count()});
    if (shuffles_groups(model.config)) draw = arena.tensor("draw", DType::i32, {1});
    fill(metric_values, 0, ctx);
    set_state({});
}

void Step::begin(double lr, int64_t number) {
    first_of_step = number * config.grad_accumulation;
    step_begin(step, lr, ctx);
}

void Step::micro_batch(const int32_t* host_tokens, const int32_t* host_targets, int64_t k, bool statistics) {
    upload(tokens, host_tokens, ctx);
    upload(targets, host_targets, ctx);
    if (draw) {
        const RandomStream draws(uint64_t(config.seed), "random groups");
        const auto number = int32_t(draws.bits(uint64_t(first_of_step + k)) >> 33);  // new in every micro-batch and run
        upload(draw, &number, ctx);
    }
    const int64_t at_a_time = model.sharding.batches();
    const bool accumulate = k >= at_a_time;
    if (shared) shared->micro_batch(!accumulate, k + at_a_time >= config.grad_accumulation);
    if (!graphs) return enqueue_micro_batch(accumulate, statistics);
    micro_batch_graphs[accumulate][statistics].run(ctx, [&] { enqueue_micro_batch(accumulate, statistics); });
}

void Step::enqueue_micro_batch(bool accumulate, bool statistics) {
    const int64_t tokens_a_step = config.grad_accumulation * config.micro_batch * model.config.context;
    const double dloss = 1.0 / double(tokens_a_step);  // the step's loss is the mean over all tokens
    model.train({tokens, targets, losses, dloss, accumulate, statistics ? metric_values : Tensor{}, draw},
                config.recompute == Recompute::blocks, arena, hooks);
    loss_accumulate(step, losses, targets.view({targets.numel()}), ctx);
}

void Step::update() {
    if (!graphs) return enqueue_update();
    update_graph.run(ctx, [&] { enqueue_update(); });
}

void Step::enqueue_update() {
    const Range range("update", ctx);
    if (shared) shared->finish_gradients();
    for (const ParamPart& part : parts_of(model.table, model.grads, model.sharding.moments()))
        if (part.spec.start > 0) freeze_until(part.data, step, part.spec.start, ctx);
    sum_squares();
    step_decide(step, config.clip, config.beta1, config.beta2, ctx);
    for (const Unit& unit : model.table.units) optimizer->update(UnitSlice(model, unit), step, arena);
    if (shared) shared->spread_parameters();
}

// Of all gradients. Each rank does its slices.
void Step::sum_squares() {
    if (!shared || has_slices_only(model.table, model.grads)) grad_norm_accumulate(step, model.grads, ctx);
    else
        for (const Unit& unit : model.table.units)
            grad_norm_accumulate(step, slice_range(model.table, unit, model.grads), ctx);
    if (!shared) return;
    shared->mesh.all.after_compute();
    shared->mesh.all.all_reduce(step_sums(step));
    shared->mesh.all.before_compute();
}

StepState Step::state() {
    StepState state;
    download(&state, step, ctx);
    return state;
}

void Step::set_state(const StepState& state) { upload(step, &state, ctx); }

namespace {

// What would have been measured of all parts at once, which are equally large: means, and for every standard deviation,
// which is listed after its mean, that of the whole. (Of n elements in p parts, up to a factor 1 + (p-1) / 2n: one
// deviation divides by n - 1, parts do by n/p - 1.)
std::vector<double> pooled(const std::vector<std::vector<double>>& parts, const std::vector<MetricSlot>& slots) {
    if (parts.size() == 1) return parts[0];
    std::vector<double> values(parts[0].size());
    for (const auto& part : parts)
        for (size_t i = 0; i < values.size(); i++) values[i] += part[i] / double(parts.size());
    for (const MetricSlot& slot : slots) {
        if (!slot.name.ends_with("_std")) continue;
        const auto i = size_t(slot.first);
        double square = -values[i - 1] * values[i - 1];
        for (const auto& part : parts)
            square += (part[i] * part[i] + part[i - 1] * part[i - 1]) / double(parts.size());
        values[i] = std::sqrt(std::max(square, 0.0));
    }
    return values;
}

}  // namespace

std::vector<double> Step::metrics() {
    std::vector<double> values(size_t(metric_values.numel()));
    if (!shared) {
        download(values.data(), metric_values, ctx);
        return values;
    }
    const int64_t mark = arena.mark();
    Comm& all = shared->mesh.all;
    Tensor of_ranks = arena.tensor("metrics of all ranks", DType::f64, {all.size, metric_values.numel()});
    all.after_compute();
    all.all_gather(of_ranks, metric_values);
    all.before_compute();
    const int parts = model.sharding.group_ranks;  // the last micro-batch is that of the last ranks
    std::vector<std::vector<double>> of_parts;
    for (int64_t rank = all.size - parts; rank < all.size; rank++) {
        download(values.data(), of_ranks.slice(rank, rank + 1), ctx);
        of_parts.push_back(values);
    }
    arena.release(mark);
    return pooled(of_parts, model.metric_slots());
}

Step::LossSum Step::evaluate(const int32_t* host_tokens, const int32_t* host_targets, const EvalOptions& options) {
    const Range range("evaluation", ctx);
    upload(tokens, host_tokens, ctx);
    upload(targets, host_targets, ctx);
    step_begin(eval_step, 0, ctx);
    model.evaluate(losses, tokens, targets, options, arena, hooks);
    loss_accumulate(eval_step, losses, targets.view({targets.numel()}), ctx);
    StepState sums;
    download(&sums, eval_step, ctx);
    return {sums.loss_sum, sums.loss_count};
}

}  // namespace llmc
