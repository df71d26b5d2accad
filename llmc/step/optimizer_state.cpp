#include "llmc/step/optimizer_state.h"

#include <algorithm>

namespace llmc {

StateBuffer::StateBuffer(const StateKind& kind, const ParamTable& table, bool slices)
    : declared(kind), table(table), slices(slices) {
    for (const Unit& unit : table.units) {
        places.push_back({size, slices ? count(unit, unit.slice_begin) : 0});
        // Slices have equal room on all ranks, although some may hold more parameters with this state than others.
        const int64_t all = count(unit, unit.size);
        size += slices ? std::min(all, unit.slice_size) : all;
    }
}

void StateBuffer::allocate(DType dtype, Arena& arena) { data = arena.tensor(declared.prefix, dtype, {size}); }

// How many of the unit's elements [0, end) have this state; padding counts with the parameter before it.
int64_t StateBuffer::count(const Unit& unit, int64_t end) const {
    int64_t n = end;
    for (size_t i = 0; i < unit.params.size(); i++) {
        if (declared.has(unit.params[i])) continue;
        const int64_t begin = unit.params[i].offset;
        n -= std::clamp(end, begin, unit.end_of(i)) - begin;
    }
    return n;
}

Tensor StateBuffer::range(const Unit& unit, int64_t begin, int64_t end) const {
    const Place& place = places[size_t(&unit - table.units.data())];
    const int64_t first = place.offset + count(unit, begin) - place.first;
    Tensor range = data.slice(first, first + end - begin);
    range.name = unit.name.c_str();
    return range;
}

std::vector<NamedTensor> StateBuffer::parts(bool owned) const {
    std::vector<NamedTensor> list;
    for_each_part(table, owned || slices, [&](const Unit& unit, const ParamSpec& spec, int64_t from, int64_t to) {
        if (!declared.has(spec)) return;
        Tensor part = range(unit, from, to);
        part.name = spec.name.c_str();
        list.push_back({declared.prefix + spec.name, part, spec.shape, first_element(spec, from)});
    });
    return list;
}

}  // namespace llmc
