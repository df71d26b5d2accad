// What a run of train_mot takes of the machine: of its memory the plan and little more, and no thread that was not
// asked for.
#include <cmath>
#include <fstream>

#include "dev/test/sanitized.h"
#include "dev/test/train_mot_test.h"

namespace llmc::test {
namespace {

constexpr double MiB = 1 << 20;

class Resident : public TrainMot {
protected:
    void SetUp() override {
        if (sanitized) GTEST_SKIP() << "a sanitizer keeps memory of its own beside the program's";
        vocabulary = 4096;
        TrainMot::SetUp();
    }

    // The most that a run has, as seen every millisecond.
    struct Peak {
        double anonymous = 0;  // bytes: not mapped shards, not the program's code
        int threads = 0;
    };
    Peak peak_of(std::vector<std::string> words) {
        words[0] = program(words[0]);
        const Process process(words, output);
        Peak peak;
        int status = 0;
        while (::waitpid(process.id, &status, WNOHANG) == 0) {
            std::ifstream file(str("/proc/", process.id, "/status"));
            for (std::string line, key; std::getline(file, line);) {
                std::istringstream words_of_line(line);
                double value = 0;
                words_of_line >> key >> value;
                if (key == "RssAnon:") peak.anonymous = std::max(peak.anonymous, value * 1024);
                if (key == "Threads:") peak.threads = std::max(peak.threads, int(value));
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << said();
        return peak;
    }

    // Bytes of the plan's last row; the program rounds them to three digits.
    double planned() const {
        std::istringstream lines(said());
        for (std::string line, key, unit; std::getline(lines, line);) {
            std::istringstream words(line);
            double value;
            if (words >> key && key == "total" && words >> value >> unit)
                return value * (unit == "GiB" ? 1024 * MiB : unit == "MiB" ? MiB : NAN);
        }
        return NAN;
    }

    // Training, validation, statistics and a checkpoint.
    void expect_planned(const std::string& pattern, const std::vector<std::string>& more) {
        std::vector<std::string> words = {"train_mot", "--data", data, "--run-dir", dir / "run", "--pattern", pattern};
        std::istringstream sizes("--d-model 256 --heads 4 --context 128 --experts 16 --group-size 16 --micro-batch 16 "
                                 "--grad-accumulation 2 --steps 3 --warmup-steps 1 --eval-interval 2 "
                                 "--statistics-interval 2 --threads 2");
        for (std::string word; sizes >> word;) words.push_back(word);
        words.insert(words.end(), more.begin(), more.end());
        const double peak = peak_of(words).anonymous, plan = planned();
        std::printf("%s: plan %.1f MiB, anonymous %.1f MiB: %+.1f\n", pattern.c_str(), plan / MiB, peak / MiB,
                    (peak - plan) / MiB);
        EXPECT_GE(peak, 0.99 * plan) << "the plan promises what no run takes";
        EXPECT_LE(peak, 1.05 * plan + 64 * MiB);
    }
};

TEST_F(Resident, Dense) { expect_planned("4x(attention ffn)", {}); }
TEST_F(Resident, DenseRecomputed) { expect_planned("4x(attention ffn)", {"--recompute", "blocks"}); }
TEST_F(Resident, MixtureOfTokens) { expect_planned("2x(attention ffn) 2x(attention mot)", {}); }
TEST_F(Resident, MixtureOfTokensRecomputed) {
    expect_planned("2x(attention ffn) 2x(attention mot)", {"--recompute", "blocks"});
}
TEST_F(Resident, TokenChoice) { expect_planned("2x(attention ffn) 2x(attention moe_token_choice)", {}); }
TEST_F(Resident, TokenChoiceDropless) {
    expect_planned("2x(attention ffn) 2x(attention moe_token_choice)", {"--dropless", "--recompute", "blocks"});
}

// One thread that computes, and the one that sleeps until a signal comes (train/signals.h). A library that starts
// threads of its own would, for the small products of single experts, mostly wait for them.
TEST_F(Resident, OneThreadIsOne) {
    if (std::thread::hardware_concurrency() == 1) GTEST_SKIP() << "with one core nobody starts threads";
    const std::vector<std::vector<std::string>> models = {{"attention ffn"},
                                                          {"attention mot"},
                                                          {"attention moe_token_choice"},
                                                          {"attention moe_token_choice", "--dropless"},
                                                          {"attention moe_expert_choice"}};
    for (const std::vector<std::string>& model : models) {
        std::vector<std::string> more = {"--run-dir", dir / ("threads" + model.back()), "--threads", "1", "--steps",
                                         "2"};
        more.insert(more.end(), {"--pattern"});
        more.insert(more.end(), model.begin(), model.end());
        const int threads = peak_of(recipe("", more)).threads;
        if (said().find("OpenBLAS") != std::string::npos) GTEST_SKIP() << "OpenBLAS starts threads when it is loaded";
        EXPECT_EQ(threads, 1 + 1) << model.front() << " " << model.back();
    }
}

}  // namespace
}  // namespace llmc::test
