#include "llmc/planner/exchange.h"

#include <cmath>
#include <cstdio>

namespace llmc {

double distinct_ranks(int64_t experts, int ranks, int64_t k) {
    double none = 1;  // probability that no expert of a given GPU is chosen
    for (int64_t i = 0; i < k; i++) none *= double(experts - experts / ranks - i) / double(experts - i);
    return ranks * (1 - std::max(none, 0.0));
}

std::vector<Exchange> compare_exchanges(const ModelConfig& config, const ExchangeCase& of, DType act,
                                        const Cluster& cluster) {
    const ModelConfig model = resolved(config);
    const int64_t E = model.experts, k = has_mot(model) ? std::max(E / model.group_size, int64_t(1)) : model.top_k;
    const double g = has_mot(model) ? double(model.group_size) : double(E) / double(k);
    const double fraction = has_block(model, "moe_expert_choice") ? model.expert_choice_fraction : 1 / g;
    ModelConfig routed = model;
    routed.top_k = k;
    const Path path = path_of({0, 1, of.ranks}, cluster);
    auto all_to_all = [&](double bytes) {
        return collective_seconds("all_to_all", {1, int64_t(bytes), int64_t(bytes) * (of.ranks - 1) / of.ranks}, path,
                                  cluster);
    };
    std::vector<Exchange> list;
    auto add = [&](const std::string& kind, double rows, bool counted) {
        const double bytes = rows * double(of.tokens * model.d_model * size_of(act));
        const double counts = counted ? all_to_all(double(E) * sizeof(int32_t)) + host_waits * cluster.host_wait : 0;
        list.push_back({kind, rows, counted, bytes, 4 * all_to_all(bytes) + counts});
    };
    add(str("MoT, groups of ", g), double(E) / g, false);
    if (E > g * of.ranks) add("  the same, tokens not mixtures", of.ranks, false);
    add(str("expert choice, 1/", 1 / fraction, " of the tokens"), double(E) * fraction, false);
    add(str("token choice, top ", k, ", capacity ", model.capacity_factor),
        double(E * expert_capacity(routed, of.tokens)) / double(of.tokens), false);
    add(str("dropless, top ", k, ", even loads"), double(k), true);
    add(str("dropless, top ", k, ", imbalance ", of.imbalance), double(k) * of.imbalance, true);
    if (k > 1) add("  the same, once a GPU", distinct_ranks(E, of.ranks, k) * of.imbalance, true);
    return list;
}

std::string describe_exchanges(const ModelConfig& model, const ExchangeCase& of, DType act, const Cluster& cluster) {
    char line[256];
    std::snprintf(line, sizeof line, "\nexchange of a mixture layer: %lld experts over %d GPUs, %lld tokens each, %s\n",
                  static_cast<long long>(resolved(model).experts), of.ranks, static_cast<long long>(of.tokens),
                  name_of(act));
    std::string text = line;
    std::snprintf(line, sizeof line, "  %-38s %12s %14s %12s  %s\n", "", "rows a token", "MB an exchange", "us a layer",
                  "sizes are known");
    text += line;
    for (const Exchange& e : compare_exchanges(model, of, act, cluster)) {
        std::snprintf(line, sizeof line, "  %-38s %12.2f %14.2f %12.1f  %s\n", e.kind.c_str(), e.rows, e.bytes * 1e-6,
                      e.seconds * 1e6, e.counted ? "when counts have arrived" : "before the run");
        text += line;
    }
    return text;
}

}  // namespace llmc
