// Recording: where the time of a Context with `profile` goes.
//
// Ranges (context.h) lie in one another: step > forward > attention. A Recording adds up, for every such path, how long
// it was open and what the ops in it took. On request it also keeps the last of the single spans, for a trace. Nothing
// grows with the length of a run, and nothing is allocated once every path and op has occurred.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace llmc {

// What all calls of one op cost. Bytes are the least that must go to or come from device memory: every input read once,
// every output written once.
struct OpCost {
    int64_t calls = 0, flops = 0, bytes = 0;
    double seconds = 0;  // measured, in a Recording; without the ops that it called
    void add(const OpCost& o, int64_t times) {
        calls += times * o.calls, flops += times * o.flops, bytes += times * o.bytes;
        seconds += double(times) * o.seconds;
    }
};

class Recording {
public:
    // All times that the ranges of one path were open.
    struct Path {
        const char* name;
        Path* outer;
        int64_t times = 0;
        double seconds = 0;  // from their begins to their ends
        double running = 0;  // of outermost ranges: seconds in which this thread had a processor
        std::map<std::string, OpCost, std::less<>> ops{};  // of those in no inner range
        std::vector<std::unique_ptr<Path>> inner{};        // in the order of their first occurrence
    };
    // One call of an op, or one range. Nanoseconds of the monotonic clock.
    struct Span {
        const char* name;
        int64_t start, end, flops, bytes;
        bool is_op;
    };

    Recording();
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

    // Names are literals: only their addresses are kept. Begins and ends are nested like brackets.
    void begin_range(const char* name);
    void begin_op(const char* name, int64_t flops, int64_t bytes);
    void end();

    // Forgets everything so far; no range and no op may be open.
    void clear();

    // From now on keeps the last `count` spans of outermost ranges called `range` and of what lies in them.
    void keep_spans(const char* range, int64_t count);
    // Those, in the order of their ends.
    std::vector<Span> spans() const;
    bool lost_spans() const { return kept > int64_t(ring.size()); }

    const Path& all() const { return root; }  // of no name; holds the outermost ranges and the ops in no range
    OpCost total(const std::string& op) const;  // in all ranges

private:
    struct Open {
        Span span;
        int64_t in_calls;  // time of the ops that this op called
    };
    Path root{nullptr, nullptr};
    Path* at = &root;
    std::vector<Open> open;
    std::vector<Span> ring;
    int64_t kept = 0;  // spans ever put into the ring
    std::string kept_range;
    bool keeping = false;  // inside of such a range
    int64_t ran_before = 0;  // how long this thread had run when the outermost range began
};

}  // namespace llmc
