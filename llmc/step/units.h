// The hooks of a divided model: what they gather, free and sum, for every --shard.
//
//                before(unit)     after(unit, backward)                    after the update
//   none                          last micro-batch: all_reduce
//   optimizer                     last micro-batch: reduce_scatter         all_gather parameters
//   gradients                     reduce_scatter, add to the slice         all_gather parameters
//   parameters   all_gather       reduce_scatter, add to the slice
//
// If blocks compute with a bf16 copy, before() also gathers the f32 masters that sparse routers read, for every --shard
// but none.
//
// Units that are used together, a block's dense unit and its experts, are a stage. Gathered parameters, and gradients
// that are not summed yet, are in two buffers each, used in turn. While one stage computes, the next is gathered and
// the gradients of the last one are summed, if the device can communicate beside its computation.
#pragma once
#include "llmc/model/model.h"
#include "llmc/step/config.h"

namespace llmc {

// How the configuration divides a model over `ranks` ranks, for rank `rank`. With one rank nothing is divided, whatever
// the configuration says (a run may have had more before). InputError if the numbers do not divide each other, or if
// there are no experts or groups to divide.
Sharding sharding_of(const ModelConfig& model, const TrainConfig& train, int ranks, int rank);

class SharedUnits final : public UnitHooks {
public:
    // Its buffers are on an arena of its own, see allocate.
    SharedUnits(Model& model, Mesh& mesh, Context& ctx);
    void allocate(bool training);                   // gets the buffers; call it after Model::allocate
    int64_t bytes() const { return slots.peak(); }  // their size

    void begin(bool training) override;
    void before(const Unit& unit, Phase phase) override;
    void after(const Unit& unit, Phase phase) override;

    // Whether the next micro-batch is this rank's first or last one of the step.
    void micro_batch(bool is_first, bool is_last) { first = is_first, last = is_last; }
    // Before the update: completes the sums of gradients over the ranks (of this rank's slices, if they are divided).
    void finish_gradients();
    // After slices were updated or loaded: gathers all parameters on every rank, unless ranks hold only slices of them.
    void spread_parameters();

    Mesh& mesh;

private:
    static constexpr int slot_count = 2, tied_slot = 2;  // a tied embedding's gradient has its own slot
    struct Sum {
        Tensor slice, part;  // slice += part when the collective is done
    };
    Model& model;
    Context& ctx;
    Arena slots;
    Tensor params[slot_count], masters[slot_count], grads[slot_count];
    std::vector<std::vector<const Unit*>> stages;
    std::vector<size_t> stage_of;  // the stage of each unit of the table
    std::vector<size_t> uses[2];   // stages in the order in which they are used: [training]
    bool training = false, first = true, last = true;
    int64_t use = -1, gathered = -1;  // indices in `uses`: the current one, and the last one gathered
    std::vector<Sum> sums[slot_count + 1];

    const Unit& embedding() const { return model.table.units[0]; }
    bool is_tied(const Unit& unit) const { return model.config.tied_head && &unit == &embedding(); }
    bool gathers_masters(const Unit& unit) const;
    int64_t gathered_size(const Unit& unit) const;
    bool gathers() const;
    void lay_out(bool training);
    void gather(int64_t number);
    void enter(size_t stage, Phase phase);
    void add_sums(int slot);
    void reduce(const Unit& unit);
};

}  // namespace llmc
