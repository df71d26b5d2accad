// One block outside of any model: random parameters, forward and backward as plain vectors.
#pragma once
#include "dev/test/model_lab.h"

namespace llmc::test {

struct BlockLab {
    const ModelConfig config;
    const Precision precision;
    Context ctx{ContextOptions{.threads = 1}};
    Arena arena{"test", ctx};
    std::unique_ptr<Block> block;
    ParamTable table;
    Tensor params, masters, grads, x, out, dx;
    Pass pass{ctx, arena};

    // B sequences of T positions; parameters are drawn from [-1, 1) by name, norm weights and scalars around 1.
    BlockLab(const std::string& kind, const ModelConfig& c, int64_t B, int64_t T, const std::string& precision = "fp64")
        : config(resolved(c)), precision(Precision::of(from_word<PrecisionMode>(precision))),
          block(make_block(kind, config)) {
        arena.allocate(8 << 20);
        for (bool experts : {false, true})
            table.units.push_back({experts ? "experts" : "block", experts, 0, 0, 0, {}, "param"});
        block->declare_params(table.units[0], table.units[1]);
        table.finish(true);
        const DType act = this->precision.act;
        params = arena.tensor("parameters", act, {table.size});
        masters = arena.tensor("masters", this->precision.param, {table.size});
        grads = arena.tensor("gradients", this->precision.grad, {table.size});
        for (const Unit& unit : table.units)
            for (const ParamSpec& spec : unit.params) {
                Vector values = random_vector(spec.shape.numel(), Lab::hash_of_name(spec.name));
                if (spec.init.kind == ParamInit::ones || spec.scalar())
                    for (double& v : values) v = 1 + v / 2;
                write_tensor(view_of(spec, unit_range(unit, params)), values, ctx);
                write_tensor(view_of(spec, unit_range(unit, masters)), values, ctx);
            }
        pass.B = B, pass.T = T, pass.act = act, pass.group_size = config.group_size, pass.aux_scale = 1;
        pass.dense = view(0), pass.experts = view(1);
        if (this->precision.compute_copy()) pass.masters = {&table.units[0], unit_range(table.units[0], masters), {}};
        if (const auto metrics = block->declare_metrics(); !metrics.empty())
            pass.metrics = arena.tensor("metrics", DType::f64, {int64_t(metrics.size())});
        for (const SavedSpec& s : block->declare_saved(B, T, pass))
            pass.slots.push_back(arena.tensor(s.name, s.dtype, s.shape));
        const Shape shape{B, T, config.d_model};
        x = arena.tensor("x", act, shape), out = arena.tensor("out", act, shape), dx = arena.tensor("dx", act, shape);
    }

    Vector param(const char* name) { return read_tensor(owner(name).param(name), ctx); }
    void set_param(const char* name, const Vector& values) { write_tensor(owner(name).param(name), values, ctx); }
    Vector grad(const char* name) { return read_tensor(owner(name).grad(name), ctx); }

    // [B,T,C] to [B,T,C]; saved tensors stay for backward.
    Vector forward(const Vector& input) {
        const int64_t mark = arena.mark();
        write_tensor(x, input, ctx);
        block->forward(pass, out, x);
        arena.release(mark);
        return read_tensor(out, ctx);
    }
    // Of the forward just done. Returns dx; parameter gradients: grad().
    Vector backward(const Vector& dout) {
        const int64_t mark = arena.mark();
        Tensor d = arena.tensor("dout", precision.act, out.shape);
        write_tensor(d, dout, ctx);
        block->backward(pass, dx, d, x);
        arena.release(mark);
        return read_tensor(dx, ctx);
    }

private:
    UnitView view(size_t i) const {
        return {&table.units[i], unit_range(table.units[i], params), unit_range(table.units[i], grads)};
    }
    const UnitView& owner(const char* name) const { return pass.experts.has(name) ? pass.experts : pass.dense; }
};

}  // namespace llmc::test
