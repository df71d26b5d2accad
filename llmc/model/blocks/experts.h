// The experts of a mixture: all on this rank, or divided over the N ranks of Pass::expert_ranks.
//
// Rows [E,S,C]: S rows for every expert. If divided, a rank's E/N experts process the rows of all N ranks, [E/N, N*S,
// C]. Sizes are fixed and equal for any routing (Lepikhin et al. 2021). Mixtures of tokens are always of this form.
//
// Ragged rows [R,C] with offsets [E+1] (see ops.h). If divided, the numbers of rows are known only after routing. The
// host then waits in every forward and backward pass, for its own numbers and those of the other ranks, and memory is
// planned for the worst case, that all tokens of all ranks choose the experts of one rank.
#pragma once
#include "llmc/model/blocks/feed_forward.h"

namespace llmc {

class Experts {
public:
    // sizes.experts: E, the number of experts on all ranks together.
    Experts(Hidden activation, const FeedForward::Sizes& sizes)
        : one("experts.", activation, sizes), experts(sizes.experts) {}

    void declare_params(Unit& unit) const { one.declare_params(unit); }
    // rows: shape of x. pairs: for ragged rows, the largest number of (token, expert) pairs.
    void declare_saved(std::vector<SavedSpec>& saved, const Pass& p, const Shape& rows, int64_t pairs = 0) const;
    // y = the experts' output for x, both with the rows of all experts. offsets: for ragged rows.
    void forward(const Pass& p, Tensor y, Tensor x, Tensor offsets = {}) const;
    // rows: on entry the gradient of y, on return that of x. x is not used if the experts are divided.
    void backward(const Pass& p, Tensor rows, Tensor x, Tensor offsets = {}) const;

private:
    const FeedForward one;
    const int64_t experts;
};

}  // namespace llmc
