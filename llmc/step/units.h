// The units of a model that several ranks share: what the hooks of Model gather, free and sum up, for every --shard.
//
//                before(unit)     after(unit, backward)                    after the update
//   none                          last micro-batch: all_reduce
//   optimizer                     last micro-batch: reduce_scatter         all_gather parameters
//   gradients                     reduce_scatter, add to the slice         all_gather parameters
//   parameters   all_gather       reduce_scatter, add to the slice
//
// Units that are used together, a block's dense unit and its experts, are a stage. Gathered parameters and gradients
// that are not summed yet lie in two slots each, used in turn: while one stage computes, the next is gathered and the
// gradients of the last one are summed, on devices that communicate beside their computation.
#pragma once
#include "llmc/model/model.h"
#include "llmc/step/config.h"

namespace llmc {

// How the configuration divides a model over these ranks; one has all of it, whatever the configuration of a run that
// had more says. InputError if it cannot: sizes that do not divide each other, experts or groups to share where there
// are none.
Sharding sharding_of(const ModelConfig& model, const TrainConfig& train, int ranks, int rank);

class SharedUnits final : public UnitHooks {
public:
    // Takes its slots from an arena of its own: see allocate.
    SharedUnits(Model& model, Mesh& mesh, Context& ctx);
    void allocate(bool training);  // after the model's buffers
    int64_t bytes() const { return slots.peak(); }

    void begin(bool training) override;
    void before(const Unit& unit, Phase phase) override;
    void after(const Unit& unit, Phase phase) override;

    // Which of the rank's micro-batches of a step comes next.
    void micro_batch(bool is_first, bool is_last) { first = is_first, last = is_last; }
    // All gradients are sums over the ranks now (of this rank's slices, if they are divided), for the update.
    void finish_gradients();
    // Every rank has all parameters again, if not only slices of them: after slices were updated or loaded.
    void spread_parameters();

    Mesh& mesh;

private:
    static constexpr int slot_count = 2, tied_slot = 2;  // a tied embedding's gradient has a slot for itself
    struct Sum {
        Tensor slice, part;  // slice += part, once the collective is over
    };
    Model& model;
    Context& ctx;
    Arena slots;
    Tensor params[slot_count], masters[slot_count], grads[slot_count];
    std::vector<std::vector<const Unit*>> stages;
    std::vector<size_t> stage_of;  // of table.units
    std::vector<size_t> uses[2];   // stages in the order in which they are used: [training]
    bool training = false, first = true, last = true;
    int64_t use = -1, gathered = -1;  // numbers in `uses`: now, and the last that was gathered
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
