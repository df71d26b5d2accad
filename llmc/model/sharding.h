// How a model is divided over the ranks of a run, and the groups of ranks that work together because of it.
//
//   shard         which buffers are cut into equal slices, one for each rank (ZeRO, Rajbhandari et al. 2020)
//     none        nothing: every rank has everything
//     optimizer   the optimizer's state, and f32 masters if blocks compute with a bf16 copy: ZeRO-1
//     gradients   gradients too: ZeRO-2
//     parameters  parameters too, which are gathered for a block while it computes: ZeRO-3, FSDP (Zhao et al. 2023)
//   expert_ranks  N consecutive ranks have E/N experts each; the rows of experts are exchanged by all-to-all
//                 (Lepikhin et al. 2021)
//   group_ranks   G consecutive ranks compute one micro-batch, B/G sequences each, and exchange positions for sequences
//                 around every MoT block, so that groups may be larger than one rank's part of the batch
#pragma once
#include "llmc/base/words.h"
#include "llmc/comm/comm.h"

namespace llmc {

enum class ShardMode { none, optimizer, gradients, parameters };
template <>
inline constexpr std::array words_of<ShardMode> = {"none", "optimizer", "gradients", "parameters"};

struct Sharding {
    ShardMode shard = ShardMode::none;
    int ranks = 1, rank = 0;
    int expert_ranks = 1, group_ranks = 1;

    // Whether the optimizer's state (moments), gradients, parameters are cut into slices.
    bool moments() const { return shard >= ShardMode::optimizer; }
    bool gradients() const { return shard >= ShardMode::gradients; }
    bool parameters() const { return shard >= ShardMode::parameters; }
    int expert_rank() const { return rank % expert_ranks; }  // which part of the experts this rank has
    int batches() const { return ranks / group_ranks; }      // micro-batches that are computed at the same time
    int batch() const { return rank / group_ranks; }         // which of them this rank computes
    int batch_part() const { return rank % group_ranks; }    // and which part of its sequences

    // Number of slices of a unit, and this rank's. All ranks divide a dense unit; the ranks that have the same experts
    // divide those.
    int slices(bool experts) const { return experts ? ranks / expert_ranks : ranks; }
    int slice(bool experts) const { return experts ? rank / expert_ranks : rank; }
};

// InputError if expert_ranks or group_ranks does not divide the number of ranks.
void check_sharding(const Sharding& sharding);

// The Comms of a run. Created by all ranks at the same time.
struct Mesh {
    Mesh(World& world, Context& ctx, const Sharding& sharding);

    Comm all;       // all ranks
    Comm experts;   // the ranks that have all experts together
    Comm replicas;  // the ranks that have the same experts
    Comm group;     // the ranks that divide a micro-batch
    // The ranks that divide the slices of a unit.
    Comm& of_unit(bool has_experts) { return has_experts ? replicas : all; }

    // Costs of all four, added up by the name of the collective.
    std::map<std::string, CommCost> costs() const;
};

}  // namespace llmc
