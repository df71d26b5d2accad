// The experts of a mixture: all on this rank, or divided over the N ranks of Pass::expert_ranks.
//
// Rows [E,S,C]: S for every expert. Divided, a rank's E/N experts work on the rows of all N ranks, [E/N, N*S, C]: sizes
// are fixed and equal, whatever was routed (Lepikhin et al. 2021); a mixture of tokens is always there.
//
// Ragged rows [R,C] with offsets [E+1] (see ops.h). Divided, how many go where is known only once the router has
// spoken: the host waits for it in every forward and backward pass, for its own numbers and those of the other ranks,
// and memory is planned for the case that all tokens of all ranks choose experts of one.
#pragma once
#include "llmc/model/blocks/feed_forward.h"

namespace llmc {

class Experts {
public:
    // sizes.experts: E of all ranks.
    Experts(const std::string& activation, const FeedForward::Sizes& sizes)
        : one("experts.", activation, sizes), experts(sizes.experts) {}

    void declare_params(Unit& unit) const { one.declare_params(unit); }
    // pairs: for ragged rows, of tokens and experts that they hold at most.
    void declare_saved(std::vector<SavedSpec>& saved, const Pass& p, const Shape& rows, int64_t pairs = 0) const;
    // y, x: rows of all experts. offsets of ragged rows.
    void forward(const Pass& p, Tensor y, Tensor x, Tensor offsets = {}) const;
    // rows: the gradient of y on entry, of x on return. x is not looked at if the experts are divided.
    void backward(const Pass& p, Tensor rows, Tensor x, Tensor offsets = {}) const;

private:
    const FeedForward one;
    const int64_t experts;
};

}  // namespace llmc
