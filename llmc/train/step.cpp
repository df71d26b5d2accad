#include "llmc/train/step.h"

#include <algorithm>

#include "llmc/base/rng.h"

namespace llmc {

Step::Step(Model& model, const TrainConfig& config, Arena& arena, UnitHooks& hooks, Context& ctx, bool graphs,
           SharedUnits* shared)
    : model(model), config(config), arena(arena), hooks(shared ? *shared : hooks), ctx(ctx), graphs(graphs),
      shared(shared) {
    const int64_t B = config.micro_batch / model.sharding.group_ranks, T = model.config.context;
    tokens = arena.tensor("tokens", DType::i32, {B, T});
    targets = arena.tensor("targets", DType::i32, {B, T});
    losses = arena.tensor("losses", model.stat(), {B * T});
    const int64_t words = sizeof(StepState) / sizeof(int32_t);
    step = step_state_tensor(arena.tensor("step state", DType::i32, {words}).data);
    eval_step = step_state_tensor(arena.tensor("evaluation sums", DType::i32, {words}).data);
    metric_values = arena.tensor("metrics", DType::f64, {model.metric_count()});
    if (has_mot(model.config) && model.config.group_order == "random")
        draw = arena.tensor("draw", DType::i32, {1});
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
                config.recompute == "blocks", arena, hooks);
    loss_accumulate(step, losses, targets.view({targets.numel()}), ctx);
}

void Step::update() {
    if (!graphs) return enqueue_update();
    update_graph.run(ctx, [&] { enqueue_update(); });
}

void Step::enqueue_update() {
    const Range range("update");
    if (shared) shared->finish_gradients();
    const bool slices = model.sharding.moments();  // what this rank updates of every unit
    for (const ParamPart& part : parts_of(model.table, model.grads, slices))
        if (part.spec.start > 0) freeze_until(part.data, step, part.spec.start, ctx);
    sum_squares();
    step_decide(step, config.clip, config.beta1, config.beta2, ctx);
    AdamW options{config.beta1, config.beta2, config.adam_eps, config.weight_decay, config.stochastic_rounding,
                  uint64_t(config.seed) ^ hash_of("stochastic rounding")};
    for (const Unit& unit : model.table.units) {
        auto mine = [&](const Tensor& buffer) {
            return slices ? slice_range(model.table, unit, buffer) : unit_range(unit, buffer);
        };
        const int64_t begin = slices ? unit.slice_begin() : 0;
        const int64_t decayed = std::clamp<int64_t>(unit.decayed - begin, 0, mine(model.params).numel());
        options.first_index = unit.first_index + begin;
        adamw_update(mine(model.params), model.precision.compute_copy() ? mine(model.compute) : Tensor{},
                     mine(model.moment1), mine(model.moment2), mine(model.grads), step, decayed, options, ctx);
    }
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

std::vector<double> Step::metrics() {
    std::vector<double> values(size_t(metric_values.numel()));
    if (shared) {  // the last micro-batch is the last rank's
        Comm& all = shared->mesh.all;
        all.after_compute();
        all.broadcast(metric_values, all.size - 1);
        all.before_compute();
    }
    download(values.data(), metric_values, ctx);
    return values;
}

Step::LossSum Step::evaluate(const int32_t* host_tokens, const int32_t* host_targets, const EvalOptions& options) {
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
