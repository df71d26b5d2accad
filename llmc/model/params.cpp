#include "llmc/model/params.h"

#include <algorithm>
#include <string_view>

namespace llmc {

namespace {

constexpr int64_t alignment = 128;  // elements
int64_t aligned(int64_t n) { return (n + alignment - 1) / alignment * alignment; }

// This rank's experts of a tensor.
void divide_experts(ParamSpec& p, const Sharding& sharding) {
    const int64_t experts = p.shape[0], ranks = sharding.expert_ranks;
    if (experts % ranks)
        input_error("--expert-parallel ", ranks, " does not divide the ", experts, " experts of ", p.name);
    p.local.dim[0] = experts / ranks;
    p.first = p.local.numel() * sharding.expert_rank();
}

}  // namespace

void ParamTable::finish(bool decay_everything, const Sharding& sharding) {
    check_sharding(sharding);
    size = slices_size = 0;
    int64_t first_index = 0;
    for (Unit& unit : units) {
        std::stable_partition(unit.params.begin(), unit.params.end(), [](const ParamSpec& p) { return p.matrix(); });
        std::stable_partition(unit.params.begin(), unit.params.end(), [](const ParamSpec& p) { return !p.scalar(); });
        unit.offset = size;
        unit.size = unit.decayed = 0;
        for (ParamSpec& p : unit.params) {
            p.local = p.shape;
            if (unit.experts) divide_experts(p, sharding);
            p.offset = unit.size;
            unit.size += aligned(p.local.numel());
            if (p.matrix() || (decay_everything && !p.scalar())) unit.decayed = unit.size;
        }
        unit.first_index = first_index + (unit.experts ? sharding.expert_rank() * unit.size : 0);
        first_index += unit.experts ? sharding.expert_ranks * unit.size : unit.size;

        const int64_t slices = sharding.slices(unit.experts), slice = aligned((unit.size + slices - 1) / slices);
        if (sharding.moments()) unit.size = slices * slice;
        unit.slice_begin = std::min(sharding.slice(unit.experts) * slice, unit.size);
        unit.slice_size = std::min(slice, unit.size - unit.slice_begin);
        unit.slice_offset = slices_size;
        size += unit.size;
        slices_size += unit.slice_size;
    }
}

const Unit* ParamTable::find_unit(const std::string& name) const {
    for (const Unit& unit : units)
        if (unit.name == name) return &unit;
    return nullptr;
}

ParamTable::Found ParamTable::find(const std::string& name) const {
    for (const Unit& unit : units)
        for (const ParamSpec& spec : unit.params)
            if (spec.name == name) return {&unit, &spec};
    run_error("the model has no parameter ", name);
}

int64_t ParamTable::count() const {
    int64_t n = 0;
    for (const Unit& unit : units)
        for (const ParamSpec& spec : unit.params) n += spec.shape.numel();
    return n;
}

int64_t ParamTable::count_matrices() const {
    int64_t n = 0;
    for (const Unit& unit : units)
        for (const ParamSpec& spec : unit.params) n += spec.matrix() ? spec.shape.numel() : 0;
    return n;
}

const ParamSpec* UnitView::find(const char* local_name) const {
    for (const ParamSpec& spec : unit->params)
        if (std::string_view(spec.name).substr(unit->prefix.size() + 1) == local_name) return &spec;
    return nullptr;
}

Tensor UnitView::param(const char* local_name) const {
    if (!has(local_name)) run_error("unit ", unit ? unit->name : "?", " has no parameter ", local_name);
    return view_of(*find(local_name), params);
}

Tensor UnitView::grad(const char* local_name) const {
    if (!has(local_name)) run_error("unit ", unit ? unit->name : "?", " has no parameter ", local_name);
    return view_of(*find(local_name), grads);
}

Tensor unit_range(const Unit& unit, const Tensor& buffer) {
    Tensor range = buffer.slice(unit.offset, unit.offset + unit.size);
    range.name = unit.name.c_str();
    return range;
}

Tensor view_of(const ParamSpec& spec, const Tensor& range) {
    return Tensor(static_cast<char*>(range.data) + spec.offset * size_of(range.dtype), range.dtype, spec.local,
                  spec.name.c_str());
}

std::vector<Tensor> padding_of(const Unit& unit, const Tensor& range) {
    std::vector<Tensor> list;
    for (size_t i = 0; i < unit.params.size(); i++) {
        const int64_t begin = unit.params[i].offset + unit.params[i].local.numel();
        const int64_t end = unit.end_of(i);
        if (begin < end) list.push_back(range.slice(begin, end));
    }
    return list;
}

bool has_slices_only(const ParamTable& table, const Tensor& buffer) { return buffer.numel() != table.size; }

Tensor slice_range(const ParamTable& table, const Unit& unit, const Tensor& buffer) {
    const int64_t begin = has_slices_only(table, buffer) ? unit.slice_offset : unit.offset + unit.slice_begin;
    Tensor range = buffer.slice(begin, begin + unit.slice_size);
    range.name = unit.name.c_str();
    return range;
}

std::vector<NamedTensor> named_tensors(const ParamTable& table, const Tensor& buffer, const std::string& prefix) {
    if (has_slices_only(table, buffer))
        run_error(buffer.name, " holds only slices of units, so it has no whole tensors");
    std::vector<NamedTensor> list;
    for (const Unit& unit : table.units)
        for (const ParamSpec& spec : unit.params)
            list.push_back({prefix + spec.name, view_of(spec, unit_range(unit, buffer))});
    return list;
}

std::vector<ParamPart> parts_of(const ParamTable& table, const Tensor& buffer, bool owned) {
    std::vector<ParamPart> list;
    const bool slices = owned || has_slices_only(table, buffer);
    for_each_part(table, slices, [&](const Unit& unit, const ParamSpec& spec, int64_t from, int64_t to) {
        const Tensor range = slices ? slice_range(table, unit, buffer) : unit_range(unit, buffer);
        const int64_t begin = slices ? unit.slice_begin : 0;
        Tensor data = range.slice(from - begin, to - begin);
        data.name = spec.name.c_str();
        list.push_back({spec, data, first_element(spec, from)});
    });
    return list;
}

std::vector<NamedTensor> named_parts(const ParamTable& table, const Tensor& buffer, const std::string& prefix,
                                     bool owned) {
    std::vector<NamedTensor> list;
    for (const ParamPart& part : parts_of(table, buffer, owned))
        list.push_back({prefix + part.spec.name, part.data, part.spec.shape, part.first});
    return list;
}

}  // namespace llmc
