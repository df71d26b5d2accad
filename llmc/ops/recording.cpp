#include "llmc/ops/recording.h"

#include <time.h>

#include <chrono>
#include <cstring>

#include "llmc/base/errors.h"

namespace llmc {

namespace {

int64_t nanoseconds_now() {
    using namespace std::chrono;
    return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

// Without the time in which other programs had the processor.
int64_t nanoseconds_run() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

constexpr size_t usual_depth = 64;

void add_up(const Recording::Path& path, const std::string& op, OpCost& sum) {
    if (const auto found = path.ops.find(op); found != path.ops.end()) sum.add(found->second, 1);
    for (const auto& inner : path.inner) add_up(*inner, op, sum);
}

}  // namespace

Recording::Recording() { open.reserve(usual_depth); }

void Recording::begin_range(const char* name) {
    if (at == &root) keeping = !ring.empty() && kept_range == name, ran_before = nanoseconds_run();
    Path* inner = nullptr;
    for (const auto& candidate : at->inner)
        if (std::strcmp(candidate->name, name) == 0) inner = candidate.get();
    if (!inner) inner = at->inner.emplace_back(new Path{name, at}).get();
    at = inner;
    open.push_back({{name, nanoseconds_now(), 0, 0, 0, false}, 0});
}

void Recording::begin_op(const char* name, double flops, int64_t bytes) {
    open.push_back({{name, nanoseconds_now(), 0, flops, bytes, true}, 0});
}

void Recording::end() {
    Open ended = open.back();
    open.pop_back();
    Span& span = ended.span;
    span.end = nanoseconds_now();
    const int64_t took = span.end - span.start;
    if (keeping) ring[size_t(kept++) % ring.size()] = span;
    if (!span.is_op) {
        at->times++, at->seconds += double(took) * 1e-9;
        if (at->outer == &root) at->running += double(nanoseconds_run() - ran_before) * 1e-9;
        at = at->outer;
        keeping = keeping && at != &root;
        return;
    }
    auto cost = at->ops.find(std::string_view(span.name));
    if (cost == at->ops.end()) cost = at->ops.emplace(span.name, OpCost{}).first;
    cost->second.add({1, span.flops, span.bytes, double(took - ended.in_calls) * 1e-9}, 1);
    if (!open.empty()) open.back().in_calls += took;
}

void Recording::clear() {
    if (!open.empty()) run_error("a recording cannot be cleared inside of ", open.back().span.name);
    root.ops.clear(), root.inner.clear();
    kept = 0;
}

void Recording::keep_spans(const char* range, int64_t count) {
    kept_range = range;
    ring.assign(size_t(count), {});
    kept = 0;
}

std::vector<Recording::Span> Recording::spans() const {
    std::vector<Span> list;
    const int64_t size = int64_t(ring.size());
    for (int64_t i = lost_spans() ? kept - size : 0; i < kept; i++) list.push_back(ring[size_t(i % size)]);
    return list;
}

OpCost Recording::total(const std::string& op) const {
    OpCost sum;
    add_up(root, op, sum);
    return sum;
}

}  // namespace llmc
