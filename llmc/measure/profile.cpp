#include "llmc/measure/profile.h"

#include <algorithm>
#include <cstdio>

namespace llmc {

using nlohmann::json;

namespace {

constexpr double expected_in_ops = 0.97, expected_running = 0.95;

double op_seconds(const Recording::Path& path) {
    double sum = 0;
    for (const auto& [name, cost] : path.ops) sum += cost.seconds;
    return sum;
}

double own_seconds(const Recording::Path& path) {
    double own = path.seconds - op_seconds(path);
    for (const auto& inner : path.inner) own -= inner->seconds;
    return own;
}

// Adds the ops in the path to the profile, and a part for every range in it. Returns seconds and flops of those ops.
std::pair<double, double> collect(const Recording::Path& path, int depth, Profile& profile) {
    const size_t index = profile.parts.size();
    if (depth > 0) profile.parts.push_back({path.name, depth, path.times, 0, path.seconds, 0, own_seconds(path)});
    double seconds = op_seconds(path);
    double flops = 0;
    for (const auto& [name, cost] : path.ops) profile.ops[name].add(cost, 1), flops += cost.flops;
    for (const auto& inner : path.inner) {
        const auto [inner_seconds, inner_flops] = collect(*inner, depth + 1, profile);
        seconds += inner_seconds, flops += inner_flops;
    }
    if (depth > 0) profile.parts[index].in_ops = seconds, profile.parts[index].flops = flops;
    return {seconds, flops};
}

template <class... Values>
std::string line(const char* format, const Values&... values) {
    char text[256];
    std::snprintf(text, sizeof text, format, values...);
    return text;
}

// A number for a column; "-" where there is none.
std::string number(double value, int digits) { return value > 0 ? line("%.*f", digits, value) : "-"; }

// calls or times per step: whole numbers unless some steps do what others do not.
std::string per_step(int64_t count, int64_t times) {
    return line(count % times ? "%.1f" : "%.0f", double(count) / double(times));
}

std::string op_table(const Profile& p) {
    std::vector<std::pair<std::string, OpCost>> ops(p.ops.begin(), p.ops.end());
    std::sort(ops.begin(), ops.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
    const double times = double(p.times);
    std::string text = line("  %-28s %8s %10s %8s %9s %8s %8s\n", "op", "calls", "ms", "share", "GFLOP/s", "GB/s",
                            "x floor");
    double floors = 0;
    OpCost all;
    auto row = [&](const std::string& name, const std::string& calls, const OpCost& cost, double floor) {
        auto rate = [&](int64_t amount) { return cost.seconds > 0 ? double(amount) / cost.seconds * 1e-9 : 0; };
        text += line("  %-28s %8s %10.3f %6.1f %% %9s %8s %8s\n", name.c_str(), calls.c_str(),
                     cost.seconds / times * 1e3, 100 * cost.seconds / p.seconds, number(rate(cost.flops), 1).c_str(),
                     number(rate(cost.bytes), 1).c_str(), number(floor > 0 ? cost.seconds / floor : 0, 2).c_str());
    };
    for (const auto& [name, cost] : ops) {
        row(name, per_step(cost.calls, p.times), cost, p.floor(cost));
        floors += p.floor(cost);
        all.add(cost, 1);
    }
    row("all ops", per_step(all.calls, p.times), all, floors);
    auto total = [&](const char* name, double seconds) {
        text += line("  %-28s %8s %10.3f %6.1f %%\n", name, "", seconds / times * 1e3, 100 * seconds / p.seconds);
    };
    total("outside of ops", p.outside());
    total(p.range.c_str(), p.seconds);
    return text;
}

std::string part_table(const Profile& p) {
    std::string text = line("  %-28s %8s %10s %8s %9s %19s\n", str("part of a ", p.range).c_str(), "times", "ms",
                            "share", "GFLOP/s", "ms outside of ops");
    const double times = double(p.times);
    for (const Profile::Part& part : p.parts)
        text += line("  %-28s %8s %10.3f %6.1f %% %9s %19.3f\n",
                     (std::string(size_t(2 * (part.depth - 1)), ' ') + part.name).c_str(),
                     per_step(part.times, p.times).c_str(), part.seconds / times * 1e3, 100 * part.seconds / p.seconds,
                     number(part.seconds > 0 ? part.flops / part.seconds * 1e-9 : 0, 1).c_str(),
                     (part.seconds - part.in_ops) / times * 1e3);
    return text;
}

// One sentence if the ops are not nearly all of it: the three places that took most of the rest.
std::string remainder_line(const Profile& p) {
    if (p.in_ops() >= expected_in_ops * p.seconds) return "";
    std::vector<std::pair<double, std::string>> places = {{p.own, p.range + " itself"}};
    for (size_t i = 0; i < p.parts.size(); i++) {
        std::string path = p.parts[i].name;
        int depth = p.parts[i].depth;
        for (size_t j = i; j-- > 0;)
            if (p.parts[j].depth < depth) depth = p.parts[j].depth, path = p.parts[j].name + "/" + path;
        places.push_back({p.parts[i].own, path});
    }
    std::sort(places.rbegin(), places.rend());
    std::string text = line("  ops are only %.1f %% of a %s; most of the rest is in", 100 * p.in_ops() / p.seconds,
                            p.range.c_str());
    for (size_t i = 0; i < std::min<size_t>(3, places.size()); i++)
        text += line("%s %s (%.3f ms)", i ? "," : "", places[i].second.c_str(),
                     places[i].first / double(p.times) * 1e3);
    return text + "\n";
}

}  // namespace

double Profile::in_ops() const {
    double sum = 0;
    for (const auto& [name, cost] : ops) sum += cost.seconds;
    return sum;
}

double Profile::floor(const OpCost& cost) const {
    return std::max(machine.flops > 0 ? cost.flops / machine.flops : 0,
                    machine.bytes > 0 ? double(cost.bytes) / machine.bytes : 0);
}

Machine measure_machine(DType act, Context& ctx) { return {peak_flops(act, ctx).flops, peak_bandwidth(ctx).bytes}; }

Profile profile_of(const Recording& recording, const std::string& range) {
    Profile profile;
    profile.range = range;
    for (const auto& path : recording.all().inner) {
        if (path->name != range) continue;
        profile.times = path->times, profile.seconds = path->seconds, profile.own = own_seconds(*path);
        profile.running = path->running;
        collect(*path, 0, profile);
    }
    return profile;
}

std::string profile_table(const Profile& p) {
    if (p.times == 0) return line("profile: there was no %s to measure\n", p.range.c_str());
    std::string text = line("profile of %lld %s%s, per %s; this machine reached %s GFLOP/s (multiply-adds) and %s GB/s "
                            "(memory)\n",
                            static_cast<long long>(p.times), p.range.c_str(), p.times == 1 ? "" : "s", p.range.c_str(),
                            number(p.machine.flops * 1e-9, 0).c_str(), number(p.machine.bytes * 1e-9, 1).c_str());
    text += op_table(p);
    text += "  x floor: time over the least possible, operations / peak or bytes / bandwidth, whichever is more; bytes "
            "are inputs\n  and outputs, once. 1 is the machine's limit; less: data came from a cache.\n";
    if (p.running < expected_running * p.seconds)
        text += line("  this thread ran for only %.0f %% of the time: others had the processor, or it waited; times "
                     "are too long by that\n", 100 * p.running / p.seconds);
    text += remainder_line(p);
    return p.parts.empty() ? text : text + part_table(p);
}

json print_profile(const Recording& recording, const std::string& range, const Machine& machine) {
    Profile profile = profile_of(recording, range);
    profile.machine = machine;
    std::printf("%s", profile_table(profile).c_str());
    return to_json(profile);
}

json to_json(const Profile& p) {
    json ops = json::array(), parts = json::array();
    for (const auto& [name, cost] : p.ops)
        ops.push_back({{"op", name}, {"calls", cost.calls}, {"seconds", cost.seconds}, {"flops", cost.flops},
                       {"bytes", cost.bytes}, {"floor", p.floor(cost)}});
    for (const Profile::Part& part : p.parts)
        parts.push_back({{"part", part.name}, {"depth", part.depth}, {"times", part.times}, {"flops", part.flops},
                         {"seconds", part.seconds}, {"in_ops", part.in_ops}, {"own", part.own}});
    return {{"range", p.range},
            {"times", p.times},
            {"seconds", p.seconds},
            {"outside", p.outside()},
            {"own", p.own},
            {"running", p.running},
            {"peak_flops", p.machine.flops},
            {"bandwidth", p.machine.bytes},
            {"ops", ops},
            {"parts", parts}};
}

Profile profile_from_json(const json& j) {
    Profile p;
    p.range = j.at("range"), p.times = j.at("times"), p.seconds = j.at("seconds"), p.own = j.at("own");
    p.running = j.at("running");
    p.machine = {j.at("peak_flops"), j.at("bandwidth")};
    for (const json& op : j.at("ops"))
        p.ops[op.at("op")] = {op.at("calls"), op.at("flops"), op.at("bytes"), op.at("seconds")};
    for (const json& part : j.at("parts"))
        p.parts.push_back({part.at("part"), part.at("depth"), part.at("times"), part.at("flops"), part.at("seconds"),
                           part.at("in_ops"), part.at("own")});
    return p;
}

}  // namespace llmc
