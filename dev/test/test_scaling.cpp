// What a plan for many ranks counts, against the formulae of ZeRO written out by hand.
//
// Sizes are such that every unit is a multiple of 128 elements on each of up to 8 ranks: nothing is padding.
#include <gtest/gtest.h>

#include <algorithm>

#include "dev/test/reference.h"
#include "llmc/planner/scaling.h"

namespace llmc::test {
namespace {

constexpr int64_t B = 8, T = 32, V = 8192, C = 1024, F = 4096, E = 8, g = 4;

ModelConfig model_of(const std::string& pattern) {
    ModelConfig m;
    m.pattern = pattern, m.vocab_size = V, m.d_model = C, m.heads = 8, m.d_ff = F, m.context = T;
    m.experts = E, m.group_size = g, m.expert_size = F;
    return m;
}
TrainConfig train_of(const std::string& shard, int64_t K, const std::string& precision) {
    TrainConfig t;
    t.shard = from_word<ShardMode>(shard), t.precision = from_word<PrecisionMode>(precision);
    t.micro_batch = B, t.grad_accumulation = K;
    return t;
}

// Parameters of the units of "attention ffn attention mot", bottom to top.
struct Units {
    int64_t embedding = V * C + T * C, attention = 2 * C + 3 * C * C + C * C, ffn = 2 * C + 2 * F * C + F + C;
    int64_t mot = 2 * C + E * C, experts = 2 * E * F * C, head = V * C;
    int64_t dense() const { return embedding + 2 * attention + ffn + mot + head; }
    int64_t all() const { return dense() + experts; }
    static constexpr int count = 7;
};
const Units units;
const std::string pattern = "attention ffn attention mot";

const CommCost& traffic(const Plan& plan, const std::string& group, const std::string& collective) {
    static const CommCost none;
    for (const Plan::Traffic& t : plan.traffic)
        if (t.group == group && t.costs.count(collective)) return t.costs.at(collective);
    return none;
}

struct Case {
    int64_t W, m;  // ranks, and micro-batches of each
    std::string precision;
    int64_t act() const { return precision == "fp32" ? 4 : 2; }  // bytes of a parameter that blocks compute with
    Plan plan(const std::string& shard) const {
        return make_plan(model_of(pattern), train_of(shard, W * m, precision), true, 1, {}, {}, int(W));
    }
};
const std::vector<Case> cases = {{2, 1, "fp32"}, {4, 2, "bf16-mixed"}, {8, 3, "bf16-mixed"}, {4, 5, "fp32"}};

// The sums of losses and squared gradients: three f64, over all ranks, once a step.
constexpr int64_t sums = 3 * 8;

// Without experts that are divided, replicas are all ranks. All traffic of both.
CommCost of_units(const Plan& plan, const std::string& collective) {
    CommCost cost = traffic(plan, "all", collective);
    cost.add(traffic(plan, "replicas", collective), 1);
    return cost;
}

TEST(Zero, BytesThatTravel) {
    for (const Case& c : cases) {
        SCOPED_TRACE(str(c.W, " ranks, ", c.m, " micro-batches, ", c.precision));
        auto wire = [&](int64_t bytes) { return bytes / c.W * (c.W - 1); };
        const int64_t P = units.all();
        const Plan none = c.plan("none"), one = c.plan("optimizer"), two = c.plan("gradients"),
                   three = c.plan("parameters");
        for (const Plan* plan : {&none, &one, &two, &three}) {
            const bool whole = plan == &none;
            EXPECT_EQ(of_units(*plan, "all_reduce").bytes, sums + (whole ? 4 * P : 0));
            EXPECT_EQ(of_units(*plan, "all_reduce").calls, 1 + (whole ? Units::count : 0));
            EXPECT_EQ(of_units(*plan, "all_reduce").wire, 2 * wire(sums + (whole ? 4 * P : 0)));
            EXPECT_EQ(of_units(*plan, "all_to_all").calls, 0);
        }
        EXPECT_EQ(of_units(none, "all_gather").calls + of_units(none, "reduce_scatter").calls, 0);
        // Gradients are summed once a step, or where nobody keeps a whole one, once a micro-batch.
        EXPECT_EQ(of_units(one, "reduce_scatter").bytes, 4 * P);
        EXPECT_EQ(of_units(two, "reduce_scatter").bytes, c.m * 4 * P);
        EXPECT_EQ(of_units(three, "reduce_scatter").bytes, c.m * 4 * P);
        EXPECT_EQ(of_units(three, "reduce_scatter").wire, wire(c.m * 4 * P));
        EXPECT_EQ(of_units(three, "reduce_scatter").calls, c.m * Units::count);
        // Parameters are gathered after the update, or in every forward and backward; the head has both at once.
        EXPECT_EQ(of_units(one, "all_gather").bytes, c.act() * P);
        EXPECT_EQ(of_units(two, "all_gather").bytes, c.act() * P);
        EXPECT_EQ(of_units(three, "all_gather").bytes, c.m * c.act() * (2 * P - units.head));
        EXPECT_EQ(of_units(three, "all_gather").wire, wire(c.m * c.act() * (2 * P - units.head)));
        EXPECT_EQ(of_units(three, "all_gather").calls, c.m * (2 * Units::count - 1));
    }
}

TEST(Zero, BytesThatAreKept) {
    for (const Case& c : cases) {
        SCOPED_TRACE(str(c.W, " ranks, ", c.m, " micro-batches, ", c.precision));
        const int64_t P = units.all(), W = c.W;
        const bool mixed = c.precision != "fp32";
        for (const char* shard : {"none", "optimizer", "gradients", "parameters"}) {
            SCOPED_TRACE(shard);
            const Plan plan = c.plan(shard);
            const int stage = int(from_word<ShardMode>(shard));  // of ZeRO
            const int64_t parameters = stage == 3 ? P / W : P;
            // Blocks compute with parameters, or with a copy of them: then masters belong to the optimizer.
            EXPECT_EQ(plan.parameter_bytes, mixed && stage >= 1 ? 4 * P / W : 4 * parameters);
            EXPECT_EQ(plan.copy_bytes, mixed ? 2 * parameters : 0);
            EXPECT_EQ(plan.gradient_bytes, stage >= 2 ? 4 * P / W : 4 * P);
            EXPECT_EQ(plan.optimizer_bytes, stage >= 1 ? 8 * P / W : 8 * P);
            // Stages in use lie in two slots in turn: embedding, attention, ffn, attention, mot with its experts, head.
            // The largest of the first slot is mot, of the second the head.
            const int64_t even = units.mot + units.experts, odd = units.head;
            EXPECT_EQ(plan.unit_bytes, (stage == 3 ? c.act() : 0) * (even + odd) + (stage >= 2 ? 4 : 0) * (even + odd));
        }
    }
}

// Experts over N ranks: their units are shared by the W/N ranks that have the same ones, and in a micro-batch the rows
// of the block travel out and back, in forward and in backward. MoT: E/g rows a token. Token choice: E*S slots.
TEST(Experts, BytesThatTravel) {
    struct Kind {
        const char* block;
        int64_t dense, rows;  // parameters of its dense unit; rows of a rank's micro-batch
    };
    const int64_t slots = E * int64_t(1.25 * B * T / E);
    for (const Kind& kind : {Kind{"mot", units.mot, E * B * T / g}, Kind{"moe_token_choice", units.mot, slots}})
        for (const auto& [W, N, m] : {std::tuple{4, 2, 1}, {8, 4, 3}, {8, 8, 2}}) {
            SCOPED_TRACE(str(kind.block, ", ", W, " ranks, experts over ", N, ", ", m, " micro-batches"));
            TrainConfig train = train_of("optimizer", W * m, "bf16-mixed");
            train.expert_parallel = N;
            const Plan plan =
                make_plan(model_of(str("attention ffn attention ", kind.block)), train, true, 1, {}, {}, W);
            const CommCost& exchange = traffic(plan, "experts", "all_to_all");
            EXPECT_EQ(exchange.calls, 4 * m);
            EXPECT_EQ(exchange.bytes, 4 * m * kind.rows * C * 2);
            EXPECT_EQ(exchange.wire, exchange.bytes / N * (N - 1));
            const int64_t dense = units.dense(), mine = units.experts / N, replicas = W / N;
            EXPECT_EQ(traffic(plan, "all", "reduce_scatter").wire, 4 * dense / W * (W - 1));
            EXPECT_EQ(traffic(plan, "replicas", "reduce_scatter").wire, 4 * mine / replicas * (replicas - 1));
            EXPECT_EQ(traffic(plan, "replicas", "all_gather").wire, 2 * mine / replicas * (replicas - 1));
            EXPECT_EQ(plan.optimizer_bytes, 8 * (dense / W + mine / replicas));
            EXPECT_EQ(plan.gradient_bytes, 4 * (dense + mine));
            EXPECT_EQ(plan.copy_bytes, 2 * (dense + mine));
        }
}

// G ranks with B/G sequences each: around a MoT block all tokens of a rank change hands, x and out in forward, dout and
// dx in backward.
TEST(GroupRanks, BytesThatTravel) {
    for (int G : {2, 4}) {
        TrainConfig train = train_of("none", 6, "bf16-mixed");
        train.group_ranks = G;
        const Plan plan = make_plan(model_of(pattern), train, true, 1, {}, {}, 4);
        const int64_t m = 6 * G / 4;
        const CommCost& exchange = traffic(plan, "group", "all_to_all");
        EXPECT_EQ(exchange.calls, 4 * m);
        EXPECT_EQ(exchange.bytes, 4 * m * (B / G * T) * C * 2);
        EXPECT_EQ(exchange.wire, exchange.bytes / G * (G - 1));
        EXPECT_EQ(of_units(plan, "all_reduce").bytes, sums + 4 * units.all());
    }
}

// What is computed does not depend on --shard, but for the update of a slice instead of all, and for the sum of slices
// over a rank's micro-batches; with K micro-batches on W ranks each does K/W.
TEST(Zero, WorkOfARank) {
    for (const auto& [K, W] : {std::pair{12, 4}, {8, 4}, {8, 8}}) {
        const Plan one = make_plan(model_of(pattern), train_of("none", K, "fp32"), true, 1);
        for (const char* shard : {"none", "optimizer", "gradients", "parameters"}) {
            SCOPED_TRACE(str(K, " micro-batches, ", W, " ranks, ", shard));
            const Plan plan = make_plan(model_of(pattern), train_of(shard, K, "fp32"), true, 1, {}, {}, W);
            for (const char* op : {"matmul", "head_loss", "attention_backward", "mot_merge", "residual_norm_forward"})
                EXPECT_EQ(plan.ops.at(op).flops * W, one.ops.at(op).flops) << op;
            const bool moments = shard != std::string("none"), gradients = moments && shard != std::string("optimizer");
            EXPECT_EQ(plan.ops.at("adamw_update").flops * (moments ? W : 1), one.ops.at("adamw_update").flops);
            EXPECT_EQ(plan.ops.at("add").flops * W,
                      one.ops.at("add").flops + (gradients ? (K / W - 1) * units.all() : 0));
        }
    }
}

// The record of a step holds what the plan adds up: op by op, and group by group.
TEST(Record, HoldsWhatThePlanCounts) {
    for (const Case& c : cases)
        for (const char* shard : {"none", "optimizer", "gradients", "parameters"}) {
            SCOPED_TRACE(str(c.W, " ranks, ", c.m, " micro-batches, ", shard));
            const Plan plan = c.plan(shard);
            const StepTrace trace = record_step(model_of(pattern), train_of(shard, c.W * c.m, c.precision), int(c.W));
            EXPECT_EQ(trace.micro_batches, c.m);
            std::map<std::string, OpCost> ops;
            std::map<std::string, CommCost> collectives, counted;
            auto add = [&](const std::vector<Event>& events, int64_t times) {
                for (const Event& e : events)
                    if (e.kind == Event::collective)
                        collectives[e.name].add({1, e.bytes, e.wire}, times);
                    else if (e.kind == Event::op && !is_collective(e.name))
                        ops[e.name].add({1, e.flops, e.bytes}, times);
            };
            add(trace.first, 1), add(trace.middle, std::max<int64_t>(c.m - 2, 0)), add(trace.last, 1),
                add(trace.update, 1);
            for (const auto& [name, cost] : plan.ops) {
                if (name == "mot_statistics") continue;  // not in every step
                EXPECT_EQ(ops[name].calls, cost.calls) << name;
                EXPECT_EQ(ops[name].flops, cost.flops) << name;
                EXPECT_EQ(ops[name].bytes, cost.bytes) << name;
            }
            for (const Plan::Traffic& t : plan.traffic)
                if (t.ranks.count > 1)
                    for (const auto& [name, cost] : t.costs) counted[name].add(cost, 1);
            ASSERT_EQ(collectives.size(), counted.size());
            for (const auto& [name, cost] : counted) {
                EXPECT_EQ(collectives[name].calls, cost.calls) << name;
                EXPECT_EQ(collectives[name].bytes, cost.bytes) << name;
                EXPECT_EQ(collectives[name].wire, cost.wire) << name;
            }
        }
}

// Embedding, an attention block and a head. none: three gradients, each once ops have made it. parameters: five gathers
// (the head is used once) that wait for the user of their slot before, and are waited for; three gradients, of which
// the head's must have left its slot before the embedding's can be made there.
TEST(Record, SaysWhatWaits) {
    auto count = [](const std::vector<Event>& events, Event::Kind kind) {
        return std::count_if(events.begin(), events.end(), [&](const Event& e) { return e.kind == kind; });
    };
    const ModelConfig model = model_of("attention");
    for (const auto& [shard, collectives, afters, marks, waits, waits_in_update] :
         {std::tuple{"none", 3, 3, 0, 0, 0}, {"parameters", 8, 8, 8, 6, 2}}) {
        SCOPED_TRACE(shard);
        const StepTrace trace = record_step(model, train_of(shard, 2, "fp32"), 2);
        EXPECT_EQ(count(trace.last, Event::collective), collectives);
        EXPECT_EQ(count(trace.last, Event::after_compute), afters);
        EXPECT_EQ(count(trace.last, Event::mark), marks);
        EXPECT_EQ(count(trace.last, Event::before_compute_mark), waits);
        EXPECT_EQ(count(trace.last, Event::before_compute), 0);
        EXPECT_EQ(count(trace.update, Event::before_compute_mark), waits_in_update);
        EXPECT_EQ(count(trace.update, Event::after_compute), 1);   // the sums of all ranks
        EXPECT_EQ(count(trace.update, Event::before_compute), 2);  // all gradients; the sums
    }
    EXPECT_EQ(count(record_step(model, train_of("none", 2, "fp32"), 1).last, Event::after_compute), 0);
}

// --------------------------------------------------------------------------------------------------------- exchanges

TEST(Exchanges, DistinctRanksByTryingAllChoices) {
    for (const auto& [experts, ranks] : {std::pair{8, 4}, {9, 3}, {6, 6}, {8, 1}})
        for (int k = 1; k <= experts; k++) {
            double sum = 0, choices = 0;
            for (unsigned chosen = 0; chosen < 1u << experts; chosen++) {
                if (__builtin_popcount(chosen) != k) continue;
                unsigned on = 0;
                for (int e = 0; e < experts; e++)
                    if (chosen >> e & 1) on |= 1u << (e / (experts / ranks));
                sum += __builtin_popcount(on), choices++;
            }
            EXPECT_NEAR(distinct_ranks(experts, ranks, k), sum / choices, 1e-12) << experts << " " << ranks << " " << k;
        }
}

Cluster hand_made() {  // links of 1 GB/s; 8 GPUs a node
    Cluster c;
    c.gpu = {"hand-made", 1e12, 1e12, 1e12, 1e9, 1e9, 8};
    c.net = 0.1e9, c.link_latency = 1e-6, c.net_latency = 5e-6, c.message_gap = 0.5e-6, c.shares = {1, 1, 1};
    return c;
}

// What is compared is what a plan counts: four exchanges of these bytes for a layer of the model itself.
TEST(Exchanges, AreThoseThatThePlanCounts) {
    for (const char* block : {"mot", "moe_token_choice", "moe_expert_choice"}) {
        ModelConfig model = model_of(str("attention ", block));
        model.top_k = 2, model.expert_choice_fraction = 0.25, model.simulate_group_size = 4;
        TrainConfig train = train_of("none", 4, "fp32");
        train.expert_parallel = 4;
        const Plan plan = make_plan(model, train, true, 1, {}, {}, 4);
        const auto list = compare_exchanges(model, {.tokens = B * T, .ranks = 4}, DType::f32, hand_made());
        const std::map<std::string, std::string> kinds = {{"mot", "MoT, groups of 4"},
                                                          {"moe_token_choice", "token choice, top 2, capacity 1.25"},
                                                          {"moe_expert_choice", "expert choice, 1/4 of the tokens"}};
        const auto mine =
            std::find_if(list.begin(), list.end(), [&](const Exchange& e) { return e.kind == kinds.at(block); });
        ASSERT_NE(mine, list.end()) << block;
        EXPECT_EQ(double(traffic(plan, "experts", "all_to_all").bytes), 4 * mine->bytes) << block;
    }
}

TEST(Exchanges, ByHand) {
    ModelConfig model = model_of("attention mot");
    model.experts = 32, model.group_size = 4;  // as many rows as top 8
    const ExchangeCase of{.tokens = 1000, .ranks = 4, .imbalance = 1.5};
    const auto list = compare_exchanges(model, of, DType::bf16, hand_made());
    const double token = C * 2, gpus = distinct_ranks(32, 4, 8);  // bytes of one row
    const std::vector<std::pair<double, bool>> want = {
        {8, false}, {4, false}, {8, false}, {32 * 312 / 1000.0, false}, {8, true}, {12, true}, {1.5 * gpus, true}};
    ASSERT_EQ(list.size(), want.size());
    for (size_t i = 0; i < want.size(); i++) {
        SCOPED_TRACE(list[i].kind);
        const auto& [rows, counted] = want[i];
        EXPECT_NEAR(list[i].rows, rows, 1e-9);
        EXPECT_NEAR(list[i].bytes, rows * 1000 * token, 1);
        EXPECT_EQ(list[i].counted, counted);
        // 3/4 of the bytes leave the GPU; 1 us and three gaps; the counts are 32 integers.
        const double latency = 1e-6 + 3 * 0.5e-6, counts = latency + 0.75 * 32 * 4 / 1e9 + 4 * 20e-6;
        EXPECT_NEAR(list[i].seconds, 4 * (latency + 0.75 * rows * 1000 * token / 1e9) + (counted ? counts : 0), 1e-8);
    }
}

// Without a capacity the host waits, and counts travel before rows do.
TEST(Exchanges, DroplessOnesWait) {
    ModelConfig model = model_of("attention moe_token_choice");
    model.dropless = true;
    TrainConfig train = train_of("none", 4, "fp32");
    train.expert_parallel = 4;
    const StepTrace trace = record_step(model, train, 4);
    int downloads = 0, counts = 0, rows = 0;
    for (const Event& e : trace.last) {
        downloads += e.kind == Event::op && e.name == "download";
        rows += e.kind == Event::collective && e.name == "all_to_all_rows";
        if (e.kind != Event::collective || e.name != "all_to_all") continue;
        counts++;
        EXPECT_EQ(e.bytes, E * 4);
    }
    EXPECT_EQ(downloads, host_waits);
    EXPECT_EQ(counts, 1);
    EXPECT_EQ(rows, 4);
}

// ------------------------------------------------------------------------------------------------------------ a row

TEST(Net, IsOfAGpuOrOfANode) {
    EXPECT_EQ(net_of_gpu("400Gb", 8), 50e9);
    EXPECT_EQ(net_of_gpu("50GB", 8), 50e9);
    EXPECT_EQ(net_of_gpu("3200Gb/node", 8), 50e9);
    EXPECT_EQ(net_of_gpu("12.5GB/node", 4), 3.125e9);
    for (const char* wrong : {"", "400", "Gb", "400gb", "-1Gb", "0GB", "nanGb", "400Gb/s", "1e99Gb", "infGB"})
        EXPECT_TRUE(refuses<InputError>([&] { net_of_gpu(wrong, 8); }, "is not a rate")) << wrong;
}

// A model of 467 billion parameters and 4.2 million tokens a step: 1.2e19 FLOPs, more than an int64 holds.
TEST(Plan, CountsTheFlopsOfALargeClusterStep) {
    ModelConfig model;
    model.pattern = "126x(attention ffn)", model.vocab_size = 128256, model.d_model = 16384, model.heads = 128;
    model.ffn_activation = Hidden::swiglu, model.d_ff = 53248, model.context = 8192;
    TrainConfig one, many;
    one.micro_batch = many.micro_batch = 1, many.grad_accumulation = 513;
    const double tokens = double(model.context), step = make_plan(model, many, true, 1).step_flops / 513;
    EXPECT_NEAR(step, make_plan(model, one, true, 1).step_flops, 1e-3 * step);
    const double d = 16384, parameters = 126 * (4 * d * d + 3 * d * 53248) + 128256 * d;
    const double attention = 14 * (tokens + 1) / 2 * d * 126;  // a token sees that many others
    EXPECT_NEAR(step / tokens, 6 * parameters + attention, 1e-3 * step / tokens);
}

TEST(Row, IsTheStepOnTheCluster) {
    ScalingCommand command;
    command.gpu = "cpu", command.peak_tflops = 1, command.bandwidth_gbs = 100, command.memory_gb = 4,
    command.net = "1GB";
    command.net_latency_us = 0, command.shares = {1, 1, 1};
    const Cluster cluster = cluster_of(command, PrecisionMode::fp32);
    const ModelConfig model = model_of(pattern);
    const TrainConfig train = train_of("none", 4, "fp32");
    const ScalingRow row = scaling_row(model, train, 2, command, cluster);
    const Plan plan = make_plan(model, train, true, 1, {}, {}, 2);
    // Nothing overlaps: two ranks, half of (gradients + three sums) * 2 over 1 GB/s.
    EXPECT_NEAR(row.time.exposed(), (4 * double(units.all()) + sums) / 1e9, 1e-9);
    EXPECT_EQ(row.sent, 4 * units.all() + sums);
    EXPECT_NEAR(row.tokens_per_second, 4 * B * T / row.time.total, 1e-6);
    EXPECT_NEAR(row.mfu, row.flops / 1e12 / row.time.total, 1e-12);
    double flops = 0;
    for (const auto& [name, cost] : plan.ops) flops += cost.flops;
    EXPECT_EQ(row.flops, flops);
    EXPECT_EQ(row.memory, plan.total());
    EXPECT_TRUE(row.fits);
    command.usable_memory = double(plan.total() - 1) / 4e9;
    EXPECT_FALSE(scaling_row(model, train, 2, command, cluster).fits);
    // Weak scaling: four micro-batches of each, or of each pair.
    command.weak = true;
    EXPECT_EQ(scaling_row(model, train, 2, command, cluster).train.grad_accumulation, 8);
    TrainConfig pairs = train;
    pairs.group_ranks = 2;
    EXPECT_EQ(scaling_row(model, pairs, 8, command, cluster).train.grad_accumulation, 16);
}

TEST(Row, TheBestIsTheFastestThatFits) {
    std::vector<ScalingRow> rows(3);
    rows[0].tokens_per_second = 3, rows[1].tokens_per_second = 1, rows[2].tokens_per_second = 2;
    EXPECT_EQ(best_row(rows), -1);
    rows[1].fits = true;
    EXPECT_EQ(best_row(rows), 1);
    rows[2].fits = true;
    EXPECT_EQ(best_row(rows), 2);
    rows[0].fits = true;
    EXPECT_EQ(best_row(rows), 0);
}

// The experts alone are too large: only dividing them fits, and the rows say so.
TEST(Row, ExpertsAreDividedWhereThatHelps) {
    ScalingCommand command;
    const TrainConfig train = train_of("none", 8, "bf16-mixed");
    const int64_t whole = make_plan(model_of(pattern), train, true, 1, {}, {}, 8).total();
    command.memory_gb = double(whole - 1) / 0.95e9;
    const Cluster cluster = cluster_of(command, PrecisionMode::bf16_mixed);
    std::vector<ScalingRow> rows = scaling_rows(model_of(pattern), train, 8, command, cluster);
    ASSERT_EQ(rows.size(), 4u);
    EXPECT_GT(rows[0].train.expert_parallel, 1);
    EXPECT_TRUE(rows[0].fits);
    command.choose_experts = false;
    rows = scaling_rows(model_of(pattern), train, 8, command, cluster);
    EXPECT_EQ(rows[0].train.expert_parallel, 1);
    EXPECT_FALSE(rows[0].fits);
}

}  // namespace
}  // namespace llmc::test
