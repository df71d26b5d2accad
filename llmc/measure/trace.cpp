#include "llmc/measure/trace.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "llmc/base/errors.h"
#include "llmc/base/files.h"

namespace llmc {

namespace {

using Span = Recording::Span;

// Microseconds with all digits of the nanoseconds: rounded, a span could end after the one that it lies in.
std::string microseconds(int64_t nanoseconds) {
    char text[32];
    std::snprintf(text, sizeof text, "%lld.%03d", static_cast<long long>(nanoseconds / 1000), int(nanoseconds % 1000));
    return text;
}

std::string event(const Span& span, int process, const nlohmann::json& arguments) {
    return str("{\"name\":", nlohmann::json(span.name).dump(), ",\"cat\":\"", span.is_op ? "op" : "range",
               "\",\"ph\":\"X\",\"ts\":", microseconds(span.start), ",\"dur\":", microseconds(span.end - span.start),
               ",\"pid\":", process, ",\"tid\":0,\"args\":", arguments.dump(), "}");
}

// Outer spans before what lies in them.
bool begins_before(const Span& a, const Span& b) { return a.start != b.start ? a.start < b.start : a.end > b.end; }

// The outermost ranges of which nothing is lost: whatever ended after the oldest span is there. By time.
std::vector<Span> whole_steps(const std::vector<Span>& spans, bool lost) {
    std::vector<Span> ranges;
    for (const Span& span : spans)
        if (!span.is_op) ranges.push_back(span);
    std::sort(ranges.begin(), ranges.end(), begins_before);
    std::vector<Span> steps;
    int64_t end = 0;  // of the last outermost range
    for (const Span& range : ranges) {
        if (range.start < end) continue;
        end = range.end;
        if (!lost || range.start >= spans.front().end) steps.push_back(range);
    }
    return steps;
}

}  // namespace

std::string trace_path(const std::string& file, int rank, int ranks) {
    return ranks == 1 ? file : str(file, ".rank", rank);
}

void check_trace_path(const std::string& path) {
    if (std::filesystem::is_directory(path)) input_error("--trace ", path, " is a directory: name a file");
    try {
        AtomicFile never_committed(path);
    } catch (const RunError& error) {
        input_error("--trace: ", error.what());
    }
}

std::string write_trace(const Recording& recording, const std::string& path, int64_t last_step, int process) {
    std::vector<Span> spans = recording.spans();
    std::vector<Span> steps = whole_steps(spans, recording.lost_spans());
    if (int64_t(steps.size()) > traced_steps) steps.erase(steps.begin(), steps.end() - traced_steps);
    if (!steps.empty()) std::erase_if(spans, [&](const Span& span) { return span.start < steps.front().start; });
    std::sort(spans.begin(), spans.end(), begins_before);

    const int64_t first_step = last_step + 1 - int64_t(steps.size());
    std::string text;
    size_t step = 0;
    for (const Span& span : spans) {
        nlohmann::json arguments = nlohmann::json::object();
        if (span.is_op) arguments = {{"flops", span.flops}, {"bytes", span.bytes}};
        if (step < steps.size() && span.start == steps[step].start && span.end == steps[step].end && !span.is_op)
            arguments = {{"step", first_step + int64_t(step++)}};
        text += (text.empty() ? "[\n" : ",\n") + event(span, process, arguments);
    }
    write_file_atomic(path, text.empty() ? "[]\n" : text + "\n]\n");
    if (spans.empty()) return str("trace: there was no step to write to ", path);
    const std::string what = steps.empty()     ? str("the end of step ", last_step)
                             : steps.size() == 1 ? str("step ", last_step)
                                                 : str("steps ", first_step, " to ", last_step);
    return str("trace of ", what, " in ", path, ": for chrome://tracing or https://ui.perfetto.dev");
}

bool print_trace(const Recording& recording, const std::string& file, int64_t last_step, int rank, int ranks) {
    try {
        std::printf("%s\n", write_trace(recording, trace_path(file, rank, ranks), last_step, rank).c_str());
        return true;
    } catch (const RunError& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return false;
    }
}

}  // namespace llmc
