// The program for any x86-64 (build/cpu-portable/train_mot, made before by `make ARCH=portable`) trains alike with the
// kernels for each kind of processor: those that this one can run, and those of processors that QEMU emulates, which
// faults on instructions they lack.
#include <cmath>
#include <limits>

#include "dev/test/program_test.h"

using namespace llmc;
using namespace llmc::test;

namespace {

class Portable : public ProgramTest {
protected:
    const std::string portable = program("../cpu-portable/train_mot"), emulator = path_of("qemu-x86_64");
    const std::vector<std::string> paths = {"x86-64", "x86-64-v3", "x86-64-v4"};

    void SetUp() override {
        if (!path_exists(portable)) GTEST_SKIP() << "run `make ARCH=portable train_mot` first";
        ProgramTest::SetUp();
    }
    void TearDown() override { unsetenv("MOT_KERNELS"); }

    int run_path(const std::string& path, std::vector<std::string> words) {
        setenv("MOT_KERNELS", path.c_str(), 1);
        words.insert(words.begin(), portable);
        return Process(words, output).wait();
    }
    int run_emulated(const std::string& processor, std::vector<std::string> words) {
        unsetenv("MOT_KERNELS");
        words.insert(words.begin(), {emulator, "-cpu", processor, portable});
        return Process(words, output).wait();
    }
    std::vector<std::string> recipe(const std::string& run_dir) const {
        std::vector<std::string> words = {"--data",      data,        "--run-dir",
                                          dir / run_dir, "--pattern", "attention ffn attention mot moe_token_choice"};
        std::istringstream numbers(
            "--d-model 64 --heads 2 --context 32 --group-size 4 --experts 8 --expert-size 32 --micro-batch 8 "
            "--init-scale 1 --lr 1e-3 --warmup-steps 2 --log-interval 1 --steps 10 --threads 1");
        for (std::string word; numbers >> word;) words.push_back(word);
        return words;
    }
    // Losses and gradient norms within one rounding of a float for each step so far, as much as a step's own arithmetic
    // may add; `roundings` 0: the same bits.
    void expect_equal_training(const std::string& got_dir, const std::string& want_dir, double roundings) {
        const std::vector<json> got = log(got_dir, "loss"), want = log(want_dir, "loss");
        ASSERT_EQ(want.size(), 10u);
        ASSERT_EQ(got.size(), want.size());
        for (size_t i = 0; i < want.size(); i++)
            for (const char* key : {"loss", "grad_norm"}) {
                const double a = got[i].at(key), b = want[i].at(key);
                EXPECT_LE(std::abs(a - b), roundings * double(i + 1) * std::numeric_limits<float>::epsilon() * b)
                    << got_dir << ", step " << i + 1 << ", " << key << ": " << a << " instead of " << b;
            }
    }
};

}  // namespace

TEST_F(Portable, EveryPathOfThisProcessorTrainsAlike) {
    for (const std::string& path : paths) {
        if (run_path(path, recipe(path)) == 2) {
            EXPECT_NE(said().find("more than this processor can"), std::string::npos) << said();
            continue;
        }
        ASSERT_EQ(run_path(path, recipe(path + " again")), 0) << said();
        expect_equal_training(path + " again", path, 0);
        expect_equal_training(path, paths[0], 1);
    }
}

TEST_F(Portable, SaysWhichKernelsItTakes) {
    ASSERT_EQ(run_path("x86-64", {"--version"}), 0) << said();
    EXPECT_NE(said().find("SSE2"), std::string::npos) << said();
    EXPECT_EQ(run_path("pentium", {"--version"}), 2);
    EXPECT_NE(said().find("MOT_KERNELS=pentium is not known"), std::string::npos) << said();
}

TEST_F(Portable, OlderProcessorsTrainAlike) {
    if (emulator.empty()) GTEST_SKIP() << "qemu-x86_64 is not installed (qemu-user)";
    ASSERT_EQ(run_path("x86-64", recipe("here")), 0) << said();
    for (const auto& [processor, kernels] : {std::pair{"Nehalem", "SSE2"}, {"Haswell", "AVX2"}}) {
        ASSERT_EQ(run_emulated(processor, recipe(processor)), 0) << said();
        EXPECT_NE(said().find(kernels), std::string::npos) << said();
        expect_equal_training(processor, "here", 1);
    }
}
