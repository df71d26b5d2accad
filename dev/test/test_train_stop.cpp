// What ends a run of train_mot from outside.
#include "dev/test/train_mot_test.h"
#include "dev/test/train_ranks.h"

namespace llmc::test {
namespace {

using namespace std::chrono_literals;

size_t count(const std::string& text, const std::string& part) {
    size_t n = 0;
    for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at++) n++;
    return n;
}

// Waits until the log holds more than `before` records with this key.
bool has_logged(const std::string& run_dir, const std::string& key, size_t before = 0) {
    const std::string path = run_dir + "/log.jsonl";
    for (int i = 0; i < 12000; i++, std::this_thread::sleep_for(5ms))
        if (path_exists(path) && count(read_file(path), "\"" + key + "\"") > before) return true;
    return false;
}

bool is_running(const Process& process) {
    siginfo_t info{};
    return ::waitid(P_PID, id_t(process.id), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0;
}

// Validation data for many seconds.
void make_long_validation(const std::string& data) {
    std::vector<uint16_t> tokens(500000);
    for (size_t i = 0; i < tokens.size(); i++) tokens[i] = uint16_t(i * i % 257);
    ShardWriter train(data, "train", 3000), val(data, "val", 600000);
    train.write(std::span(tokens).first(5000));
    val.write(tokens);
    write_dataset_json(data, BpeTrainer().train(257), 257, {1, 5000, 5000, train.finish()},
                       {1, 500000, 500000, val.finish()});
}
const std::vector<std::string> long_validation = {"--eval-interval", "1", "--eval-batches", "1000000"};

class TrainStop : public TrainMotOneThread {
protected:
    std::vector<std::string> command(const std::string& run_dir, const std::vector<std::string>& more) const {
        std::vector<std::string> words = recipe(run_dir, with({"--threads", "1"}, more));
        words[0] = program("train_mot");
        return words;
    }
};

// oneDNN's AVX matrix products with inner dimensions of 256 and more move the stack pointer into a buffer of theirs: a
// handler on that stack destroys the heap. Each round sends hundreds of signals until the run has saved, and the next
// round goes on from its checkpoint.
TEST_F(TrainStop, ManySignalsInMatrixProductsDestroyNothing) {
    int signals = 0;
    for (int round = 0; round < 6; round++) {
        const size_t before = round ? log("run", "loss").size() : 0;
        const Process process(
            command("run", {"--auto-resume", "--steps", "1000000", "--pattern", "attention ffn", "--d-model", "256",
                            "--d-ff", "1024", "--context", "64", "--grad-accumulation", "4", "--eval-interval", "0"}),
            output);
        ASSERT_TRUE(has_logged(dir / "run", "loss", before)) << said();
        std::this_thread::sleep_for(round * 7ms);
        for (; is_running(process); std::this_thread::sleep_for(500us), signals++) ::kill(process.id, SIGTERM);
        ASSERT_EQ(process.wait(), 143) << "round " << round << ": " << said();
        EXPECT_EQ(count(said(), "interrupted after step"), 1u) << said();
    }
    EXPECT_GT(signals, 100);
    EXPECT_EQ(run({"train_mot", "eval", "--checkpoint", dir / "run", "--data", data, "--eval-batches", "2"}), 0)
        << said();
}

TEST_F(TrainStop, EverySignalThatAsksToStopSaves) {
    for (const auto& [signal, code] : {std::pair(SIGHUP, 129), {SIGUSR1, 143}, {SIGUSR2, 143}, {SIGXCPU, 143}}) {
        const std::string run_dir = str("run", signal);
        const Process process(command(run_dir, {"--steps", "1000000"}), output);
        ASSERT_TRUE(has_logged(dir / run_dir, "loss")) << said();
        ::kill(process.id, signal);
        EXPECT_EQ(process.wait(), code) << strsignal(signal) << ": " << said();
        EXPECT_TRUE(path_exists(dir / run_dir + "/latest"));
    }
}

TEST_F(TrainStop, WhatNohupIgnoresStaysIgnored) {
    const std::vector<std::string> nohup = {"/bin/sh", "-c", "trap '' HUP; exec \"$@\"", "sh"};
    const Process process(with(nohup, command("run", {"--steps", "1000000"})), output);
    ASSERT_TRUE(has_logged(dir / "run", "loss")) << said();
    ::kill(process.id, SIGHUP);
    ASSERT_TRUE(has_logged(dir / "run", "loss", log("run", "loss").size() + 10)) << said();
    ::kill(process.id, SIGTERM);
    EXPECT_EQ(process.wait(), 143) << said();
}

TEST_F(TrainStop, AClosedPipeDoesNotEndTheRun) {
    const std::string to_nobody = "{ \"$@\"; echo $? > \"$0\"; } | true";
    Process(with({"/bin/sh", "-c", to_nobody, dir / "code"}, command("run", {"--steps", "300"})), output).wait();
    EXPECT_EQ(read_file(dir / "code"), "0\n") << said();
    EXPECT_TRUE(path_exists(dir / "run" + "/step-00000300"));
}

// The first validation, and the last, after which there is no step to come.
TEST_F(TrainStop, AValidationIsAbandonedAndMadeUpFor) {
    make_long_validation(data);
    for (int steps : {2, 1}) {
        const std::string name = str("run", steps), run_dir = dir / name;
        const Process process(command(name, with({"--steps", str(steps)}, long_validation)), output);
        ASSERT_TRUE(has_logged(run_dir, "loss")) << said();
        std::this_thread::sleep_for(50ms);
        ::kill(process.id, SIGTERM);
        EXPECT_EQ(process.wait(), 143) << said();
        EXPECT_EQ(log(name, "loss").size(), 1u);
        EXPECT_EQ(log(name, "val_loss").size(), 0u);
        for (int again : {1, 2}) {
            ASSERT_EQ(run({"train_mot", "--resume", "--data", data, "--run-dir", run_dir, "--eval-batches", "2"}), 0)
                << again << said();
            EXPECT_EQ(log(name, "val_loss").size(), size_t(steps)) << said();
        }
        EXPECT_EQ(log(name, "val_loss").front().at("step"), 1);
    }
}

class RanksStop : public TrainRanks {};

// One rank alone hears the signal, while each needs the others for every micro-batch of the validation.
TEST_F(RanksStop, AgreeOnTheMomentWithinAValidation) {
    make_long_validation(data);
    const Process process(recipe(2, "run", with({"--pattern", "attention ffn", "--shard", "parameters"},
                                                long_validation)), output);
    ASSERT_TRUE(has_logged(dir / "run", "loss")) << said();
    std::this_thread::sleep_for(50ms);
    for (pid_t id : ranks_of("run"))
        if (read_file(str("/proc/", id, "/environ")).find("OMPI_COMM_WORLD_RANK=1") != std::string::npos)
            ::kill(id, SIGTERM);
    EXPECT_EQ(process.wait(), 143) << said();
    EXPECT_EQ(log("run", "val_loss").size(), 0u);
    EXPECT_EQ(count(said(), "stopping after this step"), 1u) << said();
    EXPECT_EQ(count(said(), "interrupted after step 1"), 1u) << said();
    ASSERT_EQ(start(2, "run", {"--resume", "--eval-batches", "2", "--eval-interval", "1", "--steps", "2"}), 0)
        << said();
    EXPECT_EQ(log("run", "val_loss").size(), 2u);
}

}  // namespace
}  // namespace llmc::test
