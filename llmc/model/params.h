// The parameter table: every tensor of a model is declared here once, with name, shape, initialisation and decay.
// Allocation, initialisation, optimizers, checkpoints, gradient tests, counts and `info` all loop over this table.
//
// A unit is one contiguous range of the parameter buffer; gradients and the compute copy have the same layout.
// Embedding, final norm and head are units; a block has a dense unit and, if it has experts, an expert unit. Tensors
// start at multiples of 128 elements (256 bytes in bf16); the padding between them is always zero.
//
// With several ranks, every unit is cut into equal slices, wherever the borders of tensors are. A rank's buffer holds
// either whole units or only its slice of each unit, one after the other. A unit of experts holds only the experts that
// are on this rank.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "llmc/base/tensor.h"
#include "llmc/model/sharding.h"

namespace llmc {

struct ParamInit {
    enum Kind { zeros, ones, weight, bias, scalar } kind = zeros;
    int64_t fan_in = 1;  // weight: truncated normal of this fan-in; bias: uniform in +-1/sqrt(fan_in)
    double value = 0;    // scalar: what it starts at
};

struct ParamSpec {
    std::string name;  // full name, "blocks.3.qkv.weight"
    Shape shape;
    ParamInit init;
    Shape local{};      // shape on this rank, with its experts only
    int64_t first = 0;  // index in the whole tensor of its first element here
    int64_t offset = 0;                                             // in elements, from the start of the unit
    int64_t start = 0;                                              // first step that trains it
    // A hidden layer's weight is one matrix, or several along axis 0 that are layers of their own: Q, K and V, or one
    // per expert. Their shape, rows x columns; no shape for all other parameters. Muon is for these.
    Shape hidden{};
    bool matrix() const { return init.kind == ParamInit::weight; }  // decays with --decay matrices
    bool scalar() const { return init.kind == ParamInit::scalar; }  // never decays
};

struct Unit {
    std::string name;      // "embedding", "blocks.3", "blocks.3.experts", "final_norm", "head"
    bool experts = false;  // axis 0 of every tensor is the expert
    int64_t offset = 0;    // in elements, from the start of the parameter buffer
    int64_t size = 0;      // in elements, with padding
    int64_t decayed = 0;   // weight decay applies to elements [0, decayed)
    std::vector<ParamSpec> params;

    // Declare the parameter `prefix.local_name` with this initialisation, see ParamInit.
    void weight(const std::string& local_name, Shape shape, int64_t fan_in) {
        add(local_name, shape, {ParamInit::weight, fan_in});
    }
    // The same for a hidden layer: one matrix, `stacked` matrices of equal shape, or with a leading axis one per
    // expert.
    void hidden_weight(const std::string& local_name, Shape shape, int64_t fan_in, int64_t stacked = 1) {
        weight(local_name, shape, fan_in);
        params.back().hidden = {shape[-2] / stacked, shape[-1]};
    }
    void bias(const std::string& local_name, Shape shape, int64_t fan_in) {
        add(local_name, shape, {ParamInit::bias, fan_in});
    }
    void ones(const std::string& local_name, Shape shape) { add(local_name, shape, {ParamInit::ones, 1}); }
    void zeros(const std::string& local_name, Shape shape) { add(local_name, shape, {ParamInit::zeros, 1}); }

    // Declares temperatures or mixing weights. They never decay: 0 is not neutral for them, and a temperature that
    // decays makes its softmax ever sharper. They are trained from step `start` on.
    void scalar(const std::string& local_name, Shape shape, double value, int64_t start = 0) {
        add(local_name, shape, {ParamInit::scalar, 1, value});
        params.back().start = start;
    }

    // Where the padding after parameter number i ends.
    int64_t end_of(size_t i) const { return i + 1 < params.size() ? params[i + 1].offset : size; }

    std::string prefix;  // put before local names: "blocks.3"

    // This rank's slice is elements [slice_begin, slice_begin + slice_size) of the unit. All slices are equal in size.
    // If no buffer is divided, slices only say which rank writes and sums what, and the last ones may be smaller.
    int64_t slice_begin = 0, slice_size = 0;
    int64_t slice_offset = 0;  // where the slice starts in a buffer that holds this rank's slices only
    // Number of the slice's first element among all elements of the table, which stochastic rounding uses for its
    // random bits. It is the same for every number of ranks, unless experts are divided.
    int64_t first_index = 0;
    bool masters = false;  // blocks also read parameters of this unit in the optimizer's precision

private:
    void add(const std::string& local_name, Shape shape, ParamInit init) {
        params.push_back({prefix + "." + local_name, shape, init});
    }
};

struct ParamTable {
    std::vector<Unit> units;
    int64_t size = 0;         // elements of a buffer with all units, with padding
    int64_t slices_size = 0;  // elements of a buffer with this rank's slices only

    // Computes the layout of units and tensors. In each unit, weights come first and scalars last, so that one bound
    // separates what decays from what does not. InputError if the experts cannot be divided.
    void finish(bool decay_everything, const Sharding& sharding = {});

    const Unit* find_unit(const std::string& name) const;  // nullptr if there is none
    struct Found {
        const Unit* unit = nullptr;
        const ParamSpec* spec = nullptr;
    };
    Found find(const std::string& name) const;  // RunError if there is no such tensor
    int64_t count() const;                      // number of parameters, without padding
    int64_t count_matrices() const;             // number of those in matrices and embeddings
};

// A unit in use: its parameters and, in training, its gradients.
struct UnitView {
    const Unit* unit = nullptr;
    Tensor params, grads;  // [unit->size] each

    // Whether the unit has this parameter; the parameter; its gradient.
    bool has(const char* local_name) const { return unit && find(local_name); }
    Tensor param(const char* local_name) const;  // RunError if there is no such tensor
    Tensor grad(const char* local_name) const;

private:
    const ParamSpec* find(const char* local_name) const;
};

// The range of a unit in a buffer of whole units (parameters or gradients), 1-D.
Tensor unit_range(const Unit& unit, const Tensor& buffer);
// One tensor inside such a range, with its shape on this rank.
Tensor view_of(const ParamSpec& spec, const Tensor& range);
// The padding after each tensor of such a range.
std::vector<Tensor> padding_of(const Unit& unit, const Tensor& range);

// Whether the buffer holds only this rank's slices. Its size tells.
bool has_slices_only(const ParamTable& table, const Tensor& buffer);
// This rank's slice of the unit, in either sort of buffer.
Tensor slice_range(const ParamTable& table, const Unit& unit, const Tensor& buffer);

// Every tensor of a buffer of whole units, named prefix + its name, in the order of the table. RunError if the buffer
// holds only slices.
std::vector<NamedTensor> named_tensors(const ParamTable& table, const Tensor& buffer, const std::string& prefix);
// Calls f(unit, spec, from, to) for every parameter, in the order of the table: elements [from, to) of the unit, maybe
// none, are the part of the parameter that is in this rank's slice, or with slices = false all of it.
template <class F>
void for_each_part(const ParamTable& table, bool slices, F&& f) {
    for (const Unit& unit : table.units) {
        const int64_t begin = slices ? unit.slice_begin : 0, end = slices ? begin + unit.slice_size : unit.size;
        for (const ParamSpec& spec : unit.params)
            f(unit, spec, std::clamp(spec.offset, begin, end),
              std::clamp(spec.offset + spec.local.numel(), begin, end));
    }
}
// The number, in the whole tensor, of the first element of a part that begins at element `from` of the unit.
inline int64_t first_element(const ParamSpec& spec, int64_t from) {
    return spec.first + std::max<int64_t>(from - spec.offset, 0);
}

// The part of a tensor that is in this rank's memory, 1-D and maybe empty: its elements from number `first` on.
struct ParamPart {
    const ParamSpec& spec;
    Tensor data;
    int64_t first;
};
// The part of every tensor that is in a buffer, of either sort; with `owned`, only what is in this rank's slices. The
// owned parts of all ranks together contain every element of every tensor exactly once.
std::vector<ParamPart> parts_of(const ParamTable& table, const Tensor& buffer, bool owned);
// The same with names: prefix + the tensor's name.
std::vector<NamedTensor> named_parts(const ParamTable& table, const Tensor& buffer, const std::string& prefix,
                                     bool owned);

}  // namespace llmc
