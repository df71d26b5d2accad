// The parameter table: every tensor of a model is declared here once, with name, shape, initialisation and decay.
// Allocation, init, AdamW, checkpoints, gradient tests, counts and `info` all walk this table.
//
// A unit is one flat range of the parameter buffer; gradients, Adam moments and the compute copy have the same layout.
// Embedding, final norm and head are units; a block has a dense unit and, if it has experts, an expert unit.
// Tensors start on multiples of 128 elements (256 bytes in bf16); the padding between them stays zero for ever.
//
// In a run of several ranks, a unit is cut into equal slices whatever tensors they cut, and a rank has all units or
// only its slice of each, one behind the other. Of units with experts there is only this rank's share of the experts.
#pragma once
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
    Shape local{};                                                  // with this rank's experts only, if it has experts
    int64_t first = 0;                                              // number of its first element in the whole tensor
    int64_t offset = 0;                                             // in elements, from the start of the unit
    int64_t start = 0;                                              // it is trained from this step on
    bool matrix() const { return init.kind == ParamInit::weight; }  // what --decay matrices decays
    bool scalar() const { return init.kind == ParamInit::scalar; }  // what no --decay decays
};

struct Unit {
    std::string name;      // "embedding", "blocks.3", "blocks.3.experts", "final_norm", "head"
    bool experts = false;  // axis 0 of every tensor counts experts
    int64_t offset = 0;    // in elements, from the start of the parameter buffer
    int64_t size = 0;      // in elements, with padding
    int64_t decayed = 0;   // weight decay applies to elements [0, decayed)
    std::vector<ParamSpec> params;

    // Declares `prefix.local_name`; see ParamInit.
    void weight(const std::string& local_name, Shape shape, int64_t fan_in) {
        add(local_name, shape, {ParamInit::weight, fan_in});
    }
    void bias(const std::string& local_name, Shape shape, int64_t fan_in) {
        add(local_name, shape, {ParamInit::bias, fan_in});
    }
    void ones(const std::string& local_name, Shape shape) { add(local_name, shape, {ParamInit::ones, 1}); }
    void zeros(const std::string& local_name, Shape shape) { add(local_name, shape, {ParamInit::zeros, 1}); }

    // Temperatures and mixing weights, which never decay: 0 is no neutral value of theirs, and a temperature that
    // decays makes its softmax ever sharper.
    void scalar(const std::string& local_name, Shape shape, double value, int64_t start = 0) {
        add(local_name, shape, {ParamInit::scalar, 1, value});
        params.back().start = start;
    }

    std::string prefix;  // put before local names: "blocks.3"

    // This rank's slice: elements [slice_begin, slice_begin + slice_size) of the unit. All slices are equal, but where
    // nothing is divided they only say who writes and sums what, and the last ones may be smaller.
    int64_t slice_begin = 0, slice_size = 0;
    int64_t slice_offset = 0;  // from the start of a buffer that has this rank's slices only
    int64_t first_index = 0;   // of its first element among all: stochastic rounding numbers its random bits by it.
                               // The same for every number of ranks, unless experts are divided
    bool masters = false;      // blocks read parameters of this unit in the optimizer's own precision

private:
    void add(const std::string& local_name, Shape shape, ParamInit init) {
        params.push_back({prefix + "." + local_name, shape, init});
    }
};

struct ParamTable {
    std::vector<Unit> units;
    int64_t size = 0;         // elements of a buffer with all units, with padding
    int64_t slices_size = 0;  // elements of one with this rank's slices only

    // Lays out units and tensors. In each unit weights come first and scalars last, so that one bound says what is
    // decayed. InputError if the experts cannot be divided.
    void finish(bool decay_everything, const Sharding& sharding = {});

    const Unit* find_unit(const std::string& name) const;  // nullptr if there is none
    struct Found {
        const Unit* unit = nullptr;
        const ParamSpec* spec = nullptr;
    };
    Found find(const std::string& name) const;  // RunError if there is no such tensor
    int64_t count() const;                                 // parameters, without padding
    int64_t count_matrices() const;                        // of these in matrices and embeddings
};

// A unit at work: where its parameters lie now and, while training, its gradients.
struct UnitView {
    const Unit* unit = nullptr;
    Tensor params, grads;  // [unit->size] each

    bool has(const char* local_name) const { return unit && find(local_name); }
    Tensor param(const char* local_name) const;  // RunError if there is no such tensor
    Tensor grad(const char* local_name) const;

private:
    const ParamSpec* find(const char* local_name) const;
};

// The unit's range of a buffer that has all units (parameters, gradients, moments), and one tensor inside such a range.
Tensor unit_range(const Unit& unit, const Tensor& buffer);
Tensor view_of(const ParamSpec& spec, const Tensor& range);
// What of such a range is no tensor's: the padding behind each.
std::vector<Tensor> padding_of(const Unit& unit, const Tensor& range);

// This rank's slice of the unit, in a buffer that has all units or one that has only slices; its size tells.
bool has_slices_only(const ParamTable& table, const Tensor& buffer);
Tensor slice_range(const ParamTable& table, const Unit& unit, const Tensor& buffer);

// Every tensor of a buffer that has all units, called prefix + its name, in table order. RunError if it has slices.
std::vector<NamedTensor> named_tensors(const ParamTable& table, const Tensor& buffer, const std::string& prefix);
// What lies here of a tensor, flat and maybe empty: its elements from number `first` on.
struct ParamPart {
    const ParamSpec& spec;
    Tensor data;
    int64_t first;
};
// The part of every tensor that lies in any buffer, or (`owned`) in this rank's slices of it. The owned parts of all
// ranks together are every element of every tensor once.
std::vector<ParamPart> parts_of(const ParamTable& table, const Tensor& buffer, bool owned);
std::vector<NamedTensor> named_parts(const ParamTable& table, const Tensor& buffer, const std::string& prefix,
                                     bool owned);

}  // namespace llmc
