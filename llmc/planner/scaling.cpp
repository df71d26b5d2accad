#include "llmc/planner/scaling.h"

#include <algorithm>
#include <cstdio>

#include "llmc/step/units.h"

namespace llmc {

// ---------------------------------------------------------------------------------------------------- the hardware

double net_of_gpu(const std::string& text, int gpus_per_node) {
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    const std::string unit = end;
    const bool of_node = unit.ends_with("/node");
    const std::string rate = unit.substr(0, unit.size() - (of_node ? 5 : 0));
    if (!(number > 0 && number < 1e9) || (rate != "Gb" && rate != "GB"))
        input_error("--net ", text,
                    " is not a rate: give gigabits or gigabytes per second of one GPU, \"400Gb\" or "
                    "\"50GB\", or of a whole node, \"3200Gb/node\"");
    return number * (rate == "Gb" ? 1e9 / 8 : 1e9) / (of_node ? gpus_per_node : 1);
}

Cluster cluster_of(const ScalingCommand& command, PrecisionMode precision) {
    const DType act = Precision::of(precision).act;
    if (act == DType::f64 && command.gpu != "cpu")
        input_error("--precision fp64 is for the CPU: plan ", command.gpu, " with fp32, bf16-mixed or bf16");
    Cluster cluster;
    Gpu& gpu = cluster.gpu;
    gpu = gpu_by_name(command.gpu);
    double& peak = act == DType::bf16 ? gpu.bf16 : gpu.fp32;
    if (command.peak_tflops) peak = command.peak_tflops * 1e12;
    if (gpu.fp32 == 0) gpu.fp32 = peak;
    if (command.bandwidth_gbs) gpu.bandwidth = command.bandwidth_gbs * 1e9;
    if (command.memory_gb) gpu.memory = command.memory_gb * 1e9;
    if (command.gpus_per_node) gpu.per_node = command.gpus_per_node;
    if (command.nvlink_gbs) gpu.link = command.nvlink_gbs * 1e9;
    cluster.net = net_of_gpu(command.net, gpu.per_node);
    if (gpu.link == 0) gpu.link = cluster.net;
    for (const auto& [value, flag] :
         {std::pair{peak, "--peak-tflops"}, {gpu.bandwidth, "--bandwidth-gbs"}, {gpu.memory, "--memory-gb"}})
        if (value == 0) input_error("--gpu ", command.gpu, " has no datasheet: give ", flag);
    cluster.link_latency = command.nvlink_latency_us * 1e-6, cluster.net_latency = command.net_latency_us * 1e-6;
    cluster.message_gap = command.message_us * 1e-6;
    cluster.host_wait = command.host_wait_us * 1e-6;
    cluster.overlaps = command.overlap && command.gpu != "cpu";
    cluster.shares = command.shares;
    if (!command.measured.empty()) cluster.measured = read_measured(command.measured, precision);
    return cluster;
}

// --------------------------------------------------------------------------------------------------------- the rows

namespace {

// Of all GPUs in a step.
int64_t micro_batches(const TrainConfig& train, int gpus, const ScalingCommand& command) {
    return train.grad_accumulation * (command.weak ? std::max<int64_t>(gpus / train.group_ranks, 1) : 1);
}

bool less_memory(const ScalingRow& a, const ScalingRow& b) { return a.memory < b.memory; }

// Adds what one rank computes and sends in these events, `times` times.
void add_totals(ScalingRow& row, const std::vector<Event>& events, int64_t times) {
    for (const Event& event : events) row.flops += double(times) * event.flops, row.sent += times * event.wire;
}

}  // namespace

ScalingRow scaling_row(const ModelConfig& model, const TrainConfig& train, int gpus, const ScalingCommand& command,
                       const Cluster& cluster) {
    ScalingRow row;
    row.gpus = gpus, row.train = train;
    row.train.grad_accumulation = micro_batches(train, gpus, command);
    const DType act = Precision::of(train.precision).act;
    const StepTrace trace = record_step(model, row.train, gpus);
    row.memory = make_plan(model, row.train, true, command.threads, {}, {}, gpus).total();
    add_totals(row, trace.first, trace.micro_batches > 1);
    add_totals(row, trace.middle, std::max<int64_t>(trace.micro_batches - 2, 0));
    add_totals(row, trace.last, 1);
    add_totals(row, trace.update, 1);
    row.time = replay(trace, act, cluster);
    row.fits = double(row.memory) <= command.usable_memory * cluster.gpu.memory;
    row.tokens_per_second =
        double(row.train.grad_accumulation * train.micro_batch * resolved(model).context) / row.time.total;
    row.mfu = row.flops / row.time.total / cluster.gpu.peak(act);
    return row;
}

std::vector<ScalingRow> scaling_rows(const ModelConfig& model, const TrainConfig& train, int gpus,
                                     const ScalingCommand& command, const Cluster& cluster) {
    std::vector<int64_t> parts = {train.expert_parallel};  // how many GPUs have all experts together
    if (command.choose_experts && has_experts(model))
        for (int64_t n = 2, E = resolved(model).experts; n <= std::min<int64_t>(E, gpus); n++)
            if (E % n == 0 && gpus % n == 0) parts.push_back(n);
    std::vector<ScalingRow> rows;
    for (ShardMode shard : values_of<ShardMode>()) {
        std::vector<ScalingRow> choices;
        for (int64_t part : parts) {
            TrainConfig divided = train;
            divided.shard = shard, divided.expert_parallel = part;
            try {
                choices.push_back(scaling_row(model, divided, gpus, command, cluster));
            } catch (const InputError&) {  // some experts cannot be divided; all together is always possible
                if (part == train.expert_parallel) throw;
            }
        }
        const int best = best_row(choices);
        rows.push_back(best >= 0 ? choices[size_t(best)]
                                 : *std::min_element(choices.begin(), choices.end(), less_memory));
        if (gpus == 1) break;  // nothing to divide
    }
    return rows;
}

int best_row(const std::vector<ScalingRow>& rows) {
    int best = -1;
    for (size_t i = 0; i < rows.size(); i++)
        if (rows[i].fits && (best < 0 || rows[i].tokens_per_second > rows[size_t(best)].tokens_per_second))
            best = int(i);
    return best;
}

// ---------------------------------------------------------------------------------------------------------- printing

namespace {

void print_assumptions(const TrainConfig& train, const Cluster& c, const ScalingCommand& command) {
    const DType act = Precision::of(train.precision).act;
    std::printf(
        "%s: %.4g TFLOP/s %s, %.4g GB/s, %.4g GB; %d a node; to the others of the node %.4g GB/s, into the "
        "network %.4g GB/s, each way\n",
        c.gpu.name.c_str(), c.gpu.peak(act) * 1e-12, name_of(train.precision), c.gpu.bandwidth * 1e-9,
        c.gpu.memory * 1e-9, c.gpu.per_node, c.gpu.link * 1e-9, c.net * 1e-9);
    std::printf(
        "assumed: %.0f %% of the peak in matrix products, %.0f %% of the memory's bandwidth, %.0f %% of the "
        "links', %.0f %% of the memory usable; messages take %.3g us, %.3g us over the network%s%s\n",
        100 * c.shares.matrix, 100 * c.shares.bandwidth, 100 * c.shares.links, 100 * command.usable_memory,
        c.link_latency * 1e6, c.net_latency * 1e6, c.overlaps ? "" : "; nothing overlaps",
        c.measured.empty() ? "" : str("; ", c.measured.size(), " ops as measured").c_str());
    Context ctx({.threads = command.threads, .counting = true});
    std::printf("an estimate: nothing was measured%s; what ops compute and move was counted by the backend \"%s\"\n\n",
                c.measured.empty() ? "" : " but these ops", backend_description(ctx).c_str());
}

void print_row(const ScalingRow& row, bool best) {
    std::printf("%6d  %-11s %8lld %11s%s %10s %9.1f %9.1f %9.1f %10s %5.0f %% %7.0f %%%s\n", row.gpus,
                name_of(row.train.shard), static_cast<long long>(row.train.expert_parallel),
                bytes_text(double(row.memory)).c_str(), row.fits ? " " : "!", bytes_text(double(row.sent)).c_str(),
                row.time.compute * 1e3, row.time.exposed() * 1e3, row.time.total * 1e3,
                count_text(row.tokens_per_second).c_str(), 100 * row.mfu, 100 * row.time.exposed() / row.time.total,
                best ? "  <" : "");
}

std::string flags_of(const ScalingRow& row) {
    return str("--shard ", row.train.shard,
               row.train.expert_parallel > 1 ? str(" --expert-parallel ", row.train.expert_parallel) : "");
}

// One sentence: what to use, and why.
void print_recommendation(const std::vector<ScalingRow>& rows, const Cluster& cluster, const ScalingCommand& command) {
    const int best = best_row(rows), gpus = rows[0].gpus;
    if (best < 0) {
        const std::string room = bytes_text(command.usable_memory * cluster.gpu.memory);
        std::printf("%d GPUs: nothing fits into %s; make --micro-batch smaller, or use --recompute blocks\n", gpus,
                    room.c_str());
        return;
    }
    const ScalingRow& row = rows[size_t(best)];
    std::string why;
    for (const ScalingRow& other : rows) {
        if (&other == &row) continue;
        const double times = row.tokens_per_second / other.tokens_per_second;
        char text[64];
        std::snprintf(text, sizeof text, times < 2 ? " is %.1f %% slower" : " takes %.1f times as long",
                      times < 2 ? 100 * (1 - 1 / times) : times);
        why += str(why.empty() ? "; " : ", ", other.train.shard, other.fits ? text : " does not fit");
    }
    std::printf("%d GPU%s: %s is the fastest that fits%s\n", gpus, gpus > 1 ? "s" : "", flags_of(row).c_str(),
                why.c_str());
}

// All experts divided over as many GPUs as the recommended row has, or could have.
void print_exchange(const ModelConfig& model, const ScalingRow& row, const ScalingCommand& command,
                    const Cluster& cluster) {
    const int64_t E = resolved(model).experts;
    ExchangeCase of{.tokens = row.train.micro_batch * resolved(model).context / row.train.group_ranks,
                    .ranks = int(row.train.expert_parallel),
                    .imbalance = command.imbalance};
    for (int64_t n = 2; n <= std::min<int64_t>(E, row.gpus) && row.train.expert_parallel == 1; n++)
        if (E % n == 0 && row.gpus % n == 0) of.ranks = int(n);
    const DType act = Precision::of(row.train.precision).act;
    std::printf("%s", describe_exchanges(model, of, act, cluster).c_str());
}

}  // namespace

int run_scaling(const ModelConfig& model, const TrainConfig& train, const ScalingCommand& command) {
    const Cluster cluster = cluster_of(command, train.precision);
    if (command.exchange && !has_experts(model))
        input_error("--exchange needs a mixture block, and the pattern \"", model.pattern, "\" has none");
    for (int gpus : command.gpus) {  // refused before the first line is printed
        TrainConfig config = train;
        config.grad_accumulation = micro_batches(train, gpus, command);
        sharding_of(resolved(model), config, gpus, 0);
    }
    const ModelConfig whole = resolved(model);
    std::printf("%s, %s, micro-batches of %lld x %lld tokens, %lld %s\n", whole.pattern.c_str(),
                name_of(train.precision), static_cast<long long>(train.micro_batch),
                static_cast<long long>(whole.context), static_cast<long long>(train.grad_accumulation),
                command.weak ? "of each GPU in a step (--weak)" : "in a step");
    print_assumptions(train, cluster, command);
    std::printf("%6s  %-11s %8s %11s  %10s %9s %9s %9s %10s %7s %9s\n", "GPUs", "--shard", "experts", "memory", "sent",
                "compute", "exposed", "step ms", "tokens/s", "MFU", "waiting");
    std::vector<std::vector<ScalingRow>> tables;
    for (int gpus : command.gpus) {
        tables.push_back(scaling_rows(model, train, gpus, command, cluster));
        const int best = best_row(tables.back());
        for (size_t i = 0; i < tables.back().size(); i++) print_row(tables.back()[i], int(i) == best);
    }
    std::printf(
        "(experts: GPUs that have all experts together; memory, sent, compute and exposed of one GPU and step;\n"
        " exposed: communication while which nothing is computed; !: does not fit; <: fastest that does)\n\n");
    if (model.dropless)
        std::printf("(dropless experts over several GPUs: even loads, but memory traffic as if all came here)\n\n");
    for (const auto& rows : tables) print_recommendation(rows, cluster, command);
    if (command.exchange) {
        const std::vector<ScalingRow>& rows = tables.back();
        print_exchange(model, rows[size_t(std::max(best_row(rows), 0))], command, cluster);
    }
    return 0;
}

}  // namespace llmc
