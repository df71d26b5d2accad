// What is printed arrives, or the program says that it did not.
#include <iostream>

#include "dev/test/train_mot_test.h"
#include "llmc/base/standard_output.h"

namespace llmc::test {
namespace {

class StandardOutput : public TrainMot {
protected:
    // Runs with this redirection, such as "> /dev/full". What went to stderr, or else to stdout, is said().
    int redirected(const std::string& where, std::vector<std::string> words) {
        words[0] = program(words[0]);
        words.insert(words.begin(), {"/bin/sh", "-c", "exec \"$@\" " + where, "sh"});
        return Process(words, output).wait();
    }
    void expect_one_sentence() {
        const std::string text = said();
        EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
        EXPECT_NE(text.find("standard output"), std::string::npos) << text;
    }
    std::vector<std::string> small_gpt(const std::vector<std::string>& more) const {
        std::vector<std::string> words = {"train_gpt", "--data", data, "--steps", "1", "--warmup-steps", "0",
                                          "--layers", "1", "--d-model", "16", "--heads", "2", "--context", "8"};
        words.insert(words.end(), more.begin(), more.end());
        return words;
    }
    std::vector<std::vector<std::string>> printers() {
        const std::string run_dir = dir / "run";
        return {{"train_mot", "--help"},
                {"train_mot", "plan", "--help"},
                {"train_mot", "--version"},
                {"train_gpt", "--help"},
                {"train_gpt", "--version"},
                {"train_mot", "info"},
                {"train_mot", "--dry-run"},
                {"train_mot", "plan", "--gpus", "1"},
                {"train_mot", "eval", "--checkpoint", run_dir, "--data", data, "--eval-batches", "1"},
                {"train_mot", "generate", "--checkpoint", run_dir, "--prompt", "a", "--max-tokens", "2"},
                small_gpt({})};
    }
};

TEST_F(StandardOutput, ResultsThatDoNotArriveAreAFailure) {
    ASSERT_EQ(run(recipe("run", {"--steps", "1"})), 0) << said();
    for (const std::vector<std::string>& words : printers()) {
        SCOPED_TRACE(words[0] + " " + words[1]);
        EXPECT_EQ(redirected("> /dev/full", words), 1);
        expect_one_sentence();
        EXPECT_EQ(redirected(">&-", words), 1);
        expect_one_sentence();
        ASSERT_EQ(redirected("", words), 0) << said();
    }
}

TEST_F(StandardOutput, AnErrorIsSaidAloneWhateverBecameOfTheRest) {
    EXPECT_EQ(redirected("> /dev/full", {"train_mot", "info", "--heads", "7"}), 2);
    const std::string text = said();
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
    EXPECT_EQ(text.find("standard output"), std::string::npos) << text;
}

// A reader that wants no more: the program ends in silence, or with a sentence where SIGPIPE is ignored.
TEST_F(StandardOutput, AClosedPipeIsNoNoise) {
    for (const char* trap : {"", "trap '' PIPE; "}) {
        const std::string script = str(trap, "{ sleep 0.3; exec \"$@\"; } | true");
        EXPECT_EQ(Process({"/bin/sh", "-c", script, "sh", program("train_mot"), "info"}, output).wait(), 0);
        if (*trap) expect_one_sentence();
        else EXPECT_EQ(said(), "");
    }
}

// Its results are files.
TEST_F(StandardOutput, ATrainingOnlyWarns) {
    EXPECT_EQ(redirected("> /dev/full", recipe("run", {"--steps", "2"})), 0);
    expect_one_sentence();
    EXPECT_EQ(redirected("> /dev/full", small_gpt({"--run-dir", dir / "gpt"})), 0);
    expect_one_sentence();
}

TEST_F(StandardOutput, PrepareSaysThatItsSummaryIsLost) {
    if (!path_exists(program("prepare"))) GTEST_SKIP() << "the program " << program("prepare") << " is not built";
    write_file_atomic(dir / "a.txt", "some text\n");
    const std::vector<std::string> words = {"prepare", "--out", dir / "made", "--train-bpe", "257", dir / "a.txt"};
    EXPECT_EQ(redirected("> /dev/full", words), 1);
    EXPECT_NE(said().find("standard output"), std::string::npos) << said();
    for (const std::vector<std::string>& more :
         {std::vector<std::string>{"prepare", "--help"}, {"prepare", "--verify", dir / "made"}}) {
        EXPECT_EQ(redirected("> /dev/full", more), 1) << more[1];
        expect_one_sentence();
        EXPECT_EQ(redirected("", more), 0) << said();
    }
}

}  // namespace

TEST(FinishOutput, KeepsTheCodeAndTurnsLossIntoOne) {
    const auto ending = [](const char* file, int code, bool forgive = false) {
        return in_child([=] {
            if (!std::freopen(file, "w", stdout)) _exit(98);
            std::printf("a result\n");
            if (forgive) forgive_lost_output();
            _exit(finish_output(code));
        });
    };
    EXPECT_EQ(ending("/dev/null", 0), 0);
    EXPECT_EQ(ending("/dev/null", 2), 2);
    EXPECT_EQ(ending("/dev/full", 0), 1);
    EXPECT_EQ(ending("/dev/full", 2), 2);
    EXPECT_EQ(ending("/dev/full", 0, true), 0);
}

// Also what was lost long before the end, and what std::cout has written.
TEST(FinishOutput, KnowsOfEarlierLoss) {
    EXPECT_EQ(in_child([] {
        if (!std::freopen("/dev/full", "w", stdout)) _exit(98);
        std::setvbuf(stdout, nullptr, _IONBF, 0);
        std::cout << "a result";
        _exit(finish_output(0));
    }), 1);
}

TEST(HoldStandardStreams, AFileDoesNotTakeTheirNumbers) {
    const TempDir dir;
    EXPECT_EQ(in_child([&] {
        for (int fd : {0, 1, 2}) ::close(fd);
        hold_standard_streams();
        AtomicFile file(dir / "file");
        std::printf("a result\n");
        if (finish_output(0) != 1) _exit(2);
        file.commit();
    }), 0);
    EXPECT_EQ(read_file(dir / "file"), "");
}

}  // namespace llmc::test
