#include "llmc/train/step.h"

#include "llmc/base/rng.h"

namespace llmc {

void SumGradients::after(const Unit& unit, Phase phase) {
    if (phase != Phase::backward || !last) return;
    comm.after_compute();
    comm.all_reduce(unit_range(unit, model.grads));
}

Step::Step(Model& model, const TrainConfig& config, Arena& arena, UnitHooks& hooks, Context& ctx, bool graphs,
           Comm* ranks)
    : model(model), config(config), arena(arena), hooks(hooks), ctx(ctx), graphs(graphs),
      comm(ranks && ranks->size > 1 ? ranks : nullptr) {
    if (comm) sum_gradients.emplace(model, *comm);
    const int64_t B = config.micro_batch, T = model.config.context;
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
    const int64_t ranks = comm ? comm->size : 1;
    const bool accumulate = k >= ranks;
    if (comm) sum_gradients->last = k + ranks >= config.grad_accumulation;
    if (!graphs) return enqueue_micro_batch(accumulate, statistics);
    micro_batch_graphs[accumulate][statistics].run(ctx, [&] { enqueue_micro_batch(accumulate, statistics); });
}

void Step::enqueue_micro_batch(bool accumulate, bool statistics) {
    const double dloss =
        1.0 / double(config.grad_accumulation * losses.numel());  // the step's loss is the mean over all tokens
    model.train({tokens, targets, losses, dloss, accumulate, statistics ? metric_values : Tensor{}, draw},
                config.recompute == "blocks", arena, comm ? *sum_gradients : hooks);
    loss_accumulate(step, losses, targets.view({targets.numel()}), ctx);
}

void Step::update() {
    if (!graphs) return enqueue_update();
    update_graph.run(ctx, [&] { enqueue_update(); });
}

void Step::enqueue_update() {
    const Range range("update");
    if (comm) {
        comm->after_compute();
        comm->all_reduce(step_loss_sums(step));
        comm->before_compute();
    }
    for (const Unit& unit : model.table.units)
        for (const ParamSpec& spec : unit.params) {
            Tensor grad = view_of(spec, unit_range(unit, model.grads));
            if (spec.start > 0) freeze_until(grad.view({grad.numel()}), step, spec.start, ctx);
        }
    grad_norm_accumulate(step, model.grads, ctx);
    step_decide(step, config.clip, config.beta1, config.beta2, ctx);
    AdamW options{config.beta1, config.beta2, config.adam_eps, config.weight_decay, config.stochastic_rounding,
                  uint64_t(config.seed) ^ hash_of("stochastic rounding")};
    for (const Unit& unit : model.table.units) {
        options.first_index = unit.offset;
        Tensor copy = model.precision.compute_copy() ? unit_range(unit, model.compute) : Tensor{};
        adamw_update(unit_range(unit, model.params), copy, unit_range(unit, model.moment1),
                     unit_range(unit, model.moment2), unit_range(unit, model.grads), step, unit.decayed, options, ctx);
    }
}

StepState Step::state() {
    StepState state;
    download(&state, step, ctx);
    return state;
}

void Step::set_state(const StepState& state) { upload(step, &state, ctx); }

std::vector<double> Step::metrics() {
    if (comm) {  // the last micro-batch is the last rank's
        comm->after_compute();
        comm->broadcast(metric_values, comm->size - 1);
        comm->before_compute();
    }
    std::vector<double> values(size_t(metric_values.numel()));
    download(values.data(), metric_values, ctx);
    return values;
}

double Step::evaluate(const int32_t* host_tokens, const int32_t* host_targets, const EvalOptions& options) {
    upload(tokens, host_tokens, ctx);
    upload(targets, host_targets, ctx);
    step_begin(eval_step, 0, ctx);
    model.evaluate(losses, tokens, targets, options, arena, hooks);
    loss_accumulate(eval_step, losses, targets.view({targets.numel()}), ctx);
    StepState sums;
    download(&sums, eval_step, ctx);
    return sums.loss_sum / sums.loss_count;
}

}  // namespace llmc
