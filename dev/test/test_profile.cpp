// --profile and --trace: the recording of ops and ranges, the table, the record in the log, the trace.
#include <csignal>
#include <fstream>

#include "dev/test/train_mot_test.h"
#include "dev/test/trainee.h"
#include "llmc/measure/profile.h"
#include "llmc/measure/trace.h"

namespace llmc::test {
namespace {

void spend(double seconds) {
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds) {}
}

// The numbers of the table's line that begins with `name`.
std::vector<double> numbers_of(const std::string& table, const std::string& name) {
    const size_t begin = table.find("\n  " + name + " ");
    if (begin == std::string::npos) return {};
    const std::string after = table.substr(begin + 3 + name.size());
    std::istringstream words(after.substr(0, after.find('\n')));
    std::vector<double> numbers;
    for (std::string word; words >> word;)
        if (word != "%") numbers.push_back(word == "-" ? -1 : std::stod(word));
    return numbers;
}

// Two steps of 40 ms on a machine of 100 GFLOP/s and 10 GB/s.
Profile two_steps() {
    Profile p;
    p.range = "step", p.times = 2, p.seconds = 0.08, p.running = 0.079;
    p.ops["product"] = {6, 3'000'000'000, 1'000'000, 0.06};  // floor 30 ms, by operations
    p.ops["sum"] = {3, 1'000'000, 50'000'000, 0.0136};       // floor 5 ms, by bytes
    p.ops["nothing"] = {2, 0, 0, 0.0024};
    p.parts = {{"forward", 1, 2, 2'000'000'000, 0.05, 0.049, 0.0004}, {"mot", 2, 4, 0, 0.02, 0.0194, 0.0006}};
    p.own = 0.0035;
    p.machine = {100e9, 10e9};
    return p;
}

TEST(Profile, TableSaysWhatTheCostsSay) {
    const std::string table = profile_table(two_steps());
    // calls, ms, share, GFLOP/s, GB/s, x floor
    EXPECT_EQ(numbers_of(table, "product"), (std::vector<double>{3, 30, 75, 50, 0, 2})) << table;
    EXPECT_EQ(numbers_of(table, "sum"), (std::vector<double>{1.5, 6.8, 17, 0.1, 3.7, 2.72})) << table;
    EXPECT_EQ(numbers_of(table, "nothing"), (std::vector<double>{1, 1.2, 3, -1, -1, -1})) << table;
    EXPECT_EQ(numbers_of(table, "all ops"), (std::vector<double>{5.5, 38, 95, 39.5, 0.7, 2.17})) << table;
    EXPECT_EQ(numbers_of(table, "outside of ops"), (std::vector<double>{2, 5})) << table;
    EXPECT_EQ(numbers_of(table, "step"), (std::vector<double>{40, 100})) << table;
    EXPECT_EQ(numbers_of(table, "forward"), (std::vector<double>{1, 25, 62.5, 40, 0.5})) << table;
    EXPECT_EQ(numbers_of(table, "  mot"), (std::vector<double>{2, 10, 25, -1, 0.3})) << table;
    EXPECT_LT(table.find("product"), table.find("sum"));  // by time
    EXPECT_NE(table.find("ops are only 95.0 % of a step; most of the rest is in step itself (1.750 ms), forward/mot "
                         "(0.300 ms), forward (0.200 ms)"),
              std::string::npos)
        << table;
}

TEST(Profile, RemainderIsOnlyMentionedAboveThreePercent) {
    Profile p = two_steps();
    p.ops["product"].seconds = 0.0617;  // all ops: 77.7 of 80 ms, 97.1 %
    EXPECT_EQ(profile_table(p).find("ops are only"), std::string::npos);
    p.ops["product"].seconds = 0.0615;  // 96.9 %
    EXPECT_NE(profile_table(p).find("ops are only 96.9 %"), std::string::npos);
}

TEST(Profile, SaysThatOthersHadTheProcessor) {
    Profile p = two_steps();
    EXPECT_EQ(profile_table(p).find("this thread ran"), std::string::npos);
    p.running = 0.02;
    EXPECT_NE(profile_table(p).find("this thread ran for only 25 % of the time"), std::string::npos);
    Context ctx({.threads = 1, .profile = true});
    {
        const Range step("step", ctx);
        { const Range inner("inner", ctx); }
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    p = profile_of(*ctx.profile, "step");
    EXPECT_GT(p.running, 0);
    EXPECT_LT(p.running, 0.04);
}

TEST(Profile, UnknownMachineHasNoFloors) {
    Profile p = two_steps();
    p.machine = {};
    EXPECT_EQ(numbers_of(profile_table(p), "product"), (std::vector<double>{3, 30, 75, 50, 0, -1}));
    p = Profile();
    p.range = "step";
    EXPECT_EQ(profile_table(p), "profile: there was no step to measure\n");
}

TEST(Profile, SurvivesJson) {
    const Profile p = two_steps();
    const json j = to_json(p);
    EXPECT_EQ(profile_table(profile_from_json(json::parse(j.dump()))), profile_table(p));
    ASSERT_EQ(j.at("ops").size(), 3u);
    EXPECT_EQ(j.at("ops")[1].at("op"), "product");
    EXPECT_DOUBLE_EQ(j.at("ops")[1].at("floor"), 0.03);
    EXPECT_NEAR(j.at("outside").get<double>(), 0.004, 1e-12);
}

TEST(Recording, CountsNestedOpsOnce) {
    Context ctx({.threads = 1, .profile = true});
    {
        const Range step("step", ctx);
        const Op outer(ctx, "outer", 5, 0, 50);
        spend(0.004);
        const Op inner(ctx, "inner", 7, 0, 70);
        spend(0.008);
    }
    { const Op elsewhere(ctx, "outer", 1); }  // in no step
    const Profile p = profile_of(*ctx.profile, "step");
    ASSERT_EQ(p.ops.size(), 2u);
    EXPECT_EQ(p.ops.at("outer").flops, 5);
    EXPECT_EQ(p.ops.at("inner").bytes, 70);
    EXPECT_GE(p.ops.at("outer").seconds, 0.004);
    EXPECT_GE(p.ops.at("inner").seconds, 0.008);
    EXPECT_LE(p.in_ops(), p.seconds);  // counted twice they could be 20 of 12 ms
    EXPECT_EQ(ctx.profile->total("outer").calls, 2);
    ctx.profile->clear();
    EXPECT_EQ(ctx.profile->total("outer").calls, 0);
    EXPECT_EQ(profile_of(*ctx.profile, "step").times, 0);
    const Range open("step", ctx);
    EXPECT_TRUE(refuses([&] { ctx.profile->clear(); }, "step"));
}

TEST(Recording, AddsUpByPath) {
    Context ctx({.threads = 1, .profile = true});
    for (int i = 0; i < 3; i++) {
        const Range step("step", ctx);
        for (const char* phase : {"forward", "backward"}) {
            const Range range(phase, ctx);
            const Range block("mot", ctx);
            const Op op(ctx, "work", phase[0] == 'f' ? 10 : 20);
        }
        const Op op(ctx, "update", 1);
    }
    const Profile p = profile_of(*ctx.profile, "step");
    ASSERT_EQ(p.parts.size(), 4u);
    const char* names[] = {"forward", "mot", "backward", "mot"};
    for (size_t i = 0; i < 4; i++) {
        EXPECT_EQ(p.parts[i].name, names[i]);
        EXPECT_EQ(p.parts[i].depth, i % 2 ? 2 : 1);
        EXPECT_EQ(p.parts[i].times, 3);
        EXPECT_EQ(p.parts[i].flops, i < 2 ? 30 : 60);
    }
    double own = p.own;
    for (const Profile::Part& part : p.parts) own += part.own;
    EXPECT_NEAR(own, p.outside(), 1e-12);  // every moment outside of ops is somewhere
}

// What an independent count of the same step says, and how the times add up.
TEST(Profile, OfARealStepIsItsPlan) {
    Trainee lab(tiny(mot_pattern), training(8, 3), {.threads = 1, .profile = true});
    const Tokens tokens = random_tokens(8 * T, 1);
    auto step = [&] {
        lab.step->begin(1e-3);
        const Range range("step", lab.ctx);
        for (int64_t k = 0; k < 3; k++) lab.step->micro_batch(tokens.data(), tokens.data(), k, true);
        lab.step->update();
    };
    step();
    lab.ctx.profile->clear();
    step();
    step();
    const Profile p = profile_of(*lab.ctx.profile, "step");
    EXPECT_EQ(p.times, 2);
    size_t planned_ops = 0;
    for (const auto& [name, planned] : lab.plan.ops) {
        if (planned.calls == 0) continue;  // of an evaluation
        planned_ops++;
        ASSERT_EQ(p.ops.count(name), 1u) << name;
        EXPECT_EQ(p.ops.at(name).calls, 2 * planned.calls) << name;
        EXPECT_EQ(p.ops.at(name).flops, 2 * planned.flops) << name;
        EXPECT_EQ(p.ops.at(name).bytes, 2 * planned.bytes) << name;
    }
    EXPECT_EQ(p.ops.size(), planned_ops);
    double sum = p.outside();
    for (const auto& [name, cost] : p.ops) sum += cost.seconds;
    EXPECT_DOUBLE_EQ(sum, p.seconds);
    EXPECT_GT(p.outside(), 0);
    std::set<std::string> parts;
    for (const Profile::Part& part : p.parts) parts.insert(part.name);
    for (const char* part : {"forward", "head", "backward", "update", "embedding", "attention", "mot"})
        EXPECT_TRUE(parts.count(part)) << part;
}

// ------------------------------------------------------------------------------------------------------- the trace

// A trace is sound: complete events of known kinds, by time, each inside of the one that it begins in.
std::vector<json> read_trace(const std::string& path) {
    const std::vector<json> events = json::parse(read_file(path));
    std::vector<std::pair<double, double>> open;
    double before = 0;
    for (const json& e : events) {
        EXPECT_EQ(e.at("ph"), "X");
        const double start = e.at("ts"), end = start + e.at("dur").get<double>();
        constexpr double rounding = 1e-3;  // of sums of microseconds since the machine was started
        EXPECT_GE(start, before);
        before = start;
        while (!open.empty() && open.back().second <= start + rounding) open.pop_back();
        EXPECT_LE(end, (open.empty() ? end : open.back().second) + rounding) << e.dump();
        const bool step = e.at("args").contains("step");
        EXPECT_EQ(step, open.empty()) << e.dump();  // all lies in steps
        EXPECT_EQ(e.at("args").contains("flops"), e.at("cat") == "op") << e.dump();
        open.push_back({start, end});
    }
    return events;
}

std::vector<int64_t> steps_in(const std::vector<json>& events) {
    std::vector<int64_t> steps;
    for (const json& e : events)
        if (e.at("args").contains("step")) steps.push_back(e.at("args").at("step"));
    return steps;
}

// Steps of 7 spans each.
void run_steps(Context& ctx, int count) {
    for (int i = 0; i < count; i++) {
        const Range step("step", ctx);
        for (const char* phase : {"forward", "backward"}) {
            const Range range(phase, ctx);
            const Op outer(ctx, "outer", 10, 0, 20);
            const Op inner(ctx, "inner", 1, 0, 2);
        }
    }
    const Range evaluation("evaluation", ctx);
    const Op op(ctx, "elsewhere");
}

TEST(Trace, HoldsTheLastWholeStepsInBoundedMemory) {
    TempDir dir;
    Context ctx({.threads = 1, .profile = true});
    ctx.profile->keep_spans("step", 20);  // two steps and a part of a third
    run_steps(ctx, 1);
    EXPECT_NE(write_trace(*ctx.profile, dir / "one", 1, 3).find("trace of step 1 in "), std::string::npos);
    std::vector<json> events = read_trace(dir / "one");
    EXPECT_EQ(events.size(), 7u);
    EXPECT_EQ(events[0].at("pid"), 3);
    EXPECT_EQ(events[2].at("name"), "outer");
    EXPECT_EQ(events[2].at("args"), (json{{"flops", 10}, {"bytes", 20}}));
    run_steps(ctx, 9999);
    EXPECT_EQ(ctx.profile->spans().size(), 20u);
    EXPECT_TRUE(ctx.profile->lost_spans());
    EXPECT_NE(write_trace(*ctx.profile, dir / "many", 10000, 0).find("steps 9999 to 10000"), std::string::npos);
    events = read_trace(dir / "many");
    EXPECT_EQ(events.size(), 14u);
    EXPECT_EQ(steps_in(events), (std::vector<int64_t>{9999, 10000}));
}

TEST(Trace, OfManyShortStepsHoldsTheLastFive) {
    TempDir dir;
    Context ctx({.threads = 1, .profile = true});
    ctx.profile->keep_spans("step", 1000);
    run_steps(ctx, 8);
    write_trace(*ctx.profile, dir / "trace", 8, 0);
    EXPECT_EQ(steps_in(read_trace(dir / "trace")), (std::vector<int64_t>{4, 5, 6, 7, 8}));
}

TEST(Trace, OfAStepThatDoesNotFitHoldsItsEnd) {
    TempDir dir;
    Context ctx({.threads = 1, .profile = true});
    ctx.profile->keep_spans("step", 4);
    run_steps(ctx, 2);
    EXPECT_NE(write_trace(*ctx.profile, dir / "trace", 2, 0).find("the end of step 2"), std::string::npos);
    EXPECT_EQ(json::parse(read_file(dir / "trace")).size(), 4u);
    ctx.profile->clear();
    EXPECT_NE(write_trace(*ctx.profile, dir / "trace", 0, 0).find("no step"), std::string::npos);
    EXPECT_EQ(json::parse(read_file(dir / "trace")), json::array());
}

// ------------------------------------------------------------------------------------------------------ the program

TEST_F(TrainMotOneThread, ProfileIsPrintedAndLoggedAndTheTraceWritten) {
    const std::string trace = dir / "trace.json";
    ASSERT_EQ(run(recipe("run", {"--steps", "12", "--trace", trace})), 0) << said();
    const std::vector<json> records = log("run", "ops");
    ASSERT_EQ(records.size(), 1u);
    EXPECT_EQ(records[0].at("event"), "profile");
    EXPECT_EQ(records[0].at("times"), 11);  // without the first
    const Profile profile = profile_from_json(records[0]);
    EXPECT_EQ(profile.machine.flops * 1e-9, log("run", "loss")[0].at("peak_gflops"));
    EXPECT_GT(profile.machine.bytes, 0);
    EXPECT_EQ(profile.ops.at("adamw_update").calls % 11, 0);
    EXPECT_NE(said().find(profile_table(profile)), std::string::npos) << said();
    EXPECT_NE(said().find("trace of steps 8 to 12 in " + trace), std::string::npos) << said();
    EXPECT_EQ(steps_in(read_trace(trace)), (std::vector<int64_t>{8, 9, 10, 11, 12}));

    const std::string from = dir / "run";
    ASSERT_EQ(run({"train_mot", "eval", "--checkpoint", from, "--data", data, "--eval-batches", "3", "--profile"}), 0)
        << said();
    EXPECT_NE(said().find("profile of 3 evaluations"), std::string::npos) << said();
    ASSERT_EQ(run({"train_mot", "generate", "--checkpoint", from, "--prompt", "a", "--max-tokens", "4", "--profile"}),
              0)
        << said();
    EXPECT_NE(said().find("profile of "), std::string::npos) << said();
    EXPECT_NE(said().find(" positions, per position"), std::string::npos) << said();
}

TEST_F(TrainMotOneThread, InterruptedRunWritesItsTrace) {
    const std::string trace = dir / "trace.json";
    std::vector<std::string> words = recipe("run", {"--steps", "1000000", "--threads", "1", "--trace", trace});
    words[0] = program("train_mot");
    Process process(words, output);
    for (int i = 0; i < 6000 && (!path_exists(dir / "run" + "/log.jsonl") || log("run", "loss").size() < 3); i++)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    ::kill(process.id, SIGINT);
    EXPECT_EQ(process.wait(), 130) << said();
    EXPECT_EQ(steps_in(read_trace(trace)).back(), log("run", "ops").at(0).at("step")) << said();
}

TEST_F(TrainMotOneThread, RefusesATraceThatCannotBeWritten) {
    expect_refusal(recipe("run", {"--steps", "1", "--trace", "/proc/no/such/place"}),
                   {"--trace", "/proc/no/such/place"});
    expect_refusal(recipe("run", {"--steps", "1", "--trace", dir.path}), {"--trace", dir.path, "is a directory"});
    EXPECT_FALSE(path_exists(dir / "run"));
    ASSERT_EQ(run(recipe("run", {"--steps", "1"})), 0) << said();
    EXPECT_TRUE(log("run", "ops").empty());
    EXPECT_EQ(said().find("profile"), std::string::npos);
}

}  // namespace
}  // namespace llmc::test
