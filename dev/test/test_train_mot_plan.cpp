// The program `train_mot plan`: what it prints and what it refuses.
#include "dev/test/program_test.h"

namespace llmc::test {
namespace {

class PlanCommand : public ProgramTest {
protected:
    int plan(const std::string& flags) {
        std::vector<std::string> words = {"train_mot", "plan", "--config", "configs/mot_medium_32E.toml"};
        std::istringstream more(flags);
        for (std::string word; more >> word;) words.push_back(word);
        return run(words);
    }
    void expect_refusal(const std::string& flags, const std::string& part) {
        EXPECT_EQ(plan(flags), 2) << said();
        EXPECT_NE(said().find(part), std::string::npos) << "expected \"" << part << "\" in: " << said();
    }
};

TEST_F(PlanCommand, PrintsATableAndSaysWhatToUse) {
    ASSERT_EQ(plan("--weak --gpus 1,8,64 --precision bf16-mixed --exchange"), 0) << said();
    for (const char* part : {"     1  none", "     8  optimizer", "    64  parameters", "64 GPUs: --shard ", "fastest",
                             "MoT, groups of 32", "dropless, top 1, imbalance 1.2", "an estimate"})
        EXPECT_NE(said().find(part), std::string::npos) << part << " in: " << said();
    ASSERT_EQ(plan("--weak --gpus 8 --memory-gb 1"), 0) << said();
    EXPECT_NE(said().find("8 GPUs: nothing fits"), std::string::npos) << said();
}

TEST_F(PlanCommand, RefusesBadInput) {
    expect_refusal("--gpus 8", "1 micro-batches");  // of all GPUs
    expect_refusal("--gpus 0", "--gpus");
    expect_refusal("--gpu h101", "h101");
    expect_refusal("--net fast", "--net fast");
    expect_refusal("--gpu cpu", "--peak-tflops");
    expect_refusal("--gpu cpu --peak-tflops 1 --bandwidth-gbs 10", "--memory-gb");
    expect_refusal("--link-share 0", "--link-share");
    expect_refusal("--net-latency-us nan", "--net-latency-us");
    expect_refusal("--precision fp64", "fp64");
    expect_refusal("--ranks 8", "--gpus 8");
    expect_refusal("--measured nothing.json", "nothing.json");
    expect_refusal("--weak --gpus 8 --expert-parallel 3", "3");
    expect_refusal("--pattern attention --exchange", "--exchange");
}

}  // namespace
}  // namespace llmc::test
