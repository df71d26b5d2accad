#include "llmc/step/units.h"

#include <algorithm>

namespace llmc {

Sharding sharding_of(const ModelConfig& model, const TrainConfig& train, int ranks, int rank) {
    if (ranks == 1) return {};
    Sharding s{train.shard, ranks, rank, int(train.expert_parallel), int(train.group_ranks)};
    check_sharding(s);
    if (train.grad_accumulation % s.batches())
        input_error("a step's ", train.grad_accumulation,
                    " micro-batches (--grad-accumulation) cannot be distributed equally over ", s.batches(),
                    s.group_ranks > 1 ? " groups of processes" : " processes",
                    ": make --grad-accumulation a multiple of that");
    if (s.expert_ranks > 1 && !has_experts(model))
        input_error("--expert-parallel ", s.expert_ranks, ": this model has no experts");
    if (s.group_ranks == 1) return s;
    if (!mixtures_span_ranks(model) || model.group_axis != GroupAxis::batch)
        input_error("--group-ranks ", s.group_ranks,
                    " needs a model whose mixtures are all Mixtures of Tokens with "
                    "groups over the batch");
    if (train.micro_batch % s.group_ranks || model.context % s.group_ranks)
        input_error("--group-ranks ", s.group_ranks, " must divide --micro-batch ", train.micro_batch,
                    " and --context ", model.context);
    return s;
}

namespace {

// Numbers of Comm::mark.
int gathered_mark(int64_t use) { return int(use % 2); }
int summed_mark(int slot) { return 2 + slot % 2; }

}  // namespace

SharedUnits::SharedUnits(Model& model, Mesh& mesh, Context& ctx)
    : mesh(mesh), model(model), ctx(ctx), slots("units in use", ctx) {
    const std::vector<Unit>& units = model.table.units;
    for (const Unit& unit : units) {
        if (unit.experts) stages.back().push_back(&unit);  // they come after their block's dense unit
        else stages.push_back({&unit});
        stage_of.push_back(stages.size() - 1);
    }
    // Up to the head, and back to the embedding. A tied head is the embedding.
    const bool separate_head = units.back().name == "head";
    std::vector<size_t>& up = uses[false];
    for (size_t i = 0; i < stages.size(); i++) up.push_back(i);
    if (!separate_head) up.push_back(0);
    uses[true] = up;
    uses[true].insert(uses[true].end(), up.rbegin() + 1, up.rend());
}

// Blocks that compute with a copy also read some masters.
bool SharedUnits::gathers_masters(const Unit& unit) const {
    return unit.masters && model.precision.compute_copy() && model.sharding.moments();
}

// Elements of the unit in a slot for parameters: none where its slices are here already, or all ranks have all of it.
int64_t SharedUnits::gathered_size(const Unit& unit) const {
    return model.sharding.parameters() && mesh.of_unit(unit.experts).size > 1 ? unit.size : 0;
}

bool SharedUnits::gathers() const {
    const auto& units = model.table.units;
    return model.sharding.parameters() ||
           std::any_of(units.begin(), units.end(), [&](const Unit& unit) { return gathers_masters(unit); });
}

void SharedUnits::allocate(bool training) {
    lay_out(training);
    const int64_t bytes = slots.peak();
    slots.release(0);
    slots.allocate(bytes);
    lay_out(training);
    if (const Tensor gradient = model.place(embedding()).grads)
        for (const Tensor& padding : padding_of(embedding(), gradient)) fill(padding, 0, ctx);
}

// Each slot is as large as the largest stage that uses it.
void SharedUnits::lay_out(bool training) {
    const std::vector<size_t>& order = uses[training];
    const Precision& precision = model.precision;
    const bool sums_slices = training && model.sharding.gradients(), tied = model.config.tied_head;
    for (size_t slot = 0; slot < slot_count; slot++) {
        int64_t most = 0, most_masters = 0, most_gradients = 0;
        for (size_t i = slot; i < order.size(); i += slot_count) {
            const bool has_gradient = 2 * i + 1 >= order.size() && !(tied && order[i] == 0);  // from the head on
            int64_t gathered = 0, gradients = 0;
            for (const Unit* unit : stages[order[i]]) {
                gathered += gathered_size(*unit), gradients += has_gradient ? unit->size : 0;
                if (gathers_masters(*unit)) most_masters = std::max(most_masters, unit->size);
            }
            most = std::max(most, gathered), most_gradients = std::max(most_gradients, gradients);
        }
        if (most) params[slot] = slots.tensor("gathered", precision.act, {most});
        if (most_masters) masters[slot] = slots.tensor("gathered masters", precision.param, {most_masters});
        if (sums_slices) grads[slot] = slots.tensor("gradients of a stage", precision.grad, {most_gradients});
    }
    if (sums_slices && tied)
        model.place(embedding()).grads =
            slots.tensor("gradient of the embedding", precision.grad, {embedding().size});
}

void SharedUnits::begin(bool is_training) {
    for (int slot = 0; slot <= tied_slot; slot++) add_sums(slot);
    training = is_training;
    use = gathered = -1;
}

// Starts to gather the stage that is used as number `number`.
void SharedUnits::gather(int64_t number) {
    gathered = number;
    mesh.all.after_compute();  // wait until the slot's last user and the last update are done
    int64_t begin = 0;
    for (const Unit* unit : stages[uses[training][size_t(number)]]) {
        Comm& comm = mesh.of_unit(unit->experts);
        if (gathers_masters(*unit))
            comm.all_gather(masters[number % 2].slice(0, unit->size), slice_range(model.table, *unit, model.params));
        const int64_t end = begin + gathered_size(*unit);
        if (end > begin)
            comm.all_gather(params[number % 2].slice(begin, end), slice_range(model.table, *unit, model.compute));
        begin = end;
    }
    mesh.all.mark(gathered_mark(number));
}

// Begins the next stage: waits for its parameters, and starts to gather those of the stage after it.
void SharedUnits::enter(size_t stage, Phase phase) {
    const std::vector<size_t>& order = uses[training];
    use++;
    if (use >= int64_t(order.size()) || order[size_t(use)] != stage)
        run_error("unit ", stages[stage][0]->name, " is used out of order");
    const int64_t slot = use % 2;
    if (gathers()) {
        if (gathered < use) gather(use);
        mesh.all.before_compute(gathered_mark(use));
        if (use + 1 < int64_t(order.size())) gather(use + 1);
    }
    const bool own_gradients = phase == Phase::backward && model.sharding.gradients();
    if (own_gradients) add_sums(int(slot));
    int64_t params_begin = 0, grads_begin = 0;
    for (const Unit* unit : stages[stage]) {
        Model::Place& place = model.place(*unit);
        const int64_t params_end = params_begin + gathered_size(*unit), grads_end = grads_begin + unit->size;
        if (model.sharding.parameters())
            place.params = params_end > params_begin ? params[slot].slice(params_begin, params_end)
                                                     : slice_range(model.table, *unit, model.compute);
        if (gathers_masters(*unit)) place.masters = masters[slot].slice(0, unit->size);
        if (own_gradients && !place.grads) {
            place.grads = grads[slot].slice(grads_begin, grads_end);
            for (const Tensor& padding : padding_of(*unit, place.grads)) fill(padding, 0, ctx);
        }
        params_begin = params_end, grads_begin = grads_end;
    }
}

void SharedUnits::before(const Unit& unit, Phase phase) {
    const size_t stage = stage_of[size_t(&unit - model.table.units.data())];
    if (use < 0 || uses[training][size_t(use)] != stage) enter(stage, phase);
}

void SharedUnits::after(const Unit& unit, Phase phase) {
    if (phase == Phase::backward) reduce(unit);
    Model::Place& place = model.place(unit);
    if (model.sharding.parameters()) place.params = {};
    if (gathers_masters(unit)) place.masters = {};
    if (model.sharding.gradients() && !is_tied(unit)) place.grads = {};
}

// The gradient of a unit is complete on this rank.
void SharedUnits::reduce(const Unit& unit) {
    Comm& comm = mesh.of_unit(unit.experts);
    Tensor whole = model.place(unit).grads;
    Tensor part = whole.slice(unit.slice_begin, unit.slice_begin + unit.slice_size);
    if (!model.sharding.gradients() && !last) return;
    mesh.all.after_compute();
    if (!model.sharding.moments()) return comm.all_reduce(whole);
    if (!model.sharding.gradients()) return comm.reduce_scatter(part, whole);
    Tensor slice = slice_range(model.table, unit, model.grads);
    comm.reduce_scatter(first ? slice : part, whole);
    const int slot = is_tied(unit) ? tied_slot : int(use % 2);
    sums[slot].push_back(first ? Sum{} : Sum{slice, part});
    mesh.all.mark(summed_mark(slot));
}

// Adds the finished sums of a slot's gradients to the slices; then the slot is free.
void SharedUnits::add_sums(int slot) {
    if (sums[slot].empty()) return;
    mesh.all.before_compute(summed_mark(slot));
    for (const Sum& sum : sums[slot])
        if (sum.part) add(sum.slice, sum.slice, sum.part, ctx);
    sums[slot].clear();
}

void SharedUnits::finish_gradients() {
    for (int slot = 0; slot <= tied_slot; slot++) add_sums(slot);
    mesh.all.before_compute();
}

void SharedUnits::spread_parameters() {
    if (!model.sharding.moments() || model.sharding.parameters()) return;
    mesh.all.after_compute();
    for (const Unit& unit : model.table.units)
        mesh.of_unit(unit.experts).all_gather(unit_range(unit, model.compute),
                                              slice_range(model.table, unit, model.compute));
    mesh.all.before_compute();
}

}  // namespace llmc
