#include "llmc/step/optimizer.h"

namespace llmc {

UnitSlice::UnitSlice(const Model& model, const Unit& unit) : unit(unit) {
    const bool slices = model.sharding.moments();
    auto mine = [&](const Tensor& buffer) {
        return slices ? slice_range(model.table, unit, buffer) : unit_range(unit, buffer);
    };
    params = mine(model.params), grads = mine(model.grads);
    if (model.precision.compute_copy()) compute_copy = mine(model.compute);
    begin = slices ? unit.slice_begin : 0, end = begin + params.numel();
}

Optimizer::Optimizer(Model& model, const std::vector<StateKind>& state, Context& ctx)
    : model(model), ctx(ctx), memory("optimizer state", ctx) {
    for (const StateKind& kind : state) buffers.emplace_back(kind, model.table, model.sharding.moments());
    auto lay_out = [&] {
        for (StateBuffer& buffer : buffers) buffer.allocate(model.precision.grad, memory);
    };
    lay_out();
    const int64_t bytes = memory.peak();
    memory.release(0);
    memory.allocate(bytes);
    lay_out();
    for (const StateBuffer& buffer : buffers) fill(buffer.all(), 0, ctx);
}

std::vector<NamedTensor> Optimizer::state_parts(bool owned) const {
    std::vector<NamedTensor> list;
    for (const StateBuffer& buffer : buffers)
        for (const NamedTensor& part : buffer.parts(owned)) list.push_back(part);
    return list;
}

}  // namespace llmc
