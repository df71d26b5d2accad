// The optimizer of a run. It declares what it keeps for each parameter, has the memory for that, and updates the
// parameters. Steps, checkpoints, plans and transitions know it by this interface only: docs/optimizers.md.
#pragma once
#include "llmc/model/model.h"
#include "llmc/step/config.h"
#include "llmc/step/optimizer_state.h"

namespace llmc {

// What a rank updates of one unit: its slice if the optimizer's state is cut into slices, otherwise all.
struct UnitSlice {
    UnitSlice(const Model& model, const Unit& unit);

    const Unit& unit;
    int64_t begin, end;                  // elements of the unit
    Tensor params, compute_copy, grads;  // [end - begin]; compute_copy is not given if there is none

    // Which elements [from, to) of the unit, maybe none, are the slice's part of a parameter.
    std::pair<int64_t, int64_t> part_of(const ParamSpec& spec) const {
        return {std::clamp(spec.offset, begin, end), std::clamp(spec.offset + spec.local.numel(), begin, end)};
    }
    // Elements [from, to) of the unit in one of these three tensors, which may be "not given".
    Tensor of(const Tensor& tensor, int64_t from, int64_t to) const {
        return tensor ? tensor.slice(from - begin, to - begin) : tensor;
    }
};

class Optimizer {
public:
    virtual ~Optimizer() = default;
    Optimizer(const Optimizer&) = delete;
    Optimizer& operator=(const Optimizer&) = delete;

    // Updates a slice from its gradients. `step` (StepState) has the learning rate and the factor of clipping; nothing
    // changes if its ok is 0. arena: for temporary tensors. All ranks call this for all units in the same order.
    virtual void update(const UnitSlice& slice, Tensor step, Arena& arena) = 0;

    // Its state: one buffer of each declared sort.
    const std::vector<StateBuffer>& states() const { return buffers; }
    // All tensors of state with the names that checkpoints have for them, see named_parts.
    std::vector<NamedTensor> state_parts(bool owned) const;
    int64_t bytes() const { return memory.peak(); }

protected:
    // Gets memory for this state, all zero.
    Optimizer(Model& model, const std::vector<StateKind>& state, Context& ctx);

    Model& model;
    Context& ctx;

private:
    Arena memory;
    std::vector<StateBuffer> buffers;
};

}  // namespace llmc
