// What a run of train_mot takes of the machine's memory is its plan, and little more.
#include <cmath>
#include <fstream>

#include "dev/test/train_mot_test.h"

namespace llmc::test {
namespace {

constexpr double MiB = 1 << 20;

// Bytes of the first line "key ... value unit" of a text; the program rounds to three digits.
double bytes_in(const std::string& text, const std::string& key) {
    std::istringstream lines(text);
    for (std::string line, word, unit; std::getline(lines, line);) {
        std::istringstream words(line);
        double value;
        if (!(words >> word) || word != key || !(words >> value >> unit)) continue;
        const std::map<std::string, double> units = {{"B", 1}, {"kB", 1024}, {"KiB", 1024}, {"MiB", MiB},
                                                     {"GiB", 1024 * MiB}};
        return value * units.at(unit);
    }
    return NAN;
}

class Resident : public TrainMot {
protected:
    void SetUp() override {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
        GTEST_SKIP() << "a sanitizer keeps memory of its own beside the program's";
#endif
        vocabulary = 4096;
        TrainMot::SetUp();
    }

    // The most anonymous memory (not mapped shards, not the program's code) that a run has, as seen every millisecond.
    double peak_anonymous(std::vector<std::string> words) {
        words[0] = program(words[0]);
        const Process process(words, output);
        double peak = 0;
        int status = 0;
        while (::waitpid(process.id, &status, WNOHANG) == 0) {
            std::ifstream file(str("/proc/", process.id, "/status"));
            const std::string text{std::istreambuf_iterator<char>(file), {}};
            peak = std::fmax(peak, bytes_in(text, "RssAnon:"));
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << said();
        return peak;
    }

    // Training, validation, statistics and a checkpoint.
    void expect_planned(const std::string& pattern, const std::vector<std::string>& more) {
        std::vector<std::string> words = {"train_mot", "--data", data, "--run-dir", dir / "run", "--pattern", pattern};
        for (const char* word :
             {"--d-model", "256", "--heads", "4", "--context", "128", "--experts", "16", "--group-size", "16",
              "--micro-batch", "16", "--grad-accumulation", "2", "--steps", "3", "--eval-interval", "2",
              "--statistics-interval", "2", "--warmup-steps", "1", "--threads", "2"})
            words.push_back(word);
        words.insert(words.end(), more.begin(), more.end());
        const double peak = peak_anonymous(words), plan = bytes_in(said(), "total");
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

}  // namespace
}  // namespace llmc::test
