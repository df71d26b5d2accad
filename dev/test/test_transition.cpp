// train_mot transition: a Mixture of Tokens becomes sparse and trains on.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "dev/test/train_mot_test.h"

using namespace llmc;
using namespace llmc::test;

namespace {

class Transition : public TrainMotOneThread {
protected:
    // Eight steps of a Mixture of Tokens whose learning rate would fall until step 16.
    void make_mot(std::vector<std::string> more = {}) {
        more.insert(more.begin(), {"--steps", "8", "--decay-steps", "16", "--eval-batches", "3"});
        ASSERT_EQ(run(recipe("mot", more)), 0) << said();
    }
    std::vector<std::string> transition(const std::string& to, const std::string& run_dir,
                                        std::vector<std::string> more = {}) const {
        std::vector<std::string> words = {"train_mot", "transition",  "--from", dir / "mot", "--to",   to,
                                          "--run-dir", dir / run_dir, "--data", data,        "--keep", "0"};
        words.insert(words.end(), more.begin(), more.end());
        return words;
    }
    json state(const std::string& checkpoint) const { return json::parse(read_file(dir / checkpoint + "/state.json")); }
    json event(const std::string& run_dir, const std::string& name) const {
        for (const json& record : log(run_dir, "event"))
            if (record.at("event") == name) return record;
        return {};
    }
    // The number that follows `word` in what the program said.
    double number_after(const std::string& word) const {
        const size_t at = said().find(word);
        return at == std::string::npos ? NAN : std::stod(said().substr(at + word.size()));
    }
};

std::string old_name(std::string name) {
    if (const size_t at = name.find(".router."); at != std::string::npos) name.replace(at, 8, ".controller.");
    return name;
}

}  // namespace

TEST_F(Transition, KeepsEveryWeightAndMoment) {
    make_mot();
    ASSERT_EQ(run(transition("token-choice", "sparse")), 0) << said();
    for (const char* file : {"/model.safetensors", "/optimizer.safetensors"}) {
        const SafetensorsFile from(dir / "mot" + "/step-00000008" + file), to(dir / "sparse" + "/step-00000008" + file);
        ASSERT_EQ(from.tensors().size(), to.tensors().size());
        for (const SafetensorsEntry& t : to.tensors())
            EXPECT_EQ(to.read<float>(t.name), from.read<float>(old_name(t.name))) << t.name;
    }
    const json old = state("mot/step-00000008"), fresh = state("sparse/step-00000008");
    EXPECT_EQ(fresh.at("adam_t"), 8);
    EXPECT_EQ(fresh.at("data_position"), old.at("data_position"));
    EXPECT_EQ(fresh.at("model").at("pattern"), "attention moe_token_choice");
    EXPECT_EQ(fresh.at("model").at("top_k"), 1);
    EXPECT_EQ(fresh.at("train").at("steps"), 9);  // 10 % more
    EXPECT_EQ(fresh.at("train").at("decay_steps"), 16);
    const json origin = fresh.at("transition");
    EXPECT_EQ(origin.at("from"), dir / "mot" + "/step-00000008");
    EXPECT_EQ(origin.at("step"), 8);
    EXPECT_EQ(origin.at("mode"), "token-choice");
    EXPECT_EQ(state("sparse/step-00000009").at("transition"), origin);
    EXPECT_EQ(json::parse(read_file(dir / "sparse" + "/run.json")).at("transition"), origin);
    // The old schedule goes on: step 8 of a cosine from step 1 to 16.
    const double lr = 1e-2 * (0.1 + 0.45 * (1 + std::cos(M_PI * 7 / 15)));
    EXPECT_NEAR(log("sparse", "lr").at(0).at("lr").get<double>(), lr, 1e-15);
}

TEST_F(Transition, MeasuresBothModesOnTheSameBatches) {
    make_mot();
    ASSERT_EQ(run(transition("token-choice", "sparse", {"--steps", "40", "--eval-interval", "1"})), 0) << said();
    const std::string text = said();
    const json before = event("sparse", "transition"), after = event("sparse", "transition end");
    // What the old run's last validation and evaluations from outside say.
    const double mot_loss = log("mot", "val_loss").back().at("val_loss");
    EXPECT_EQ(before.at("mot_loss"), mot_loss);
    EXPECT_NE(before.at("sparse_loss"), mot_loss);
    EXPECT_EQ(after.at("sparse_loss"), log("sparse", "val_loss").back().at("val_loss"));
    auto evaluated = [&](const std::string& checkpoint, const std::string& as) {
        EXPECT_EQ(run({"train_mot", "eval", "--checkpoint", dir / checkpoint, "--data", data, "--eval-batches", "3",
                       "--as", as}),
                  0)
            << said();
        return number_after("loss ");
    };
    EXPECT_NEAR(evaluated("sparse/step-00000008", "mot"), mot_loss, 5.1e-5);  // printed with four digits
    EXPECT_NEAR(evaluated("mot", "mot"), mot_loss, 5.1e-5);
    EXPECT_NEAR(evaluated("mot", "token-choice"), before.at("sparse_loss"), 5.1e-5);
    EXPECT_NEAR(evaluated("sparse/step-00000008", "token-choice"), before.at("sparse_loss"), 5.1e-5);
    EXPECT_NEAR(evaluated("sparse", "mot"), after.at("mot_loss"), 5.1e-5);

    // It came back at the first validation that is not worse.
    int64_t back = -1;
    for (const json& validation : log("sparse", "val_loss"))
        if (back < 0 && validation.at("val_loss") <= mot_loss) back = validation.at("step");
    ASSERT_GT(back, 8);
    EXPECT_EQ(after.at("recovered_at"), back);
    EXPECT_EQ(event("sparse", "recovered").at("step"), back);
    EXPECT_NE(text.find(str("back after ", back - 8, " steps")), std::string::npos) << text;
}

TEST_F(Transition, KilledAndResumedIsBitEqual) {
    make_mot();
    ASSERT_EQ(run(transition("token-choice", "straight", {"--steps", "14", "--save-interval", "3"})), 0) << said();
    // Killed after the conversion, and after a checkpoint in between.
    for (const char* at : {"step-00000008", "step-00000012"}) {
        const std::string killed = dir / "killed";
        std::filesystem::copy(dir / "straight", killed, std::filesystem::copy_options::recursive);
        for (const auto& entry : std::filesystem::directory_iterator(killed))
            if (entry.path().filename().string().starts_with("step-") && entry.path().filename() > at)
                std::filesystem::remove_all(entry.path());
        std::ofstream(killed + "/latest") << at << "\n";
        ASSERT_EQ(run({"train_mot", "train", "--resume", "--run-dir", killed, "--data", data}), 0) << said();
        expect_equal_checkpoints("straight/step-00000014", "killed/step-00000014");
        EXPECT_EQ(state("straight/step-00000014").at("transition"), state("killed/step-00000014").at("transition"));
        EXPECT_EQ(event("straight", "transition end"), event("killed", "transition end"));
        int64_t transitions = 0;
        for (const json& record : log("killed", "event")) transitions += record.at("event") == "transition";
        EXPECT_EQ(transitions, 1);
        std::filesystem::remove_all(killed);
    }
    expect_refusal({"train_mot", "--resume", "--run-dir", dir / "straight", "--data", data, "--top-k", "2"},
                   {"--top-k", "2", "1"});
    expect_refusal({"train_mot", "--resume", "--run-dir", dir / "straight", "--data", data, "--lr", "1"}, {"--lr"});
}

// Killed before the first checkpoint: what is left says so, and the same command goes on from nothing.
TEST_F(Transition, InterruptedBeforeItsFirstCheckpointCanBeRunAgain) {
    make_mot();
    ASSERT_EQ(run(transition("token-choice", "straight")), 0) << said();
    const std::string killed = dir / "killed";
    std::filesystem::copy(dir / "straight", killed, std::filesystem::copy_options::recursive);
    std::filesystem::rename(killed + "/step-00000008", killed + "/.step-00000008.tmp");
    std::filesystem::remove(killed + "/.step-00000008.tmp/state.json");
    std::filesystem::remove_all(killed + "/step-00000009");
    std::filesystem::remove(killed + "/latest");
    std::ofstream(killed + "/latest.tmp.77") << "step-";
    std::ofstream(killed + "/run.json.tmp.77") << "{";

    for (const char* flag : {"--resume", "--auto-resume"})
        expect_refusal(recipe("killed", {flag, "--steps", "1"}),
                       {killed, "transition was interrupted before its first checkpoint", "run it again"});
    std::ofstream(killed + "/notes.txt") << "mine";
    expect_refusal(transition("token-choice", "killed"), {killed, "notes.txt"});
    EXPECT_TRUE(path_exists(killed + "/log.jsonl"));
    std::filesystem::remove(killed + "/notes.txt");
    ASSERT_EQ(run(transition("token-choice", "killed", {"--dry-run"})), 0) << said();
    EXPECT_TRUE(path_exists(killed + "/log.jsonl"));

    ASSERT_EQ(run(transition("token-choice", "killed")), 0) << said();
    for (const char* step : {"/step-00000008", "/step-00000009"})
        expect_equal_checkpoints(str("straight", step), str("killed", step));
    int64_t transitions = 0;
    for (const json& record : log("killed", "event")) transitions += record.at("event") == "transition";
    EXPECT_EQ(transitions, 1);
    std::set<std::string> names[2];
    for (int i : {0, 1})
        for (const auto& entry : std::filesystem::directory_iterator(dir / (i ? "killed" : "straight")))
            names[i].insert(entry.path().filename());
    EXPECT_EQ(names[0], names[1]);
    expect_refusal(transition("token-choice", "killed"), {killed, "holds a run already"});

    // Of another run, even one without a checkpoint, nothing is deleted.
    ASSERT_EQ(run(recipe("plain", {"--steps", "1"})), 0) << said();
    std::filesystem::remove_all(dir / "plain" + "/step-00000001");
    std::filesystem::remove(dir / "plain" + "/latest");
    expect_refusal(transition("token-choice", "plain"), {dir / "plain", "run.json"});
    EXPECT_TRUE(path_exists(dir / "plain" + "/log.jsonl"));
}

// The old run's flags may be given again: what they say is true of the old run, and the transition changes it.
TEST_F(Transition, TheOldConfigurationIsNoContradiction) {
    make_mot({"--temperature", "0.25", "--eval-group-sizes", "2,4", "--eval-discrete"});
    const std::vector<std::string> again = {"--pattern",
                                            "attention mot",
                                            "--temperature",
                                            "0.25",
                                            "--d-model",
                                            "16",
                                            "--group-size",
                                            "4",
                                            "--experts",
                                            "4",
                                            "--eval-group-sizes",
                                            "2,4",
                                            "--seed",
                                            "3",
                                            "--eval-discrete"};
    ASSERT_EQ(run(transition("token-choice", "sparse", again)), 0) << said();
    ASSERT_EQ(run(transition("token-choice", "plain")), 0) << said();
    EXPECT_EQ(state("sparse/step-00000009").at("model"), state("plain/step-00000009").at("model"));
    EXPECT_EQ(state("sparse/step-00000009").at("train"), state("plain/step-00000009").at("train"));
    ASSERT_EQ(run(transition("token-choice", "said", {"--temperature", "1"})), 0) << said();
    expect_refusal(transition("token-choice", "x", {"--temperature", "0.5"}),
                   {"--temperature is 0.5", "transition makes it 1", "0.25"});
    expect_refusal(
        transition("token-choice", "x", {"--pattern", "attention ffn"}),
        {"--pattern", "attention ffn", "transition makes it \"attention moe_token_choice\"", "attention mot"});
    expect_refusal(transition("token-choice", "x", {"--d-model", "32"}), {"--d-model is 32", "started with 16"});
    EXPECT_FALSE(path_exists(dir / "x"));
}

// Token choice needs no groups, so the micro-batch may be smaller than they were: then there is nothing to compare.
TEST_F(Transition, AMicroBatchThatCannotBeCutIntoTheOldGroups) {
    make_mot();
    ASSERT_EQ(run(transition("token-choice", "sparse", {"--micro-batch", "2", "--grad-accumulation", "8"})), 0)
        << said();
    EXPECT_NE(said().find("--micro-batch 2 is no multiple of the 4 sequences"), std::string::npos) << said();
    EXPECT_NE(said().find("no recovery to tell"), std::string::npos) << said();
    EXPECT_EQ(said().find("nan"), std::string::npos) << said();
    EXPECT_EQ(said().find("has not come back"), std::string::npos) << said();
    for (const char* name : {"transition", "transition end"}) {
        const json record = event("sparse", name);
        EXPECT_TRUE(record.at("mot_loss").is_null()) << record;
        EXPECT_TRUE(record.at("recovered_at").is_null()) << record;
        EXPECT_TRUE(record.at("sparse_loss").is_number()) << record;
        EXPECT_EQ(record.at("tokens"), 3 * 2 * 8) << record;
    }
    EXPECT_EQ(state("sparse/step-00000009").at("train").at("micro_batch"), 2);
}

// Losses on more validation batches than at the switch say nothing about a recovery.
TEST_F(Transition, LossesOnOtherBatchesAreNotCompared) {
    make_mot();
    ASSERT_EQ(run(transition("token-choice", "sparse", {"--steps", "10"})), 0) << said();
    EXPECT_EQ(said().find("not comparable"), std::string::npos) << said();
    ASSERT_EQ(run({"train_mot", "--resume", "--run-dir", dir / "sparse", "--data", data, "--steps", "11",
                   "--eval-batches", "5"}),
              0)
        << said();
    EXPECT_NE(said().find("not comparable: 192 validation tokens at the switch, 320 now"), std::string::npos) << said();
    EXPECT_EQ(said().find("back"), std::string::npos) << said();
}

TEST_F(Transition, OptimizerAndScheduleCanStartAnew) {
    make_mot();
    ASSERT_EQ(run(transition("token-choice", "reset",
                             {"--reset-optimizer", "--reset-schedule", "--steps", "28", "--lr", "3e-3"})),
              0)
        << said();
    const SafetensorsFile moments(dir / "reset" + "/step-00000008/optimizer.safetensors");
    for (const SafetensorsEntry& t : moments.tensors())
        for (float value : moments.read<float>(t.name)) ASSERT_EQ(value, 0) << t.name;
    EXPECT_EQ(state("reset/step-00000008").at("adam_t"), 0);
    EXPECT_EQ(state("reset/step-00000028").at("adam_t"), 20);
    // Warm-up of 1 step, then a cosine from step 9 to 28.
    const std::vector<json> lines = log("reset", "lr");
    ASSERT_EQ(lines.size(), 20u);
    EXPECT_NEAR(lines[0].at("lr").get<double>(), 3e-3, 1e-15);
    EXPECT_NEAR(lines[1].at("lr").get<double>(), 3e-3, 1e-15);
    EXPECT_NEAR(lines[10].at("lr").get<double>(), 3e-3 * (0.1 + 0.45 * (1 + std::cos(M_PI * 9 / 19))), 1e-15);
    EXPECT_NEAR(lines[19].at("lr").get<double>(), 3e-3 * (0.1 + 0.45 * (1 + std::cos(M_PI * 18 / 19))), 1e-15);
}

TEST_F(Transition, ATemperatureGoesIntoRouterAndMoments) {
    make_mot({"--temperature", "0.25"});
    ASSERT_EQ(run(transition("token-choice", "sparse")), 0) << said();
    auto expect_scaled = [&](const std::string& file, const std::string& name, float factor) {
        const SafetensorsFile from(dir / "mot" + "/step-00000008/" + file),
            to(dir / "sparse" + "/step-00000008/" + file);
        std::vector<float> want = from.read<float>(old_name(name));
        for (float& value : want) value *= factor;  // powers of two: exact
        EXPECT_EQ(to.read<float>(name), want) << name;
    };
    expect_scaled("model.safetensors", "blocks.1.router.weight", 4);
    expect_scaled("optimizer.safetensors", "m.blocks.1.router.weight", 0.25f);
    expect_scaled("optimizer.safetensors", "v.blocks.1.router.weight", 0.0625f);
    expect_scaled("model.safetensors", "blocks.1.experts.up.weight", 1);
    EXPECT_EQ(event("sparse", "transition").at("mot_loss"), log("mot", "val_loss").back().at("val_loss"));
}

// One expert and groups of one: every token passes the expert with weight 1, before and after.
TEST_F(Transition, IsExactForOneExpertAndGroupsOfOne) {
    make_mot({"--group-size", "1", "--experts", "1", "--precision", "fp64"});
    for (const char* to : {"token-choice", "expert-choice"}) {
        ASSERT_EQ(run(transition(to, to)), 0) << said();
        const json before = event(to, "transition");
        EXPECT_NEAR(before.at("sparse_loss"), before.at("mot_loss"), 1e-13) << to;
        EXPECT_EQ(before.at("mot_loss"), log("mot", "val_loss").back().at("val_loss")) << to;
    }
}

TEST_F(Transition, FlagsOfTheSparseMixtureOverride) {
    make_mot();
    ASSERT_EQ(run(transition("token-choice", "more",
                             {"--top-k", "3", "--dropless", "--renormalize-gates", "--load-balancing-weight", "0.5"})),
              0)
        << said();
    const json model = state("more/step-00000009").at("model");
    EXPECT_EQ(model.at("top_k"), 3);
    EXPECT_EQ(model.at("dropless"), true);
    EXPECT_EQ(model.at("renormalize_gates"), true);
    EXPECT_EQ(model.at("load_balancing_weight"), 0.5);

    ASSERT_EQ(run(transition("expert-choice", "normed", {"--top-k", "2", "--expert-choice-norm"})), 0) << said();
    EXPECT_EQ(state("normed/step-00000009").at("model").at("expert_choice_fraction"), 0.5);  // 2 of 4 experts
    // What the old model did not have starts as in a new one.
    const std::string first = dir / "normed" + "/step-00000008/";
    const SafetensorsFile weights(first + "model.safetensors"), moments(first + "optimizer.safetensors");
    EXPECT_EQ(weights.read<float>("blocks.1.output_norm.weight"), std::vector<float>(16, 1));
    EXPECT_EQ(weights.read<float>("blocks.1.output_norm.bias"), std::vector<float>(16, 0));
    EXPECT_EQ(moments.read<float>("m.blocks.1.output_norm.weight"), std::vector<float>(16, 0));
    EXPECT_EQ(event("normed", "transition").at("mot_loss"), log("mot", "val_loss").back().at("val_loss"));
    EXPECT_EQ(run({"train_mot", "eval", "--checkpoint", dir / "normed", "--data", data, "--as", "mot"}), 0) << said();
}

TEST_F(Transition, TextFromTheResult) {
    make_mot();
    for (const char* to : {"token-choice", "expert-choice"}) {
        ASSERT_EQ(run(transition(to, to)), 0) << said();
        for (int64_t prompts : {1, 3, 5}) {
            std::vector<std::string> words = {"train_mot", "generate", "--checkpoint", dir / to, "--max-tokens", "4"};
            for (int64_t i = 0; i < prompts; i++) words.insert(words.end(), {"--prompt", str("a", i)});
            for (const char* fill : {"data", "self", "zero"}) {
                std::vector<std::string> filled = words;
                filled.insert(filled.end(), {"--group-fill", fill});
                ASSERT_EQ(run(filled), 0) << said();
                EXPECT_NE(said().find(str("a", prompts - 1)), std::string::npos) << said();
            }
        }
    }
    // A token's experts do not depend on its neighbours: alone or beside others, a prompt goes on the same way.
    const std::vector<std::string> greedy = {"train_mot",    "generate", "--checkpoint",  dir / "token-choice",
                                             "--max-tokens", "4",        "--temperature", "0",
                                             "--prompt",     "ab"};
    std::vector<std::string> beside = greedy;
    beside.insert(beside.end(), {"--prompt", "xyz"});
    ASSERT_EQ(run(greedy), 0) << said();
    const std::string alone = said();
    ASSERT_EQ(run(beside), 0) << said();
    EXPECT_NE(said().find("--- 1\n" + alone), std::string::npos) << alone << "\n" << said();
}

TEST_F(Transition, RefusesBadInput) {
    make_mot();
    expect_refusal(transition("token-choice", "x", {"--from", dir / "nothing"}), {"nothing"});
    expect_refusal(transition("switch", "x"), {"switch"});
    expect_refusal(transition("token-choice", "x", {"--steps", "8"}), {"--steps 8", "8 already"});
    expect_refusal(transition("token-choice", "x", {"--d-model", "32"}), {"--d-model", "32", "16"});
    expect_refusal(transition("token-choice", "x", {"--experts", "8"}), {"--experts", "8", "4"});
    expect_refusal(transition("token-choice", "x", {"--seed", "4"}), {"--seed", "4", "3"});
    expect_refusal(transition("token-choice", "x", {"--precision", "bf16"}), {"--precision", "bf16", "fp32"});
    expect_refusal(transition("token-choice", "x", {"--micro-batch", "4"}), {"--micro-batch 4", "16 sequences"});
    expect_refusal(transition("token-choice", "x", {"--top-k", "5"}), {"--top-k 5", "4"});
    expect_refusal(transition("token-choice", "x", {"--shared-experts", "1"}), {"--shared-experts 1"});
    expect_refusal(transition("token-choice", "x", {"--eval-group-sizes", "4"}), {"--eval-group-sizes"});
    expect_refusal(transition("token-choice", "x", {"--reset-schedule", "--warmup-steps", "5"}), {"warm-up", "5"});
    expect_refusal(transition("token-choice", "x", {"--schedule-origin", "3"}), {"--schedule-origin", "3"});
    expect_refusal(transition("token-choice", "x", {"--resume"}), {"train --resume"});
    expect_refusal(transition("expert-choice", "x", {"--simulate-group-size", "3"}), {"--simulate-group-size", "3"});
    expect_refusal(transition("token-choice", "x", {"--simulate-group-size", "4"}),
                   {"--simulate-group-size", "--to token-choice"});
    expect_refusal(transition("token-choice", "x", {"--expert-choice-over", "all"}),
                   {"--expert-choice-over", "--to token-choice"});
    expect_refusal(transition("expert-choice", "x", {"--dropless"}), {"--dropless", "--to expert-choice"});
    expect_refusal(transition("expert-choice", "x", {"--load-balancing-weight", "0.1"}),
                   {"--load-balancing-weight", "--to expert-choice"});
    expect_refusal(transition("token-choice", "mot"), {dir / "mot", "holds a run already"});
    EXPECT_EQ(run(transition("token-choice", "x", {"--dry-run"})), 0) << said();
    EXPECT_FALSE(path_exists(dir / "x"));  // and nothing was made

    ASSERT_EQ(run(recipe("dense", {"--pattern", "attention ffn", "--steps", "1"})), 0) << said();
    expect_refusal(transition("token-choice", "x", {"--from", dir / "dense"}), {"no Mixture-of-Tokens block"});
    ASSERT_EQ(run(recipe("emit", {"--emit", "experts", "--steps", "1"})), 0) << said();
    expect_refusal(transition("token-choice", "x", {"--from", dir / "emit"}), {"--emit experts"});
    ASSERT_EQ(run(transition("token-choice", "sparse")), 0) << said();
    expect_refusal(transition("token-choice", "x", {"--from", dir / "sparse"}), {"sparse already"});
    expect_refusal(recipe("x", {"--schedule-origin", "3"}), {"--schedule-origin", "3"});
    EXPECT_FALSE(path_exists(dir / "x"));
}
