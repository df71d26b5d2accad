#include "llmc/model/sharding.h"

namespace llmc {

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
