// train_mot: a model that is broken is never saved over one that works, and its run never ends as done.
#include "dev/test/train_mot_test.h"

using namespace llmc;
using namespace llmc::test;

namespace {

class TrainHealth : public TrainMotOneThread {
protected:
    // Steps of the checkpoints in a run directory.
    std::vector<int64_t> checkpoints(const std::string& run_dir) const {
        std::vector<int64_t> steps;
        for (const auto& entry : std::filesystem::directory_iterator(dir / run_dir))
            if (const std::string name = entry.path().filename(); name.starts_with("step-"))
                steps.push_back(std::stoll(name.substr(5)));
        std::sort(steps.begin(), steps.end());
        return steps;
    }
};

}  // namespace

// Weight decay of a thousand times a parameter: losses are infinite before parameters are.
TEST_F(TrainHealth, HealthyCheckpointsStayWhileStepsAreSkipped) {
    EXPECT_EQ(run(recipe("run", {"--lr", "1", "--weight-decay", "1000", "--warmup-steps", "0", "--steps", "40",
                                 "--max-skipped", "100", "--save-interval", "1", "--keep", "2"})),
              1)
        << said();
    int64_t last_good = 0;
    for (const json& line : log("run", "loss"))
        if (line.at("skipped") == 0) last_good = line.at("step");
    ASSERT_GT(last_good, 1);
    ASSERT_LT(last_good, 40);
    EXPECT_EQ(checkpoints("run"), (std::vector{last_good - 1, last_good}));
    EXPECT_NE(said().find(str("no checkpoint of step ", last_good + 1)), std::string::npos) << said();
    EXPECT_NE(said().find(str("the newest checkpoint is that of step ", last_good)), std::string::npos) << said();
    EXPECT_EQ(said().find("done:"), std::string::npos) << said();
}

// Tokens that no batch has have a gradient of 0: 0 / (sqrt(0) + 0).
TEST_F(TrainHealth, ABrokenUpdateEndsTheRunUnsaved) {
    for (const char* optimizer : {"adamw", "muon"})
        for (const char* precision : {"fp32", "bf16-mixed", "bf16"}) {
            const std::string name = str(optimizer, "-", precision);
            EXPECT_EQ(run(recipe(name, {"--optimizer", optimizer, "--precision", precision, "--adam-eps", "0",
                                        "--steps", "1", "--save-interval", "1"})),
                      1)
                << said();
            EXPECT_NE(said().find("step 1 made parameters infinite or NaN"), std::string::npos) << said();
            EXPECT_NE(said().find("there is no checkpoint"), std::string::npos) << said();
            EXPECT_TRUE(checkpoints(name).empty());
        }
}
