// How rows and sequences travel between ranks: experts.h, and Mixture of Tokens over several ranks' sequences.
#pragma once
#include "llmc/model/blocks/block.h"

namespace llmc {

// --------------------------------------------------------------------------- rows of equal number, to experts and back
void to_experts(const Pass& p, Tensor arrived, Tensor rows);    // [E/N, N*S, C] = [E,S,C]
void from_experts(const Pass& p, Tensor rows, Tensor answers);  // [E,S,C] = [E/N, N*S, C]

// ----------------------------------------------------------------------------------------- ragged rows, there and back
// What is decided once a micro-batch: "arrived_offsets" [E/N + 1], where the rows of this rank's experts begin among
// those that arrive; "arrived_order" and "arrived_place" [rows], which received row stands where in the order of
// experts and the other way round, -1: none; "exchanged" [2,N], rows sent to and received from each rank. All i32.
void declare_ragged_exchange(std::vector<SavedSpec>& saved, int64_t ranks, int64_t experts, int64_t rows);
// Fills them, from the offsets [E+1] of this rank's rows. The host waits.
void plan_ragged_exchange(const Pass& p, Tensor offsets);

class RaggedExchange {
public:
    explicit RaggedExchange(const Pass& p);                                 // the host waits
    void to_experts(const Pass& p, Tensor arrived, Tensor rows) const;    // [rows of all ranks, C] = [R,C]
    void from_experts(const Pass& p, Tensor rows, Tensor answers) const;  // back

private:
    std::vector<int64_t> sent, received;  // rows, by rank
};

// ----------------------------------------------------------------------------------- positions for sequences, and back
// Of a micro-batch that G ranks share, a rank has all T positions of B sequences, [B,T,C]; around MoT it has T/G
// positions of all G*B sequences, [G*B, T/G, C], and so whole groups.
Pass with_all_sequences(const Pass& p);                    // the pass that works on those
void to_positions(const Pass& p, Tensor all, Tensor x);    // [G*B, T/G, C] = [B,T,C]
void from_positions(const Pass& p, Tensor x, Tensor all);  // [B,T,C] = [G*B, T/G, C]

}  // namespace llmc
