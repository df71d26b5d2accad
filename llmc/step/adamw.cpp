#include "llmc/step/adamw.h"

#include <algorithm>

#include "llmc/base/rng.h"

namespace llmc {

namespace {

bool every_parameter(const ParamSpec&) { return true; }

}  // namespace

AdamWOptimizer::AdamWOptimizer(const TrainConfig& config, Model& model, Context& ctx)
    : AdamWOptimizer(config, {{"m.", 1, every_parameter}, {"v.", 2, every_parameter}}, model, ctx) {}

AdamWOptimizer::AdamWOptimizer(const TrainConfig& c, const std::vector<StateKind>& state, Model& model, Context& ctx)
    : Optimizer(model, state, ctx), options{c.beta1,
                                            c.beta2,
                                            c.adam_eps,
                                            c.weight_decay,
                                            c.stochastic_rounding,
                                            uint64_t(c.seed) ^ hash_of("stochastic rounding")} {}

void AdamWOptimizer::update(const UnitSlice& slice, Tensor step, Arena&) {
    update_range(slice, slice.begin, slice.end, step);
}

void AdamWOptimizer::update_range(const UnitSlice& s, int64_t from, int64_t to, Tensor step) {
    const int64_t decayed = std::clamp<int64_t>(s.unit.decayed - from, 0, to - from);
    options.first_index = s.unit.first_index + from;
    adamw_update(s.of(s.params, from, to), s.of(s.compute_copy, from, to), states()[0].range(s.unit, from, to),
                 states()[1].range(s.unit, from, to), s.of(s.grads, from, to), step, decayed, options, ctx);
}

}  // namespace llmc
