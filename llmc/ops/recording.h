// Recording: the times of ops and ranges in a Context with `profile`.
//
// Ranges (context.h) are nested: step > forward > attention. For every such path a Recording sums how long it was open
// and the times of its ops. If asked, it also keeps the last single spans for a trace. Its memory does not grow with
// the length of a run: nothing is allocated once every path and op has occurred.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace llmc {

// The cost of all calls of one op. Bytes are the least possible memory traffic: every input read once, every output
// written once. FLOPs are a double: those of a large cluster's step do not fit into 64 bits.
struct OpCost {
    int64_t calls = 0;
    double flops = 0;
    int64_t bytes = 0;
    double seconds = 0;  // measured time in a Recording, without that of ops called by this one
    void add(const OpCost& o, int64_t times) {
        calls += times * o.calls, bytes += times * o.bytes;
        flops += double(times) * o.flops, seconds += double(times) * o.seconds;
    }
};

class Recording {
public:
    // All ranges of one path.
    struct Path {
        const char* name;
        Path* outer;
        int64_t times = 0;
        double seconds = 0;  // sum of their durations
        double running = 0;  // of outermost ranges: time in which this thread had a processor
        std::map<std::string, OpCost, std::less<>> ops{};  // ops directly in this range
        std::vector<std::unique_ptr<Path>> inner{};        // in the order of their first occurrence
    };
    // One call of an op, or one range. Nanoseconds of the monotonic clock.
    struct Span {
        const char* name;
        int64_t start, end;
        double flops;
        int64_t bytes;
        bool is_op;
    };

    Recording();
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

    // Begin and end of a range or op; calls are nested like brackets. Names must be literals: only addresses are kept.
    void begin_range(const char* name);
    void begin_op(const char* name, double flops, int64_t bytes);
    void end();

    // Forgets everything so far; no range and no op may be open.
    void clear();

    // From now on keeps the last `count` spans: outermost ranges named `range` and everything inside them.
    void keep_spans(const char* range, int64_t count);
    // The kept spans in the order of their ends.
    std::vector<Span> spans() const;
    // Whether there were more spans than were kept.
    bool lost_spans() const { return kept > int64_t(ring.size()); }

    const Path& all() const {
        return root;
    }  // the root: it has no name and holds the outermost ranges and the ops outside of ranges
    OpCost total(const std::string& op) const;  // cost of this op in all ranges

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
