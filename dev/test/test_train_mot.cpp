// The program train_mot: resume, interruption, generation, and what it refuses.
#include <cmath>
#include <fstream>

#include "dev/test/forge_state.h"
#include "dev/test/train_mot_test.h"

using namespace llmc;
using namespace llmc::test;

TEST_F(TrainMot, ResumeIsBitEqualToAnUninterruptedRun) {
    ASSERT_EQ(run(recipe("straight", {"--steps", "20", "--save-interval", "10"})), 0) << said();
    ASSERT_EQ(run(recipe("halves", {"--steps", "10", "--decay-steps", "20"})), 0) << said();
    ASSERT_EQ(run({"train_mot", "--resume", "--data", data, "--run-dir", dir / "halves", "--steps", "20"}), 0)
        << said();
    expect_equal_checkpoints("straight/step-00000020", "halves/step-00000020");
    const std::vector<json> a = log("straight", "loss"), b = log("halves", "loss");
    ASSERT_EQ(a.size(), 20u);
    ASSERT_EQ(b.size(), 20u);
    for (size_t i = 10; i < 20; i++)
        EXPECT_NEAR(a[i].at("loss").get<double>(), b[i].at("loss").get<double>(), 1e-12) << "step " << i + 1;
    EXPECT_EQ(log("straight", "val_loss").back().at("val_loss"), log("halves", "val_loss").back().at("val_loss"));
    EXPECT_LT(a.back().at("loss").get<double>(), a.front().at("loss").get<double>());
}

TEST_F(TrainMot, MuonResumesWithEqualBitsAndStaysMuon) {
    ASSERT_EQ(run(recipe("straight", {"--steps", "12", "--optimizer", "muon"})), 0) << said();
    ASSERT_EQ(run(recipe("halves", {"--steps", "6", "--decay-steps", "12", "--optimizer", "muon"})), 0) << said();
    const std::vector<std::string> resume = {"train_mot", "--resume",     "--data",  data,
                                             "--run-dir", dir / "halves", "--steps", "12"};
    auto with = [&](std::vector<std::string> more) {
        more.insert(more.begin(), resume.begin(), resume.end());
        return more;
    };
    expect_refusal(with({"--optimizer", "adamw"}), {"--optimizer", "adamw", "muon"});
    expect_refusal(with({"--muon-momentum", "0.9"}), {"--muon-momentum", "0.9", "0.95"});
    ASSERT_EQ(run(resume), 0) << said();
    expect_equal_checkpoints("straight/step-00000012", "halves/step-00000012");
    const SafetensorsFile state(dir / "halves" + "/step-00000012/optimizer.safetensors");
    auto has = [&](const std::string& name) { return state.find(name) != nullptr; };
    for (const char* name : {"blocks.0.qkv.weight", "blocks.0.proj.weight"})
        EXPECT_TRUE(has(str("m.", name)) && !has(str("v.", name))) << name;
    for (const char* name : {"embedding.token.weight", "head.weight", "blocks.0.norm.weight"})
        EXPECT_TRUE(has(str("m.", name)) && has(str("v.", name))) << name;
}

TEST_F(TrainMot, KilledRunContinuesAndItsLogIsCutBack) {
    ASSERT_EQ(run(recipe("straight", {"--steps", "20"})), 0) << said();
    ASSERT_EQ(run(recipe("killed", {"--steps", "10", "--decay-steps", "20"})), 0) << said();
    std::ofstream(dir / "killed" + "/log.jsonl", std::ios::app)
        << "{\"step\":11,\"loss\":99}\n{\"step\":12,\"lo";  // steps after the checkpoint
    ASSERT_EQ(run({"train_mot", "--auto-resume", "--data", data, "--run-dir", dir / "killed", "--steps", "20"}), 0)
        << said();
    EXPECT_EQ(log("killed", "loss").size(), 20u);
    expect_equal_checkpoints("straight/step-00000020", "killed/step-00000020");
}

// More steps than the schedule has: at its floor, and said; or a new schedule.
TEST_F(TrainMot, ALongerRunSaysItsScheduleOrBeginsANewOne) {
    auto resume = [&](const std::string& run_dir, std::vector<std::string> more) {
        more.insert(more.begin(), {"train_mot", "--resume", "--data", data, "--run-dir", dir / run_dir});
        return more;
    };
    auto rates = [&](const std::string& run_dir) {
        std::vector<double> rates;
        for (const json& line : log(run_dir, "lr")) rates.push_back(line.at("lr"));
        return rates;
    };
    ASSERT_EQ(run(recipe("floor", {"--steps", "6"})), 0) << said();
    std::filesystem::copy(dir / "floor", dir / "more", std::filesystem::copy_options::recursive);
    EXPECT_EQ(run(resume("floor", {"--steps", "9"})), 0);
    EXPECT_NE(said().find("ends at step 6; from there on the learning rate stays at 0.001"), std::string::npos)
        << said();
    EXPECT_EQ(run(resume("floor", {"--steps", "9"})), 0);
    EXPECT_EQ(said().find("ends at step 6"), std::string::npos) << "said again: " << said();

    expect_refusal(resume("more", {"--steps", "12", "--lr", "5e-3"}), {"--lr", "0.005"});
    expect_refusal(resume("more", {"--steps", "12", "--extend", "--beta1", "0.5"}), {"--beta1"});
    expect_refusal(recipe("new", {"--steps", "12", "--extend"}), {"--extend", "--resume"});
    const std::vector<std::string> extension = {"--steps", "12", "--extend", "--lr", "5e-3", "--warmup-steps", "2"};
    EXPECT_EQ(run(resume("more", extension)), 0) << said();
    EXPECT_NE(said().find("from step 6 to step 12"), std::string::npos) << said();
    const std::vector<double> floor = rates("floor"), more = rates("more");
    ASSERT_EQ(floor.size(), 9u);
    ASSERT_EQ(more.size(), 12u);
    for (size_t s = 0; s < 6; s++) EXPECT_EQ(floor[s], more[s]);
    for (size_t s = 6; s < 9; s++) EXPECT_NEAR(floor[s], 1e-3, 1e-12);
    EXPECT_NEAR(more[6], 2.5e-3, 1e-12);
    EXPECT_NEAR(more[7], 5e-3, 1e-12);
    for (size_t s = 8; s < 12; s++)  // a cosine over four steps
        EXPECT_NEAR(more[s], 5e-3 * (0.1 + 0.45 * (1 + std::cos(M_PI * double(s - 8) / 4))), 1e-12);
    // The same command again, as after a kill, goes on with that schedule.
    EXPECT_EQ(run(resume("more", extension)), 0) << said();
    EXPECT_EQ(said().find("from step"), std::string::npos) << said();
}

TEST_F(TrainMot, AnUnknownFlagNamesItsNeighbour) {
    expect_refusal({"train_mot", "--stps", "3"}, {"no flag --stps; did you mean --steps?"});
    expect_refusal({"train_mot", "train", "--stps=3"}, {"no flag --stps; did you mean --steps?"});
    expect_refusal({"train_mot", "generate", "--checkpoint", "x", "--promt", "a"}, {"did you mean --prompt?"});
    expect_refusal({"train_gpt", "--bacth", "3"}, {"did you mean --batch?"});
}

TEST_F(TrainMot, DataThatIsNotUsedIsSaid) {
    const std::string shards = dir / "short";
    make_directories(shards);
    ShardWriter train(shards, "train", 12);  // one sequence of 8 in each
    train.write(std::vector<uint16_t>(120, 7));
    write_dataset_json(shards, read_file(data + "/tokenizer.tiktoken"), int64_t(vocabulary),
                       {1, 120, 120, train.finish()}, {});
    EXPECT_EQ(run(recipe("run", {"--steps", "1", "--data", shards})), 0);
    EXPECT_NE(said().find("33 % of the training tokens are never used"), std::string::npos) << said();
    EXPECT_NE(said().find("there is no validation"), std::string::npos) << said();
    EXPECT_EQ(run(recipe("other", {"--steps", "1"})), 0);
    EXPECT_EQ(said().find("never used"), std::string::npos) << said();
    EXPECT_EQ(said().find("no validation"), std::string::npos) << said();
}

// Of the same size, so that nothing but its checksum tells.
TEST_F(TrainMot, AnotherVocabularyOfTheSameSizeIsRefused) {
    ASSERT_EQ(run(recipe("run", {"--steps", "2"})), 0) << said();
    std::string ranks = read_file(data + "/tokenizer.tiktoken");
    const size_t first = ranks.find('\n') + 1, second = ranks.find('\n', first) + 1;  // "AA== 0\n" "AQ== 1\n"
    std::swap_ranges(ranks.begin(), ranks.begin() + 4, ranks.begin() + int64_t(first));
    const std::string other = dir / "other";
    std::filesystem::copy(data, other);
    const std::vector<uint16_t> tokens(200, 7);
    ShardWriter train(other, "train", 100), val(other, "val", 100);
    train.write(tokens), val.write(tokens);
    write_dataset_json(other, ranks, int64_t(vocabulary), {1, 200, 200, train.finish()}, {1, 200, 200, val.finish()});
    ASSERT_EQ(first, 7u) << ranks.substr(0, second);
    expect_refusal({"train_mot", "eval", "--checkpoint", dir / "run", "--data", other}, {other, "trained on"});
    expect_refusal({"train_mot", "generate", "--checkpoint", dir / "run", "--prompt", "a", "--tokenizer",
                    other + "/tokenizer.tiktoken"},
                   {other, "trained on"});
    EXPECT_EQ(run({"train_mot", "generate", "--checkpoint", dir / "run", "--prompt", "a", "--max-tokens", "2",
                   "--tokenizer", data + "/tokenizer.tiktoken"}),
              0)
        << said();
}

TEST_F(TrainMot, ResumeRefusesAnotherFunctionByName) {
    ASSERT_EQ(run(recipe("run", {"--steps", "2"})), 0) << said();
    auto resume = [&](std::vector<std::string> more) {
        more.insert(more.begin(), {"train_mot", "--resume", "--data", data, "--run-dir", dir / "run", "--steps", "4"});
        return more;
    };
    expect_refusal(resume({"--d-model", "32"}), {"--d-model", "32", "16"});
    expect_refusal(resume({"--lr", "0.5"}), {"--lr", "0.5"});
    expect_refusal(resume({"--optimizer", "muon"}), {"--optimizer", "muon", "adamw"});
    expect_refusal(resume({"--micro-batch", "16"}), {"--micro-batch", "16", "8"});
    expect_refusal(recipe("run", {"--steps", "2"}), {"--resume"});
    expect_refusal({"train_mot", "--resume", "--data", data, "--run-dir", dir / "empty", "--steps", "4"},
                   {"no complete checkpoint"});
    EXPECT_EQ(run(resume({"--d-model", "16", "--log-interval", "2"})), 0) << said();
}

TEST_F(TrainMot, RefusesBadInput) {
    expect_refusal(recipe("x", {"--no-such-flag"}), {"--no-such-flag"});
    expect_refusal(recipe("x", {"--heads", "0"}), {"--heads", "0"});
    expect_refusal(recipe("x", {"--heads", "3"}), {"16", "3"});
    expect_refusal(recipe("x", {"--pattern", "attention mott"}), {"character 11"});
    expect_refusal(recipe("x", {"--micro-batch", "6"}), {"6", "4"});
    expect_refusal(recipe("x", {"--vocab-size", "300"}), {"257", "300"});
    expect_refusal(recipe("x", {"--context", "4000"}), {"4001"});
    expect_refusal(recipe("x", {"--data", dir / "nothing"}), {"nothing"});
    expect_refusal(recipe("x", {"--config", dir / "no.toml"}), {"no.toml"});
    expect_refusal(recipe("x", {"--micro-batch", "16000000"}), {"needs", "available"});
    expect_refusal(recipe("x", {"--run-dir", "/proc/no/such/place"}), {"/proc/no/such/place"});
    EXPECT_FALSE(path_exists(dir / "x"));  // and nothing was made
    std::ofstream(dir / "bad.toml") << "d-model = 16\nno-such-key = 3\n";
    expect_refusal(recipe("x", {"--config", dir / "bad.toml"}), {"bad.toml:2: ", "no-such-key"});
    std::ofstream(dir / "comma.toml") << "d-model = 16\nweight-decay = 0,0005\n";
    expect_refusal(recipe("x", {"--config", dir / "comma.toml"}),
                   {"comma.toml:2: --weight-decay: \"0,0005\" is not a number"});
    expect_refusal(recipe("x", {"--config", dir / "comma.toml", "--config", dir / "comma.toml"}),
                   {"--config", "twice"});
}

TEST_F(TrainMot, DamagedCheckpointsAreRefusedByTensor) {
    ASSERT_EQ(run(recipe("run", {"--steps", "2"})), 0) << said();
    const std::string file = dir / "run" + "/step-00000002/model.safetensors";
    std::string bytes = read_file(file);
    bytes[bytes.size() - 100] ^= 1;
    std::ofstream(file, std::ios::binary) << bytes;
    expect_refusal({"train_mot", "eval", "--checkpoint", dir / "run", "--data", data}, {"model.safetensors"});
    expect_refusal({"train_mot", "--resume", "--data", data, "--run-dir", dir / "run", "--steps", "4"},
                   {"model.safetensors"});
    expect_refusal({"train_mot", "eval", "--checkpoint", dir / "nowhere", "--data", data}, {"nowhere"});
}

TEST_F(TrainMot, ADamagedNewestCheckpointFallsBackToTheOlder) {
    ASSERT_EQ(run(recipe("run", {"--steps", "4", "--save-interval", "2"})), 0) << said();
    const std::string newest = dir / "run" + "/step-00000004", file = newest + "/model.safetensors";
    std::string bytes = read_file(file);
    bytes[bytes.size() - 100] ^= 1;
    write_file_atomic(file, bytes);
    ASSERT_EQ(run({"train_mot", "--auto-resume", "--data", data, "--run-dir", dir / "run", "--steps", "6"}), 0)
        << said();
    EXPECT_NE(said().find("warning: " + file), std::string::npos) << said();
    EXPECT_NE(said().find("using step-00000002 instead"), std::string::npos) << said();
    EXPECT_EQ(log("run", "loss").size(), 6u);

    // So does a state that no run can have, with a checksum that fits.
    forge(dir / "run" + "/step-00000006/state.json", [](json& state) { state["adam_t"] = int64_t(1) << 62; });
    ASSERT_EQ(run({"train_mot", "--auto-resume", "--data", data, "--run-dir", dir / "run", "--steps", "8"}), 0)
        << said();
    EXPECT_NE(said().find("step-00000006/state.json is damaged: adam_t is 4611686018427387904"), std::string::npos)
        << said();
}

TEST_F(TrainMot, ForgedStatesAreRefusedByName) {
    ASSERT_EQ(run(recipe("run", {"--steps", "2"})), 0) << said();
    const std::string path = dir / "run" + "/step-00000002/state.json", good = read_file(path);
    const std::vector<std::string> eval = {"train_mot", "eval", "--checkpoint", dir / "run", "--data", data},
                                   resume = {"train_mot", "--resume", "--data", data, "--run-dir", dir / "run"};
    int number = 0;
    auto expect = [&](const json& change, const std::string& part) {
        write_file_atomic(path, good);
        forge(path, [&](json& state) { state.merge_patch(change); });
        expect_refusal(number++ % 2 ? eval : resume, {path, part});
    };
    const int64_t huge = int64_t(1) << 62;
    for (const char* name : {"adam_t", "skipped", "skipped_in_a_row"})
        for (const json& value : {json(-1), json(huge), json(1.5), json("2"), json()})
            expect({{name, value}}, value.is_null() ? str("has no ", name) : str(name, " is ", value.dump()));
    expect({{"step", huge / 16}}, "step is ");
    expect({{"seconds", -1}}, "seconds is -1");
    expect({{"data_position", {{"epoch", 0.5}}}}, "epoch is 0.5");
    expect({{"data_position", 3}}, "it has no epoch");
    expect({{"data", {{"shards", 3}}}}, "shards is 3");
    expect({{"model", {{"d_model", 16.5}}}}, "\"d_model\" has the wrong type: 16.5");
    expect({{"model", {{"d_model", -16}}}}, "\"d_model\" is -16");
    expect({{"model", {{"d_model", UINT64_MAX}}}}, "\"d_model\" has the wrong type");
    expect({{"train", {{"micro_batch", true}}}}, "\"micro_batch\" has the wrong type: true");
    expect({{"evaluation_missing", 1}}, "evaluation_missing is 1");
    expect({{"transition", {{"from", 5}}}}, "from is 5");
    expect({{"transition", 5}}, "it has no from");
    const json row = {0, 1, 2, 3, 4, 5, 6, 7};
    for (const json& token : {json(257), json(-1), json(huge), json(0.5), json("a")}) {
        json bad = row;
        bad[5] = token;
        expect({{"fillers", {row, bad}}}, "a token of fillers is " + token.dump());
    }
    expect({{"fillers", {row, {1, 2}}}}, "a sequence of fillers is not a list of 8 tokens");
    expect({{"fillers", {json::array()}}}, "a sequence of fillers is not a list of 8 tokens");
    expect({{"fillers", 7}}, "fillers is 7");
    write_file_atomic(path, good);
    EXPECT_EQ(run(eval), 0) << said();
}

TEST_F(TrainMot, FailedSavesAreReportedAndTheOldCheckpointStays) {
    ASSERT_EQ(run(recipe("run", {"--steps", "2"})), 0) << said();
    const Process process({program("train_mot"), "--resume", "--data", data, "--run-dir", dir / "run", "--steps", "6",
                           "--save-interval", "2"},
                          output,
                          30000);            // bytes: room for the log, not for the model
    EXPECT_EQ(process.wait(), 1) << said();  // because the last checkpoint could not be saved
    EXPECT_NE(said().find("training goes on"), std::string::npos) << said();
    EXPECT_EQ(log("run", "loss").back().at("step"), 6);
    EXPECT_EQ(read_file(dir / "run" + "/latest").substr(0, 13), "step-00000002");
    EXPECT_EQ(run({"train_mot", "--resume", "--data", data, "--run-dir", dir / "run", "--steps", "6"}), 0) << said();
    EXPECT_TRUE(path_exists(dir / "run" + "/step-00000006"));
}

TEST_F(TrainMot, InterruptedRunSavesAndEndsWith128PlusTheSignal) {
    Process process(
        [&] {
            std::vector<std::string> words = recipe("run", {"--steps", "1000000"});
            words[0] = program("train_mot");
            return words;
        }(),
        output);
    for (int i = 0; i < 6000 && (!path_exists(dir / "run" + "/log.jsonl") || log("run", "loss").empty()); i++)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    ::kill(process.id, SIGTERM);
    EXPECT_EQ(process.wait(), 143) << said();
    EXPECT_EQ(run({"train_mot", "eval", "--checkpoint", dir / "run", "--data", data, "--eval-batches", "2"}), 0)
        << said();
}

TEST_F(TrainMot, GeneratesWithEveryFillRuleAndTheSameTextForASeed) {
    ASSERT_EQ(run(recipe("run", {"--steps", "3"})), 0) << said();
    for (const char* fill : {"data", "self", "zero"}) {
        std::vector<std::string> words = {"train_mot", "generate", "--checkpoint", dir / "run", "--prompt",     "ab",
                                          "--prompt",  "x",        "--max-tokens", "4",         "--group-fill", fill,
                                          "--seed",    "5"};
        ASSERT_EQ(run(words), 0) << said();
        const std::string first = said();
        ASSERT_EQ(run(words), 0) << said();
        EXPECT_EQ(said(), first);
        EXPECT_NE(first.find("ab"), std::string::npos);
        ASSERT_EQ(run({"train_mot", "eval", "--checkpoint", dir / "run", "--data", data, "--group-fill", fill,
                       "--eval-batches", "3"}),
                  0)
            << said();
    }
    expect_refusal(
        {"train_mot", "generate", "--checkpoint", dir / "run", "--prompt", "a text of more than eight bytes"},
        {"context is 8"});
    expect_refusal({"train_mot", "generate", "--checkpoint", dir / "run", "--prompt", "a", "--top-p", "2"},
                   {"--top-p"});
}

TEST_F(TrainMot, NumbersThatGranularityWouldOverruleAreRefused) {
    const std::vector<std::string> info = {"train_mot", "info", "--pattern", "attention moe_token_choice",
                                           "--granularity", "4", "--expansion", "32"};
    ASSERT_EQ(run(info), 0) << said();
    auto with = [&](std::vector<std::string> more) {
        std::vector<std::string> words = info;
        words.insert(words.end(), more.begin(), more.end());
        return words;
    };
    // 32 and 1 are the defaults: only the command line tells that somebody asked for them
    expect_refusal(with({"--experts", "32"}), {"experts 128", "32"});
    expect_refusal(with({"--top-k", "1"}), {"top_k 4", "1"});
    EXPECT_EQ(run(with({"--experts", "128"})), 0) << said();
}

TEST_F(TrainMot, InfoNeedsNoMemory) {
    ASSERT_EQ(run({"train_mot", "info", "--config", "configs/mot_base_64E_16.toml"}), 0) << said();
    EXPECT_NE(said().find("parameters"), std::string::npos);
    ASSERT_EQ(run({"train_mot", "--dry-run", "--config", "configs/mot_medium_128E.toml"}), 0) << said();
    EXPECT_NE(said().find("1.14G"), std::string::npos) << said();
}
