// What a block sends to other ranks. Without any, see Pass, nothing here is called.
//
// Experts divided over N ranks: a rank has the rows of its own micro-batch for all experts, [E,S,C]; its E/N experts
// work on those of all N ranks, [E/N, N*S, C]. Sizes are fixed and equal, whatever was routed (Lepikhin et al. 2021): a
// mixture of tokens is always there, a slot may be empty.
//
// Sequences divided over G ranks: a rank has all T positions of B sequences, [B,T,C]; around MoT it has T/G positions
// of all G*B sequences, [G*B, T/G, C], and so whole groups.
#pragma once
#include "llmc/model/blocks/block.h"

namespace llmc {

// Shape of what arrives, for rows [E,S,C].
Shape rows_of_all_ranks(const Pass& p, const Shape& rows);
void to_experts(const Pass& p, Tensor arrived, Tensor rows);    // [E/N, N*S, C] = [E,S,C]
void from_experts(const Pass& p, Tensor rows, Tensor answers);  // [E,S,C] = [E/N, N*S, C]

// The pass that works on T/G positions of all sequences.
Pass with_all_sequences(const Pass& p);
void to_positions(const Pass& p, Tensor all, Tensor x);    // [G*B, T/G, C] = [B,T,C]
void from_positions(const Pass& p, Tensor x, Tensor all);  // [B,T,C] = [G*B, T/G, C]

}  // namespace llmc
