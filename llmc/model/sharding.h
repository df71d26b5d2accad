// How a model is divided over the ranks of a run, and the groups of ranks that work together because of it.
//
//   shard         what of a unit is cut into equal slices, one for each rank (ZeRO, Rajbhandari et al. 2020)
//     none        nothing: every rank has everything
//     optimizer   Adam's moments, and f32 masters where blocks compute with a bf16 copy: ZeRO-1
//     gradients   and gradients: ZeRO-2
//     parameters  and parameters, which are gathered for a block while it works: ZeRO-3, FSDP (Zhao et al. 2023)
//   expert_ranks  N ranks in a row have E/N experts each; what experts work on travels (Lepikhin et al. 2021)
//   group_ranks   G ranks in a row work on one micro-batch, B/G sequences each, and exchange positions for sequences
//                 around every MoT block, so that groups may be larger than one rank's share of the batch
#pragma once
#include "llmc/comm/comm.h"

namespace llmc {

enum class ShardMode { none, optimizer, gradients, parameters };
ShardMode shard_from_name(const std::string& name);
const char* name_of(ShardMode shard);

struct Sharding {
    ShardMode shard = ShardMode::none;
    int ranks = 1, rank = 0;
    int expert_ranks = 1, group_ranks = 1;

    bool moments() const { return shard >= ShardMode::optimizer; }
    bool gradients() const { return shard >= ShardMode::gradients; }
    bool parameters() const { return shard >= ShardMode::parameters; }
    int expert_rank() const { return rank % expert_ranks; }  // which of the experts this rank has
    int batches() const { return ranks / group_ranks; }      // micro-batches that are worked on at a time
    int batch() const { return rank / group_ranks; }         // which of them by this rank
    int batch_part() const { return rank % group_ranks; }    // and which part of its sequences

    // A unit's slices: all ranks share a dense unit, and those that have the same experts share these.
    int slices(bool experts) const { return experts ? ranks / expert_ranks : ranks; }
    int slice(bool experts) const { return experts ? rank / expert_ranks : rank; }
};

// InputError if the ranks cannot be divided like that.
void check_sharding(const Sharding& sharding);

// The Comms of a run. Made by all ranks at once.
struct Mesh {
    Mesh(World& world, Context& ctx, const Sharding& sharding);

    Comm all;       // everybody
    Comm experts;   // the ranks that have all experts together
    Comm replicas;  // those that have the same experts
    Comm group;     // those that share a micro-batch
    Comm& of_unit(bool has_experts) { return has_experts ? replicas : all; }

    // Bytes on the wire of all of them: what each rank sends on average, see CommCost.
    std::map<std::string, CommCost> costs() const;
};

}  // namespace llmc
