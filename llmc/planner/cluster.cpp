#include "llmc/planner/cluster.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>

#include "llmc/base/files.h"
#include "llmc/base/json_text.h"
#include "llmc/ops/datasheets.h"

namespace llmc {

Gpu gpu_by_name(const std::string& name) {
    auto is_lower_case_of = [](char lower, char c) { return lower == std::tolower(static_cast<unsigned char>(c)); };
    for (const Datasheet& sheet : datasheets) {
        const std::string known = sheet.name;
        if (sheet.link > 0 && std::equal(name.begin(), name.end(), known.begin(), known.end(), is_lower_case_of))
            return {name, sheet.bf16, sheet.fp32, sheet.bandwidth, sheet.memory, sheet.link, sheet.per_node};
    }
    return {.name = name};
}

// ---------------------------------------------------------------------------------------------------- computation

bool on_tensor_cores(const std::string& op) {
    for (const char* name : {"matmul", "matmul_ragged", "head_loss", "attention_forward", "attention_backward",
                             "mot_merge", "mot_emit", "mot_weights_backward"})
        if (op == name) return true;
    return false;
}

OpTime op_time(const std::string& op, const OpCost& cost, DType act, const Gpu& gpu, const Shares& shares) {
    const double rate = on_tensor_cores(op) ? gpu.peak(act) * shares.matrix : gpu.fp32;
    return {cost.flops / rate, double(cost.bytes) / (gpu.bandwidth * shares.bandwidth)};
}

std::map<std::string, double> read_measured(const std::string& file, PrecisionMode precision) {
    std::map<std::string, double> seconds, work;
    try {
        const nlohmann::json json = parse_json_or_null(read_file(file));
        std::vector<nlohmann::json> reports;  // each of one model
        if (json.contains("speed"))
            for (const auto& speed : json.at("speed")) reports.push_back(speed.at("result"));
        else
            reports.push_back(json);
        for (const auto& report : reports) {
            if (report.at("precision") != name_of(precision)) continue;
            for (const auto& op : report.at("ops")) {
                const std::string name = op.at("op");
                seconds[name] += op.at("seconds").get<double>();
                work[name] += op.at(on_tensor_cores(name) ? "flops" : "bytes").get<double>();
            }
        }
    } catch (const nlohmann::json::exception& error) {
        input_error("--measured ", file,
                    " is not a report of `roofline --measure --json` or `make gpu-check`: ", error.what());
    }
    std::map<std::string, double> rates;
    for (const auto& [name, s] : seconds)
        if (s > 0 && work[name] > 0) rates[name] = s / work[name];
    if (rates.empty())
        input_error("--measured ", file, " holds no times of ops in ", precision,
                    ": measure them with `roofline "
                    "--measure --precision ",
                    precision, " --json FILE`");
    return rates;
}

double op_seconds(const std::string& op, const OpCost& cost, DType act, const Cluster& cluster) {
    const auto measured = cluster.measured.find(op);
    if (measured == cluster.measured.end()) return op_time(op, cost, act, cluster.gpu, cluster.shares).seconds();
    return measured->second * double(on_tensor_cores(op) ? cost.flops : cost.bytes);
}

// ------------------------------------------------------------------------------------------------- communication

bool is_collective(const std::string& name) {
    for (const char* known :
         {"broadcast", "all_reduce", "reduce_scatter", "all_gather", "all_to_all", "all_to_all_rows"})
        if (name == known) return true;
    return false;
}

Path path_of(const Ranks& group, const Cluster& cluster) {
    const int n = cluster.gpu.per_node, last = group.first + (group.count - 1) * group.stride;
    return {group.count, group.stride >= n ? group.count : last / n - group.first / n + 1};
}

double ring_rate(const Path& path, const Cluster& cluster) {
    const double link = path.per_node() > 1 ? cluster.gpu.link : INFINITY, net = cluster.net * path.per_node();
    return cluster.shares.links * (path.nodes == 1 ? link : std::min(link, net));
}

double ring_latency(const Path& path, const Cluster& cluster) {
    const int across = path.nodes - 1, inside = path.ranks - 1 - across;
    return inside * cluster.link_latency + across * cluster.net_latency;
}

namespace {

double tree_latency(const Path& path, const Cluster& cluster) {
    return (path.per_node() - 1) * cluster.link_latency + std::ceil(std::log2(path.nodes)) * cluster.net_latency;
}

double all_to_all_seconds(const CommCost& cost, const Path& path, const Cluster& cluster) {
    const double farthest = path.nodes > 1 ? cluster.net_latency : cluster.link_latency;
    const double part = double(cost.wire) / (path.ranks - 1);  // for each of the others
    const double inside = (path.per_node() - 1) * part / cluster.gpu.link;
    const double across = path.nodes > 1 ? (path.ranks - path.per_node()) * part / cluster.net : 0;
    return double(cost.calls) * (farthest + (path.ranks - 1) * cluster.message_gap) +
           std::max(inside, across) / cluster.shares.links;
}

}  // namespace

double transfer_seconds(double latency, double seconds) {
    return std::min(latency + seconds, latency / 4 + 4 * seconds);
}

double collective_seconds(const std::string& name, const CommCost& cost, const Path& path, const Cluster& cluster) {
    if (path.ranks == 1) return 0;
    if (name.starts_with("all_to_all")) return all_to_all_seconds(cost, path, cluster);
    const double calls = double(cost.calls), rate = ring_rate(path, cluster), pass = ring_latency(path, cluster);
    if (name != "all_reduce") return transfer_seconds(calls * pass, double(cost.wire) / rate);
    const double ring = transfer_seconds(calls * 2 * pass, double(cost.wire) / rate);
    const double tree = transfer_seconds(calls * 2 * tree_latency(path, cluster), 2 * double(cost.bytes) / rate);
    return std::min(ring, tree);
}

}  // namespace llmc
