#include "llmc/planner/timeline.h"

#include "llmc/planner/counted_step.h"

namespace llmc {

StepTrace record_step(const ModelConfig& model_config, const TrainConfig& train, int ranks) {
    CountedStep counted(model_config, train, true, ranks);
    Step& step = *counted.session.step;
    const int64_t at_a_time = step.sharding().batches();
    step.begin(0);

    StepTrace trace;
    trace.micro_batches = train.grad_accumulation / at_a_time;
    auto micro_batch = [&](std::vector<Event>& events, int64_t i) {
        counted.session.ctx.events = &events;
        step.micro_batch(nullptr, nullptr, i * at_a_time, false);
    };
    if (trace.micro_batches > 1) micro_batch(trace.first, 0);
    if (trace.micro_batches > 2) micro_batch(trace.middle, 1);
    micro_batch(trace.last, trace.micro_batches - 1);
    counted.session.ctx.events = &trace.update;
    step.update();
    return trace;
}

namespace {

class Clocks {
public:
    Clocks(DType act, const Cluster& cluster) : act(act), cluster(cluster) {}

    void run(const std::vector<Event>& events, int64_t times) {
        std::vector<double> seconds;
        for (const Event& event : events) seconds.push_back(seconds_of(event));
        for (int64_t i = 0; i < times; i++)
            for (size_t e = 0; e < events.size(); e++) run(events[e], seconds[e]);
    }
    StepTime time() const { return {compute, communication, std::max(computed, communicated)}; }

private:
    double seconds_of(const Event& e) const {
        if (e.kind == Event::collective)
            return collective_seconds(e.name, {1, e.bytes, e.wire}, path_of({e.first, e.stride, e.count}, cluster),
                                      cluster);
        // The way of a collective through this GPU's memory is written down as an op of its name, but part of it.
        if (e.kind != Event::op || is_collective(e.name)) return 0;
        return op_seconds(e.name, {1, e.flops, e.bytes}, act, cluster);
    }
    void run(const Event& event, double seconds) {
        switch (event.kind) {
            case Event::op:
                computed += seconds, compute += seconds;
                if (event.name == "download") computed += cluster.host_wait;  // nothing is started meanwhile
                return;
            case Event::collective:
                if (!cluster.overlaps) wait(communicated, computed);
                communicated += seconds, communication += seconds;
                if (!cluster.overlaps) computed = communicated;
                return;
            case Event::after_compute:
                return wait(communicated, computed);
            case Event::before_compute:
                return wait(computed, communicated);
            case Event::mark:
                marks[event.number] = communicated;
                return;
            case Event::before_compute_mark:
                return wait(computed, marks[event.number]);
        }
    }
    static void wait(double& clock, double until) { clock = std::max(clock, until); }

    const DType act;
    const Cluster& cluster;
    double computed = 0, communicated = 0;  // when what was asked for so far is over
    double compute = 0, communication = 0;
    std::map<int, double> marks;
};

}  // namespace

StepTime replay(const StepTrace& trace, DType act, const Cluster& cluster) {
    Clocks clocks(act, cluster);
    clocks.run(trace.first, 1);
    clocks.run(trace.middle, trace.micro_batches - 2);
    clocks.run(trace.last, 1);
    clocks.run(trace.update, 1);
    return clocks.time();
}

}  // namespace llmc
