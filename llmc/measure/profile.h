// What --profile says: where the time of a step went, op by op, beside the least time that this machine could need.
#pragma once
#include <nlohmann/json.hpp>

#include "llmc/ops/ops.h"

namespace llmc {

// Per second, measured or known; 0: unknown.
struct Machine {
    double flops = 0, bytes = 0;
};
Machine measure_machine(DType act, Context& ctx);  // takes 0.3 s

struct Profile {
    std::string range;   // what was measured: "step", "evaluation", "position"
    int64_t times = 0;   // how often it ran
    double seconds = 0;  // of all of them; so are the costs
    std::map<std::string, OpCost> ops;
    // The ranges in it, each behind the one that it lies in.
    struct Part {
        std::string name;
        int depth;             // 1: directly in the range
        int64_t times, flops;  // of all ops in it
        double seconds, in_ops;
        double own;  // seconds of it alone: in no op, in no inner range
    };
    std::vector<Part> parts;
    double own = 0;      // as Part::own, of the range itself
    double running = 0;  // seconds in which the thread that calls the ops had a processor

    Machine machine;  // to be set: for floors

    double in_ops() const;  // seconds
    double outside() const { return seconds - in_ops(); }
    // The least seconds for this work: operations at the peak or bytes at the bandwidth, whichever takes longer.
    double floor(const OpCost& cost) const;
};

// Of the outermost ranges of that name.
Profile profile_of(const Recording& recording, const std::string& range);

// For people: ops by time, the sum, and where time went that is in no op.
std::string profile_table(const Profile& profile);

// Prints that table of the recording's ranges of that name. Returns its numbers, for the log.
nlohmann::json print_profile(const Recording& recording, const std::string& range, const Machine& machine);

nlohmann::json to_json(const Profile& profile);
Profile profile_from_json(const nlohmann::json& json);

}  // namespace llmc
