#include "llmc/model/sharding.h"

#include <array>

namespace llmc {

namespace {
constexpr std::array names = {"none", "optimizer", "gradients", "parameters"};
}

ShardMode shard_from_name(const std::string& name) {
    for (size_t i = 0; i < names.size(); i++)
        if (name == names[i]) return ShardMode(i);
    input_error("--shard ", name, " is not known: choose none, optimizer, gradients or parameters");
}

const char* name_of(ShardMode shard) { return names[size_t(shard)]; }

void check_sharding(const Sharding& s) {
    if (s.ranks % s.expert_ranks)
        input_error("--expert-parallel ", s.expert_ranks, " does not divide the number of processes, ", s.ranks);
    if (s.ranks % s.group_ranks)
        input_error("--group-ranks ", s.group_ranks, " does not divide the number of processes, ", s.ranks);
}

Mesh::Mesh(World& world, Context& ctx, const Sharding& s)
    : all(world, ctx),
      experts(world, ctx, {s.rank / s.expert_ranks * s.expert_ranks, 1, s.expert_ranks}),
      replicas(world, ctx, {s.expert_rank(), s.expert_ranks, s.ranks / s.expert_ranks}),
      group(world, ctx, {s.rank / s.group_ranks * s.group_ranks, 1, s.group_ranks}) {}

std::map<std::string, CommCost> Mesh::costs() const {
    std::map<std::string, CommCost> sum;
    for (const Comm* comm : {&all, &experts, &replicas, &group})
        for (const auto& [name, cost] : comm->costs) {
            CommCost& total = sum[name];
            total.calls += cost.calls, total.bytes += cost.bytes, total.wire += cost.wire;
        }
    return sum;
}

}  // namespace llmc
