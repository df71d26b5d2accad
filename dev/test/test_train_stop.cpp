// What ends a run of train_mot from outside.
#include "dev/test/train_mot_test.h"

namespace llmc::test {
namespace {

using namespace std::chrono_literals;

class TrainStop : public TrainMot {
protected:
    Process start(std::vector<std::string> words) const {
        words[0] = program("train_mot");
        words.insert(words.end(), {"--threads", "1"});
        return Process(words, output);
    }
    // Waits until the run has logged more than `before` records with this key.
    bool has_logged(const std::string& run_dir, const std::string& key, size_t before = 0) const {
        for (int i = 0; i < 12000; i++, std::this_thread::sleep_for(5ms)) {
            const std::string path = dir / run_dir + "/log.jsonl";
            if (path_exists(path) && count(read_file(path), "\"" + key + "\"") > before) return true;
        }
        return false;
    }
    static size_t count(const std::string& text, const std::string& part) {
        size_t n = 0;
        for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at++) n++;
        return n;
    }
    static bool is_running(const Process& process) {
        siginfo_t info{};
        return ::waitid(P_PID, id_t(process.id), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0;
    }
};

// oneDNN's AVX matrix products with inner dimensions of 256 and more move the stack pointer into a buffer of theirs: a
// handler on that stack destroys the heap. Each round sends hundreds of signals until the run has saved, and the next
// round goes on from its checkpoint.
TEST_F(TrainStop, ManySignalsInMatrixProductsDestroyNothing) {
    int signals = 0;
    for (int round = 0; round < 8; round++) {
        const size_t before = round ? log("run", "loss").size() : 0;
        const Process process =
            start(recipe("run", {"--auto-resume", "--steps", "1000000", "--pattern", "attention ffn", "--d-model",
                                 "256", "--d-ff", "1024", "--context", "64", "--grad-accumulation", "4",
                                 "--eval-interval", "0"}));
        ASSERT_TRUE(has_logged("run", "loss", before)) << said();
        std::this_thread::sleep_for(round * 7ms);
        for (; is_running(process); std::this_thread::sleep_for(500us), signals++) ::kill(process.id, SIGTERM);
        ASSERT_EQ(process.wait(), 143) << "round " << round << ": " << said();
        EXPECT_EQ(count(said(), "interrupted after step"), 1u) << said();
    }
    EXPECT_GT(signals, 100);
    EXPECT_EQ(run({"train_mot", "eval", "--checkpoint", dir / "run", "--data", data, "--eval-batches", "2"}), 0)
        << said();
}

}  // namespace
}  // namespace llmc::test
