// A small run of the program train_mot, and what it is asked to refuse.
#pragma once
#include "dev/test/program_test.h"

namespace llmc::test {

class TrainMot : public ProgramTest {
protected:
    // A MoT model small enough for hundreds of steps a second.
    std::vector<std::string> recipe(const std::string& run_dir, std::vector<std::string> more = {}) const {
        std::vector<std::string> words = {"train_mot", "--data", data, "--run-dir", dir / run_dir};
        for (const char* word : {"--pattern",
                                 "attention mot",
                                 "--d-model",
                                 "16",
                                 "--heads",
                                 "2",
                                 "--context",
                                 "8",
                                 "--group-size",
                                 "4",
                                 "--experts",
                                 "4",
                                 "--micro-batch",
                                 "8",
                                 "--grad-accumulation",
                                 "2",
                                 "--init-scale",
                                 "1",
                                 "--lr",
                                 "1e-2",
                                 "--warmup-steps",
                                 "1",
                                 "--log-interval",
                                 "1",
                                 "--statistics-interval",
                                 "5",
                                 "--eval-interval",
                                 "10",
                                 "--seed",
                                 "3"})
            words.push_back(word);
        words.insert(words.end(), more.begin(), more.end());
        return words;
    }
    // Runs, expects exit code 2 and a message that holds every one of `parts`.
    void expect_refusal(std::vector<std::string> words, std::vector<std::string> parts) {
        EXPECT_EQ(run(words), 2) << said();
        for (const std::string& part : parts)
            EXPECT_NE(said().find(part), std::string::npos) << "expected \"" << part << "\" in: " << said();
    }
    void expect_equal_checkpoints(const std::string& a, const std::string& b) {
        for (const char* file : {"/model.safetensors", "/optimizer.safetensors"}) {
            const SafetensorsFile left(dir / a + file), right(dir / b + file);
            ASSERT_EQ(left.tensors().size(), right.tensors().size());
            for (const SafetensorsEntry& t : left.tensors())
                EXPECT_EQ(left.read<float>(t.name), right.read<float>(t.name)) << t.name;
        }
    }
};

// On one thread: these models are so small that more threads only wait for each other.
class TrainMotOneThread : public TrainMot {
protected:
    int run(std::vector<std::string> words) {
        words.insert(words.end(), {"--threads", "1"});
        return TrainMot::run(words);
    }
};

}  // namespace llmc::test
