#include "llmc/train/plan.h"

#include <cmath>
#include <cstdio>

#include "llmc/train/convert.h"
#include "llmc/train/evaluate.h"

namespace llmc {

namespace {

std::string scaled(double value, double base, const std::vector<const char*>& units) {
    size_t i = 0;
    while (std::fabs(value) >= base && i + 1 < units.size()) value /= base, i++;
    char text[64];
    std::snprintf(text, sizeof text, i == 0 ? "%.0f%s" : value < 10 ? "%.2f%s" : "%.1f%s", value, units[i]);
    return text;
}

std::string row(const std::string& name, const std::string& value, const std::string& note = "") {
    char text[256];
    std::snprintf(text, sizeof text, "  %-28s %14s  %s\n", name.c_str(), value.c_str(), note.c_str());
    return text;
}

}  // namespace

std::string bytes_text(double bytes) { return scaled(bytes, 1024, {" B", " KiB", " MiB", " GiB", " TiB"}); }
std::string count_text(double count) { return scaled(count, 1000, {"", "k", "M", "G", "T", "P"}); }

Plan make_plan(const ModelConfig& model_config, const TrainConfig& config, bool training, int threads,
               const EvalOptions& eval, const std::optional<ModelConfig>& twin, int ranks) {
    Context ctx({.threads = threads, .counting = true});
    Model model(model_config, Precision::from_name(config.precision), config.decay == "all", ctx);
    model.check_rows(config.micro_batch, eval.group_size);
    model.allocate(training);
    Arena arena("activations", ctx);
    UnitHooks hooks;
    World world = World::pretend(ranks, 0);
    Comm comm(world, ctx);
    Step step(model, config, arena, hooks, ctx, false, &comm);

    Plan plan;
    int64_t before = ctx.flops;
    step.evaluate(nullptr, nullptr, eval);
    plan.forward_flops = ctx.flops - before;
    for (const ExtraEvaluation& extra : extra_evaluations(model.config, config))
        step.evaluate(nullptr, nullptr, extra.options);
    if (twin) {
        const int64_t mark = arena.mark();
        const std::unique_ptr<Model> other = model_as(*twin, model, ctx);
        other->check_rows(config.micro_batch, eval.group_size);
        Step(*other, config, arena, hooks, ctx).evaluate(nullptr, nullptr, eval);
        arena.release(mark);
    }
    if (training) {
        before = ctx.flops;
        const int64_t last = config.grad_accumulation - ranks, counted = last > 0 ? 2 : 1;
        for (int64_t k = 0; k <= last; k += std::max<int64_t>(last, 1)) step.micro_batch(nullptr, nullptr, k, true);
        plan.step_flops = (ctx.flops - before) / counted * config.grad_accumulation;
        step.update();
    }
    plan.parameter_bytes = model.params.bytes();
    plan.copy_bytes = model.precision.compute_copy() ? model.compute.bytes() : 0;
    plan.gradient_bytes = model.grads.data ? model.grads.bytes() : 0;
    plan.moment_bytes = model.moment1.data ? model.moment1.bytes() + model.moment2.bytes() : 0;
    plan.activation_bytes = arena.peak();
    plan.workspace_bytes = ctx.workspace_needed;
    return plan;
}

void check_memory(const Plan& plan, Context& ctx) {
    const int64_t available = device_memory_available(ctx);
    if (plan.total() > available)
        input_error("this run needs ", bytes_text(double(plan.total())), " of memory (activations ",
                    bytes_text(double(plan.activation_bytes)), ") but ", bytes_text(double(available)),
                    " are available: make --micro-batch smaller and --grad-accumulation larger, use --recompute "
                    "blocks, or a smaller model");
}

std::string describe_units(const Model& model) {
    std::string text = "units (one flat range of parameters each)\n";
    for (const Unit& unit : model.table.units) {
        int64_t count = 0;
        std::string tensors;
        for (const ParamSpec& spec : unit.params) {
            count += spec.shape.numel();
            tensors +=
                (tensors.empty() ? "" : ", ") + spec.name.substr(unit.prefix.size() + 1) + " " + spec.shape.text();
        }
        text += row(unit.name, count_text(double(count)), tensors);
    }
    return text;
}

std::string describe_plan(const Plan& plan, const Model& model, const TrainConfig& train) {
    const double tokens = double(train.micro_batch * train.grad_accumulation * model.config.context);
    std::string text = "model\n";
    text += row("parameters", count_text(double(model.table.count())), str(model.table.count()));
    text += row("  of these in matrices", count_text(double(model.table.count_matrices())), "no norms, no biases");
    text += row("tokens a step", count_text(tokens),
                str(train.grad_accumulation, " x ", train.micro_batch, " sequences of ", model.config.context));
    text += row("FLOPs a token, forward",
                count_text(double(plan.forward_flops) / double(train.micro_batch * model.config.context)));
    if (plan.step_flops) text += row("FLOPs a token, training", count_text(double(plan.step_flops) / tokens));
    text += "memory\n";
    text += row("parameters", bytes_text(double(plan.parameter_bytes)), name_of(model.precision.param));
    if (plan.copy_bytes) text += row("compute copy", bytes_text(double(plan.copy_bytes)), name_of(model.precision.act));
    if (plan.gradient_bytes)
        text += row("gradients", bytes_text(double(plan.gradient_bytes)), name_of(model.precision.grad));
    if (plan.moment_bytes)
        text += row("Adam's moments", bytes_text(double(plan.moment_bytes)), name_of(model.precision.grad));
    text += row("activations", bytes_text(double(plan.activation_bytes)), name_of(model.precision.act));
    text += row("workspace", bytes_text(double(plan.workspace_bytes)));
    text += row("total", bytes_text(double(plan.total())));
    return text;
}

}  // namespace llmc
