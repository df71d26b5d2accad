#include "llmc/planner/plan.h"

#include <cmath>
#include <cstdio>

#include "llmc/checkpoint/convert.h"
#include "llmc/infer/evaluate.h"
#include "llmc/planner/counted_step.h"

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

namespace {

// What has been counted so far.
struct Count {
    double flops;
    std::map<std::string, OpCost> ops;
    std::vector<Plan::Traffic> traffic;

    Count(const Context& ctx, const Mesh& mesh) : flops(ctx.flops), ops(ctx.costs) {
        for (const auto& [name, comm] : {std::pair<const char*, const Comm*>{"all", &mesh.all},
                                         {"experts", &mesh.experts}, {"replicas", &mesh.replicas},
                                         {"group", &mesh.group}})
            traffic.push_back({name, comm->ranks, comm->costs});
    }
};

// plan += times * (what was counted in between).
void add_step_costs(Plan& plan, Count before, Count after, int64_t times) {
    plan.step_flops += (after.flops - before.flops) * double(times);
    for (const auto& [name, cost] : after.ops) {
        plan.ops[name].add(cost, times);
        plan.ops[name].add(before.ops[name], -times);
    }
    plan.traffic.resize(after.traffic.size());
    for (size_t i = 0; i < after.traffic.size(); i++) {
        Plan::Traffic& total = plan.traffic[i];
        total.group = after.traffic[i].group, total.ranks = after.traffic[i].ranks;
        for (const auto& [name, cost] : after.traffic[i].costs) {
            plan.ops.erase(name);  // it is traffic
            if (cost.calls == before.traffic[i].costs[name].calls) continue;
            total.costs[name].add(cost, times), total.costs[name].add(before.traffic[i].costs[name], -times);
        }
    }
}

}  // namespace

Plan make_plan(const ModelConfig& model_config, const TrainConfig& config, bool training, int threads,
               const EvalOptions& eval, const std::optional<ModelConfig>& twin, int ranks) {
    CountedStep counted(model_config, config, training, ranks, threads, eval.group_size);
    Session& session = counted.session;
    Context& ctx = session.ctx;
    Model& model = session.model;
    Step& step = *session.step;

    Plan plan;
    const double before = ctx.flops;
    step.evaluate(nullptr, nullptr, eval);
    plan.forward_flops = (ctx.flops - before) * model.sharding.group_ranks;
    for (const ExtraEvaluation& extra : extra_evaluations(model.config, config))
        step.evaluate(nullptr, nullptr, extra.options);
    if (twin) {
        const int64_t mark = session.arena.mark();
        const std::unique_ptr<Model> other = model_as(*twin, model, ctx);
        other->check_rows(config.micro_batch, eval.group_size);
        Step(*other, nullptr, config, session.arena, session.hooks, ctx).evaluate(nullptr, nullptr, eval);
        session.arena.release(mark);
    }
    if (training) {
        auto count = [&](int64_t times, const auto& run) {
            const Count before(ctx, session.mesh);
            run();
            add_step_costs(plan, before, Count(ctx, session.mesh), times);
        };
        const int64_t at_a_time = model.sharding.batches(), mine = config.grad_accumulation / at_a_time;
        auto micro_batch = [&](int64_t i) { step.micro_batch(nullptr, nullptr, i * at_a_time, true); };
        count(1, [&] { micro_batch(0); });
        // Those in the middle are alike, but for adding the second one's sums to the slices, which the third does.
        if (mine > 2) count(mine - 2, [&] { micro_batch(1); });
        if (mine > 1) count(1, [&] { micro_batch(mine - 1); });
        plan.step_flops *= ranks;  // an update is not worth counting among them
        const double step_flops = plan.step_flops;
        count(1, [&] { step.update(); });
        plan.step_flops = step_flops;
        step.metrics();
    }
    plan.parameter_bytes = model.params.bytes();
    plan.copy_bytes = model.precision.compute_copy() ? model.compute.bytes() : 0;
    plan.gradient_bytes = model.grads.data ? model.grads.bytes() : 0;
    plan.optimizer_bytes = session.optimizer ? session.optimizer->bytes() : 0;
    plan.unit_bytes = session.shared.bytes();
    plan.activation_bytes = session.arena.peak();
    plan.workspace_bytes = ctx.workspace_needed;
    return plan;
}

void check_memory(const Plan& plan, Context& ctx, int sharers) {
    const int64_t available = device_memory_available(ctx) / sharers;
    if (plan.total() > available)
        input_error("this run needs ", bytes_text(double(plan.total())), " of memory (activations ",
                    bytes_text(double(plan.activation_bytes)), ") but ", bytes_text(double(available)),
                    sharers > 1 ? str(" for each of ", sharers, " processes") : "",
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

std::string describe_plan(const Plan& plan, const Model& model, const TrainConfig& train, int ranks) {
    const double tokens = double(train.micro_batch * train.grad_accumulation * model.config.context);
    std::string text = "model\n";
    text += row("parameters", count_text(double(model.table.count())), str(model.table.count()));
    text += row("  of these in matrices", count_text(double(model.table.count_matrices())), "no norms, no biases");
    text += row("tokens a step", count_text(tokens),
                str(train.grad_accumulation, " x ", train.micro_batch, " sequences of ", model.config.context));
    text += row("FLOPs a token, forward",
                count_text(plan.forward_flops / double(train.micro_batch * model.config.context)));
    if (plan.step_flops) text += row("FLOPs a token, training", count_text(plan.step_flops / tokens));
    text += ranks == 1 ? "memory\n" : str("memory of each of ", ranks, " processes\n");
    text += row("parameters", bytes_text(double(plan.parameter_bytes)), name_of(model.precision.param));
    if (plan.copy_bytes) text += row("compute copy", bytes_text(double(plan.copy_bytes)), name_of(model.precision.act));
    if (plan.gradient_bytes)
        text += row("gradients", bytes_text(double(plan.gradient_bytes)), name_of(model.precision.grad));
    if (plan.optimizer_bytes)
        text += row("optimizer's state", bytes_text(double(plan.optimizer_bytes)), name_of(model.precision.grad));
    if (plan.unit_bytes)
        text += row("units in use", bytes_text(double(plan.unit_bytes)), "gathered, or not yet summed");
    text += row("activations", bytes_text(double(plan.activation_bytes)), name_of(model.precision.act));
    text += row("workspace", bytes_text(double(plan.workspace_bytes)), "of ops outside of passes");
    text += row("total", bytes_text(double(plan.total())));
    if (ranks == 1) return text;
    int64_t sent = 0;
    for (const Plan::Traffic& traffic : plan.traffic)
        for (const auto& [name, cost] : traffic.costs) sent += cost.wire;
    text += row("sent by each, a step", bytes_text(double(sent)), "on average, by rings");
    return text;
}

}  // namespace llmc
