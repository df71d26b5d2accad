// What an optimizer keeps for the parameters from step to step: Adam's moments, a momentum.
#pragma once
#include "llmc/model/params.h"
#include "llmc/ops/arena.h"

namespace llmc {

// A sort of state: one tensor, of the parameter's shape, for every parameter that has it.
struct StateKind {
    const char* prefix;  // of the names in checkpoints: "m." for "m.head.weight"
    int degree;          // if all gradients had been c times as large, it would be c^degree times as large
    bool (*has)(const ParamSpec&);
};

// All tensors of one sort in one buffer, in the order of the parameters: whole units, or this rank's slices of them.
// Parameters that do not have this state take no place.
class StateBuffer {
public:
    StateBuffer(const StateKind& kind, const ParamTable& table, bool slices);
    void allocate(DType dtype, Arena& arena);  // gets the memory, contents undefined

    const StateKind& kind() const { return declared; }
    const Tensor& all() const { return data; }
    // The state of elements [begin, end) of the unit. They are on this rank, and their parameters have this state.
    Tensor range(const Unit& unit, int64_t begin, int64_t end) const;
    // As named_parts.
    std::vector<NamedTensor> parts(bool owned) const;

private:
    struct Place {
        int64_t offset;  // of the unit in the buffer
        int64_t first;   // which of the unit's elements of state lies there
    };
    int64_t count(const Unit& unit, int64_t end) const;

    StateKind declared;
    const ParamTable& table;
    bool slices;
    int64_t size = 0;
    std::vector<Place> places;  // one per unit
    Tensor data;
};

}  // namespace llmc
