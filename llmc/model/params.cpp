#include "llmc/model/params.h"

#include <algorithm>
#include <string_view>

namespace llmc {

namespace {
constexpr int64_t alignment = 128;  // elements
int64_t aligned(int64_t n) { return (n + alignment - 1) / alignment * alignment; }
}  // namespace

void ParamTable::finish(bool decay_everything) {
    size = 0;
    for (Unit& unit : units) {
        std::stable_partition(unit.params.begin(), unit.params.end(), [](const ParamSpec& p) { return p.matrix(); });
        std::stable_partition(unit.params.begin(), unit.params.end(), [](const ParamSpec& p) { return !p.scalar(); });
        unit.offset = size;
        unit.size = unit.decayed = 0;
        for (ParamSpec& p : unit.params) {
            p.offset = unit.size;
            unit.size += aligned(p.shape.numel());
            if (p.matrix() || (decay_everything && !p.scalar())) unit.decayed = unit.size;
        }
        size += unit.size;
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
    return Tensor(static_cast<char*>(range.data) + spec.offset * size_of(range.dtype), range.dtype, spec.shape,
                  spec.name.c_str());
}

std::vector<NamedTensor> named_tensors(const ParamTable& table, const Tensor& buffer, const std::string& prefix) {
    std::vector<NamedTensor> list;
    for (const Unit& unit : table.units)
        for (const ParamSpec& spec : unit.params)
            list.push_back({prefix + spec.name, view_of(spec, unit_range(unit, buffer))});
    return list;
}

}  // namespace llmc
