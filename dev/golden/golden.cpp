#include "dev/golden/golden.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "dev/golden/golden_case.h"
#include "llmc/model/blocks/block.h"
#include "llmc/step/make_optimizer.h"
#include "llmc/step/schedule.h"
#include "llmc/step/step.h"

namespace llmc {
namespace {

using Values = std::vector<double>;

// The largest allowed error. fp32: three times what the reference itself has in float32. fp64: the files are exact up
// to their rounding to float32, which is 2^-24 = 6e-8 of an element.
struct Tolerances {
    double output, gradient, trajectory, nearly_zero;
};
Tolerances tolerances_of(const Precision& precision) {
    if (precision.act == DType::f64) return {1e-7, 1e-7, 1e-7, 1e-12};
    return {1e-5, 3e-5, 2e-5, 1e-6};
}

// One run of a case: device tensors and comparisons. Runs twice, first on a counting Context to learn the arena's size.
struct Harness {
    const GoldenCase& golden;
    Precision precision;
    Context& ctx;
    Arena& arena;
    std::vector<GoldenLine> lines{};

    Tolerances tolerances() const { return tolerances_of(precision); }
    DType stat() const { return arithmetic_dtype(precision.act); }

    void put(const Tensor& t, const Values& values) {
        if (t.dtype == DType::f64) return upload(t, values.data(), ctx);
        std::vector<float> narrow(values.begin(), values.end());
        upload(t, narrow.data(), ctx);
    }
    Values get(const Tensor& t) {
        Values values(size_t(t.numel()));
        if (t.dtype == DType::f64) {
            download(values.data(), t, ctx);
            return values;
        }
        std::vector<float> narrow(values.size());
        download(narrow.data(), t, ctx);
        return {narrow.begin(), narrow.end()};
    }
    // A tensor on the device with the values of the file's tensor of the same name and shape.
    Tensor loaded(const char* name, const Shape& shape) {
        Tensor t = arena.tensor(name, precision.act, shape);
        put(t, golden.floats(name, shape));
        return t;
    }
    // The file's tokens or targets [B,T] on the device.
    Tensor tokens(const char* name) {
        Tensor t = arena.tensor(name, DType::i32, {golden.B, golden.T});
        upload(t, golden.integers(name, t.shape).data(), ctx);
        return t;
    }

    void compare(const std::string& name, const Values& got, const Values& want, double tolerance,
                 bool absolute = false) {
        double difference = 0, size = 0;
        for (size_t i = 0; i < want.size(); i++) {
            const double d = std::abs(got[i] - want[i]);
            difference = d <= difference ? difference : d;  // keeps a NaN, which no comparison holds for
            if (std::isnan(difference)) break;
            size = std::max(size, std::abs(want[i]));
        }
        if (absolute)
            lines.push_back({name, difference, tolerance});
        else if (size < 1e-6)
            lines.push_back({name, difference, tolerances().nearly_zero});
        else
            lines.push_back({name, difference / size, tolerance});
    }
    void compare(const std::string& name, const Tensor& got, double tolerance) {
        compare(name, get(got), golden.floats(name, got.shape), tolerance);
    }
};

// ------------------------------------------------------------------------------------------------------- single blocks

void run_layernorm(Harness& h) {
    const GoldenCase& c = h.golden;
    const Shape shape{c.B, c.T, c.C};
    c.require_names("param.", {"weight", "bias"});
    c.require_names("grad.", {"weight", "bias"});
    if (!c.config.contains("eps") || !c.config["eps"].is_number()) c.bad("the config has no number \"eps\"");
    Tensor x = h.loaded("input", shape), dout = h.loaded("grad_output", shape);
    Tensor weight = h.loaded("param.weight", {c.C}), bias = h.loaded("param.bias", {c.C});
    Tensor out = h.arena.tensor("output", h.precision.act, shape),
           dx = h.arena.tensor("grad_input", h.precision.act, shape);
    Tensor mean = h.arena.tensor("mean", h.stat(), {c.B, c.T}), rstd = h.arena.tensor("rstd", h.stat(), {c.B, c.T});
    Tensor dweight = h.arena.tensor("grad.weight", h.precision.grad, {c.C}),
           dbias = h.arena.tensor("grad.bias", h.precision.grad, {c.C});
    norm_forward(out, mean, rstd, x, weight, bias, Norm::layernorm, c.config["eps"].get<double>(), h.ctx);
    norm_backward(dx, dweight, dbias, dout, x, mean, rstd, weight, Norm::layernorm, false, false, h.ctx);
    h.compare("output", out, h.tolerances().output);
    h.compare("grad_input", dx, h.tolerances().gradient);
    h.compare("grad.weight", dweight, h.tolerances().gradient);
    h.compare("grad.bias", dbias, h.tolerances().gradient);
}

// The parameters of one block outside of any model.
struct BlockParams {
    ParamTable table;
    Tensor params, grads;

    BlockParams(const Block& block, const Precision& precision, Arena& arena) {
        for (bool experts : {false, true})
            table.units.push_back({experts ? "experts" : "block", experts, 0, 0, 0, {}, "param"});
        block.declare_params(table.units[0], table.units[1]);
        table.finish(true);
        params = arena.tensor("parameters", precision.act, {table.size});
        grads = arena.tensor("gradients", precision.grad, {table.size});
    }
    UnitView view(size_t i) const {
        return {&table.units[i], unit_range(table.units[i], params), unit_range(table.units[i], grads)};
    }
};

// What files of single blocks call a parameter: the pre-norm, of the same name, is not part of them.
std::string name_in_file(const std::string& name) {
    const std::string prefix = "output_norm.";
    return name.compare(0, prefix.size(), prefix) == 0 ? name.substr(7) : name;
}

void run_block(Harness& h) {
    const GoldenCase& c = h.golden;
    const Shape shape{c.B, c.T, c.C};
    std::unique_ptr<Block> block = make_block(c.kind, c.model);
    BlockParams params(*block, h.precision, h.arena);
    std::vector<std::string> names, file_names;
    for (const Unit& unit : params.table.units)
        for (const ParamSpec& spec : unit.params) {
            names.push_back(spec.name.substr(unit.prefix.size() + 1));
            file_names.push_back(name_in_file(names.back()));
            h.put(view_of(spec, unit_range(unit, params.params)), c.floats("param." + file_names.back(), spec.shape));
        }
    c.require_names("param.", file_names);

    Pass pass{h.ctx, h.arena};
    pass.B = c.B, pass.T = c.T, pass.act = h.precision.act;
    pass.dense = params.view(0), pass.experts = params.view(1);
    pass.discrete = c.discrete, pass.group_size = c.model.group_size, pass.aux_scale = 1;
    const std::vector<std::string> metrics = block->declare_metrics();
    pass.metrics = h.arena.tensor("metrics", DType::f64, {int64_t(metrics.size())});
    for (const SavedSpec& s : block->declare_saved(c.B, c.T, pass))
        pass.slots.push_back(h.arena.tensor(s.name, s.dtype, s.shape));
    Tensor x = h.loaded("input", shape), out = h.arena.tensor("output", h.precision.act, shape);
    block->forward(pass, out, x);
    h.compare("output", out, h.tolerances().output);
    for (size_t i = 0; i < metrics.size(); i++)
        if (metrics[i] == "balance_loss")
            h.compare("aux_loss", {aux_loss_weight(c.model, metrics[i]) * h.get(pass.metrics)[i]},
                      c.floats("aux_loss", {1}), h.tolerances().output);
    c.require_names("grad.", c.forward_only ? std::vector<std::string>{} : file_names);
    if (c.forward_only) return;

    Tensor dout = h.loaded("grad_output", shape), dx = h.arena.tensor("grad_input", h.precision.act, shape);
    block->backward(pass, dx, dout, x);
    h.compare("grad_input", dx, h.tolerances().gradient);
    for (const std::string& name : names) {
        const UnitView& owner = pass.experts.has(name.c_str()) ? pass.experts : pass.dense;
        h.compare("grad." + name_in_file(name), h.get(owner.grad(name.c_str())),
                  c.floats("grad." + name_in_file(name), owner.param(name.c_str()).shape), h.tolerances().gradient);
    }
}

// -------------------------------------------------------------------------------------------------------- whole models

// Puts the file's parameters into the model.
std::vector<std::string> load_parameters(Harness& h, Model& model) {
    std::vector<std::string> names;
    for (const NamedTensor& p : model.parameters()) {
        names.push_back(p.name);
        h.put(p.tensor, h.golden.floats("param." + p.name, p.tensor.shape));
    }
    h.golden.require_names("param.", names);
    model.refresh_compute_copy();
    return names;
}

double mean_of(const Values& values) {
    double sum = 0;
    for (double v : values) sum += v;
    return sum / double(values.size());
}

// The losses of blocks, summed and weighted, out of the metrics of Model::train.
double auxiliary_loss(const Model& model, const Values& metrics) {
    double sum = 0;
    for (const MetricSlot& slot : model.metric_slots()) sum += slot.loss_weight * metrics[size_t(slot.first)];
    return sum;
}

// `loss` is checked through Model::evaluate, `aux_loss` and `total_loss` (without a loss of blocks the same as `loss`)
// through Model::train.
void run_model(Harness& h) {
    const GoldenCase& c = h.golden;
    Model model(c.model, h.precision, true, h.ctx);
    model.allocate(true);
    std::vector<std::string> names = load_parameters(h, model);
    c.require_names("grad.", c.forward_only ? std::vector<std::string>{} : names);
    UnitHooks hooks;
    const EvalOptions eval{.discrete = c.discrete};
    Tensor tokens = h.tokens("tokens"), targets = h.tokens("targets");
    Tensor losses = h.arena.tensor("losses", h.stat(), {c.B * c.T});
    Tensor logits = h.arena.tensor("logits", h.stat(), {c.B, c.T, c.model.vocab_size});
    model.logits(logits, tokens, eval, h.arena, hooks);
    h.compare("logits", logits, h.tolerances().output);
    model.evaluate(losses, tokens, targets, eval, h.arena, hooks);
    h.compare("loss", {mean_of(h.get(losses))}, c.floats("loss", {1}), h.tolerances().output);
    if (c.forward_only) return;

    Tensor metrics = h.arena.tensor("metrics", DType::f64, {model.metric_count()});
    model.train({tokens, targets, losses, 1.0 / double(c.B * c.T), false, metrics}, false, h.arena, hooks);
    const double auxiliary = auxiliary_loss(model, h.get(metrics));
    if (c.file.find("aux_loss")) h.compare("aux_loss", {auxiliary}, c.floats("aux_loss", {1}), h.tolerances().output);
    h.compare("total_loss", {mean_of(h.get(losses)) + auxiliary}, c.floats("total_loss", {1}),
              h.tolerances().output);
    for (const NamedTensor& g : model.gradients())
        h.compare("grad." + g.name, h.get(g.tensor), c.floats("grad." + g.name, g.tensor.shape),
                  h.tolerances().gradient);
}

void run_trajectory(Harness& h) {
    const GoldenCase& c = h.golden;
    const int64_t steps = c.train.steps;
    const Shape batches{steps, c.B, c.T};
    Model model(c.model, h.precision, c.train.decay == Decay::all, h.ctx);
    model.allocate(true);
    c.require_names("final.param.", load_parameters(h, model));
    UnitHooks hooks;
    const std::unique_ptr<Optimizer> optimizer = make_optimizer(c.train, model, h.ctx);
    Step step(model, optimizer.get(), c.train, h.arena, hooks, h.ctx);
    const std::vector<int32_t> tokens = c.integers("tokens", batches), targets = c.integers("targets", batches);
    const Schedule schedule{c.train.lr, c.train.warmup_steps, c.train.decay_steps, c.train.final_lr_fraction};
    Values losses, norms, rates;
    for (int64_t s = 0; s < steps; s++) {
        rates.push_back(learning_rate(schedule, s));
        step.begin(rates.back());
        step.micro_batch(tokens.data() + s * c.B * c.T, targets.data() + s * c.B * c.T, 0, false);
        step.update();
        StepState state = step.state();
        losses.push_back(state.loss_sum / std::max(state.loss_count, 1.0));
        norms.push_back(state.grad_norm);
    }
    h.compare("lrs", rates, c.floats("lrs", {steps}), 1e-7);
    h.compare("losses", losses, c.floats("losses", {steps}), h.tolerances().trajectory);
    h.compare("grad_norms", norms, c.floats("grad_norms", {steps}), h.tolerances().trajectory);
    for (const NamedTensor& p : model.parameters())
        h.compare("final.param." + p.name, h.get(p.tensor), c.floats("final.param." + p.name, p.tensor.shape),
                  h.tolerances().trajectory, h.precision.act != DType::f64);
}

std::vector<GoldenLine> run_case(const GoldenCase& golden, const Precision& precision, Context& ctx, Arena& arena) {
    Harness harness{golden, precision, ctx, arena};
    if (golden.kind == "layernorm")
        run_layernorm(harness);
    else if (golden.kind == "model")
        run_model(harness);
    else if (golden.kind == "trajectory")
        run_trajectory(harness);
    else
        run_block(harness);
    return harness.lines;
}

}  // namespace

bool GoldenResult::ok() const {
    return !lines.empty() && std::all_of(lines.begin(), lines.end(), [](const GoldenLine& line) { return line.ok(); });
}

GoldenResult run_golden(const std::string& path, PrecisionMode mode, int threads) {
    if (mode != PrecisionMode::fp32 && mode != PrecisionMode::fp64)
        input_error("golden files need --precision fp32 or fp64: ", mode, " is coarser than the tolerances");
    const Precision precision = Precision::of(mode);
    const GoldenCase golden(path);
    if (!golden.unsupported.empty()) return {golden.kind, golden.unsupported, {}};

    Context counting({.threads = threads, .counting = true});
    Arena plan("golden case", counting);
    run_case(golden, precision, counting, plan);
    Context ctx({.threads = threads});
    Arena arena("golden case", ctx);
    arena.allocate(plan.peak());
    return {golden.kind, "", run_case(golden, precision, ctx, arena)};
}

}  // namespace llmc
