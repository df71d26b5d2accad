#include "llmc/step/adamw.h"

#include <algorithm>

#include "llmc/base/rng.h"

namespace llmc {

namespace {

bool every_parameter(const ParamSpec&) { return true; }

}  // namespace

AdamWOptimizer::AdamWOptimizer(const TrainConfig& c, Model& model, Context& ctx)
    : Optimizer(model, {{"m.", 1, every_parameter}, {"v.", 2, every_parameter}}, ctx),
      options{c.beta1, c.beta2, c.adam_eps, c.weight_decay, c.stochastic_rounding,
              uint64_t(c.seed) ^ hash_of("stochastic rounding")} {}

void AdamWOptimizer::update(const UnitSlice& s, Tensor step, Arena&) {
    const int64_t decayed = std::clamp<int64_t>(s.unit.decayed - s.begin, 0, s.end - s.begin);
    options.first_index = s.unit.first_index + s.begin;
    adamw_update(s.params, s.compute_copy, states()[0].range(s.unit, s.begin, s.end),
                 states()[1].range(s.unit, s.begin, s.end), s.grads, step, decayed, options, ctx);
}

}  // namespace llmc
