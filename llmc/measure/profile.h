// The table of --profile: the time of every op of a step, and the least time that this machine could need.
#pragma once
#include <nlohmann/json.hpp>

#include "llmc/ops/ops.h"

namespace llmc {

// Peak FLOP/s and bytes/s; 0: unknown.
struct Machine {
    double flops = 0, bytes = 0;
};
Machine measure_machine(DType act, Context& ctx);  // measures both in 0.3 s

struct Profile {
    std::string range;   // what was measured: "step", "evaluation", "position"
    int64_t times = 0;   // how often it ran
    double seconds = 0;  // sum over all these times, as are the costs
    std::map<std::string, OpCost> ops;
    // The ranges inside it, each after the one that contains it.
    struct Part {
        std::string name;
        int depth;  // 1: directly in the range
        int64_t times;
        double flops;  // of all ops in it
        double seconds, in_ops;
        double own;  // seconds outside of ops and inner ranges
    };
    std::vector<Part> parts;
    double own = 0;      // Part::own of the range itself
    double running = 0;  // seconds in which the thread that calls the ops had a processor

    Machine machine;  // set it to get floors

    double in_ops() const;  // seconds in ops
    double outside() const { return seconds - in_ops(); }
    // The least seconds for this work: FLOPs / peak or bytes / bandwidth, whichever is longer.
    double floor(const OpCost& cost) const;
};

// The profile of the outermost ranges with this name.
Profile profile_of(const Recording& recording, const std::string& range);

// A table for people: ops by time, their sum, and the time outside of ops.
std::string profile_table(const Profile& profile);

// Prints the table of the ranges with this name. Returns the numbers for the log.
nlohmann::json print_profile(const Recording& recording, const std::string& range, const Machine& machine);

nlohmann::json to_json(const Profile& profile);
Profile profile_from_json(const nlohmann::json& json);

}  // namespace llmc
