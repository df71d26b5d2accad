// All-to-alls around blocks: rows to divided experts (experts.h), and sequences of a micro-batch that several ranks
// divide.
#pragma once
#include "llmc/model/blocks/block.h"

namespace llmc {

// ------------------------------------------------------------------------ equal numbers of rows, to experts and back
// N ranks, E experts, S rows per expert and rank. arrived = the rows of all ranks for this rank's experts.
void to_experts(const Pass& p, Tensor arrived, Tensor rows);    // [E/N, N*S, C] = [E,S,C]
void from_experts(const Pass& p, Tensor rows, Tensor answers);  // [E,S,C] = [E/N, N*S, C]

// ----------------------------------------------------------------------------------------- ragged rows, there and back
// Tables of a ragged exchange, decided once per micro-batch, all i32: "arrived_offsets" [E/N + 1], where the rows of
// this rank's experts begin among the rows that arrive; "arrived_order" [rows], the received row at each place in the
// order of experts, and "arrived_place" [rows], the place of each received row (-1: none); "exchanged" [2,N], the
// numbers of rows sent to and received from each rank.
void declare_ragged_exchange(std::vector<SavedSpec>& saved, int64_t ranks, int64_t experts, int64_t rows);
// Fills these tables from the offsets [E+1] of this rank's rows. The host waits for the device and for the other ranks.
void plan_ragged_exchange(const Pass& p, Tensor offsets);

class RaggedExchange {
public:
    explicit RaggedExchange(const Pass& p);                               // reads "exchanged"; the host waits
    void to_experts(const Pass& p, Tensor arrived, Tensor rows) const;    // arrived [rows of all ranks, C] = rows [R,C]
    void from_experts(const Pass& p, Tensor rows, Tensor answers) const;  // the way back, for the experts' output

private:
    std::vector<int64_t> sent, received;  // numbers of rows, by rank
};

// ----------------------------------------------------------------------------------- positions for sequences, and back
// If G ranks divide a micro-batch, a rank has all T positions of B sequences, [B,T,C]. Around a MoT block it has T/G
// positions of all G*B sequences instead, [G*B, T/G, C], and so whole groups.
Pass with_all_sequences(const Pass& p);                    // the same pass with G*B sequences of T/G positions
void to_positions(const Pass& p, Tensor all, Tensor x);    // [G*B, T/G, C] = [B,T,C]
void from_positions(const Pass& p, Tensor x, Tensor all);  // [B,T,C] = [G*B, T/G, C]

}  // namespace llmc
