// The program train_gpt: on the same dense model and data it computes what train_mot computes, its checkpoints are
// train_mot's, and it ends with the promised exit codes. Runs the programs that were built beside this test.
#include "dev/test/program_test.h"

using namespace llmc;
using namespace llmc::test;

namespace {

class TrainGpt : public ProgramTest {
  protected:
    // What both programs are told alike.
    std::vector<std::string> with_recipe(std::vector<std::string> words) const {
        for (const char* word :
             {"--d-model",      "24",   "--heads",         "3",  "--context",      "16", "--init-scale", "0.3",
              "--lr",           "1e-2", "--steps",         "12", "--warmup-steps", "4",  "--seed",       "7",
              "--log-interval", "1",    "--eval-interval", "6",  "--eval-batches", "3"})
            words.push_back(word);
        words.insert(words.end(), {"--data", data});
        return words;
    }
};

}  // namespace

TEST_F(TrainGpt, ComputesWhatTrainMotComputes) {
    ASSERT_EQ(run(with_recipe({"train_gpt", "--run-dir", dir / "gpt", "--layers", "2", "--batch", "4"})), 0) << said();
    ASSERT_EQ(run(with_recipe(
                  {"train_mot", "--run-dir", dir / "mot", "--pattern", "2x(attention ffn)", "--micro-batch", "4"})),
              0)
        << said();

    const std::vector<json> gpt = log("gpt", "loss"), mot = log("mot", "loss");
    ASSERT_EQ(gpt.size(), 12u);
    ASSERT_EQ(mot.size(), 12u);
    for (size_t i = 0; i < gpt.size(); i++) {
        // The same ops on the same bits; only the mean over the tokens is formed differently, in double.
        EXPECT_NEAR(gpt[i].at("loss").get<double>(), mot[i].at("loss").get<double>(), 1e-12) << "step " << i + 1;
        EXPECT_EQ(gpt[i].at("grad_norm"), mot[i].at("grad_norm")) << "step " << i + 1;
        EXPECT_EQ(gpt[i].at("lr"), mot[i].at("lr")) << "step " << i + 1;
    }
    EXPECT_LT(gpt.back().at("loss").get<double>(), gpt.front().at("loss").get<double>());

    const std::vector<json> gpt_val = log("gpt", "val_loss"), mot_val = log("mot", "val_loss");
    ASSERT_EQ(gpt_val.size(), 2u);
    ASSERT_EQ(mot_val.size(), 2u);
    for (size_t i = 0; i < 2; i++)
        EXPECT_NEAR(gpt_val[i].at("val_loss").get<double>(), mot_val[i].at("val_loss").get<double>(), 1e-12);

    // Weights and Adam's moments after the last step: the same names, shapes and bits.
    for (const char* file : {"/step-00000012/model.safetensors", "/step-00000012/optimizer.safetensors"}) {
        const SafetensorsFile a(dir / "gpt" + file), b(dir / "mot" + file);
        ASSERT_EQ(a.tensors().size(), b.tensors().size());
        for (const SafetensorsEntry& tensor : a.tensors())
            EXPECT_EQ(a.read<float>(tensor.name), b.read<float>(tensor.name)) << tensor.name;
    }
}

TEST_F(TrainGpt, TrainMotGoesOnFromItsCheckpoint) {
    ASSERT_EQ(run(with_recipe({"train_gpt", "--run-dir", dir / "gpt", "--layers", "2", "--batch", "4"})), 0) << said();
    ASSERT_EQ(run({"train_mot", "eval", "--checkpoint", dir / "gpt", "--data", data, "--eval-batches", "3"}), 0)
        << said();
    EXPECT_EQ(run({"train_mot", "--resume", "--run-dir", dir / "gpt", "--data", data, "--steps", "14"}), 0) << said();
    EXPECT_EQ(log("gpt", "loss").back().at("step"), 14);
}

TEST_F(TrainGpt, RefusesBadInputWithExitCode2) {
    EXPECT_EQ(run({"train_gpt", "--data", data, "--no-such-flag"}), 2) << said();
    EXPECT_EQ(run({"train_gpt", "--data", data, "--layers", "0"}), 2) << said();
    EXPECT_EQ(run({"train_gpt"}), 2) << said();
    EXPECT_EQ(run({"train_gpt", "--data", dir / "nothing"}), 2) << said();
    EXPECT_EQ(run({"train_gpt", "--data", data, "--d-model", "30", "--heads", "4"}), 2) << said();
    EXPECT_NE(said().find("30"), std::string::npos) << said();
    EXPECT_EQ(run({"train_gpt", "--data", data, "--context", "5000"}), 2) << said();
    EXPECT_EQ(run({"train_gpt", "--data", data, "--vocab-size", "300"}), 2) << said();
    EXPECT_EQ(run({"train_gpt", "--data", data, "--batch", "16000000"}), 2) << said();  // more memory than there is
}

TEST_F(TrainGpt, SavesAndEndsWith128PlusTheSignal) {
    for (int signal : {SIGINT, SIGTERM}) {
        const std::string run_dir = dir / str("run", signal);
        Process process({program("train_gpt"), "--data", data, "--run-dir", run_dir, "--steps", "1000000", "--d-model",
                         "16", "--heads", "2", "--context", "8", "--layers", "1", "--batch", "2"},
                        output);
        const auto start = std::chrono::steady_clock::now();
        while (!path_exists(run_dir + "/log.jsonl") ||
               read_file(run_dir + "/log.jsonl").find("grad_norm") == std::string::npos) {
            if (std::chrono::steady_clock::now() - start > std::chrono::seconds(60)) break;
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        ::kill(process.id, signal);
        EXPECT_EQ(process.wait(), 128 + signal) << said();
        EXPECT_TRUE(path_exists(run_dir + "/latest"));
    }
}
