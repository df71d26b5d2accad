// Runs of train_mot in several processes, and the comparison of their logs.
#pragma once
#include <cmath>

#include "dev/test/program_test.h"

namespace llmc::test {

inline std::string source_directory() {  // of build/cpu/test/test_launch, say
    return std::filesystem::canonical("/proc/self/exe").parent_path().parent_path().parent_path().parent_path();
}

class TrainRanks : public ProgramTest {
protected:
    const std::string mpirun = path_of("mpirun");

    void SetUp() override {
        if (mpirun.empty()) GTEST_SKIP() << "no mpirun: install openmpi-bin";
        ProgramTest::SetUp();
    }

    static bool alive(pid_t id) {  // a zombie is not
        try {
            const std::string state = read_file(str("/proc/", id, "/stat"));
            return state.substr(state.rfind(')') + 2, 1) != "Z";
        } catch (const std::exception&) {
            return false;
        }
    }

    // Whether it appears within a minute.
    static bool wait_for(const std::string& file) {
        for (int i = 0; i < 600 && !path_exists(file); i++) std::this_thread::sleep_for(std::chrono::milliseconds(100));
        return path_exists(file);
    }
    // The processes of train_mot, not their launcher, that have this run's directory on their command line.
    std::vector<pid_t> ranks_of(const std::string& run_dir) const {
        std::vector<pid_t> ranks;
        for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
            const std::string name = entry.path().filename();
            if (name.find_first_not_of("0123456789") != std::string::npos) continue;
            std::error_code gone;
            const std::string program_file = std::filesystem::read_symlink(entry.path() / "exe", gone);
            if (gone || program_file != std::filesystem::canonical(program("train_mot"))) continue;
            std::string line;
            try {
                line = read_file(entry.path() / "cmdline");
            } catch (const std::exception&) {
            }
            if (line.find(dir / run_dir) != std::string::npos) ranks.push_back(std::stoi(name));
        }
        return ranks;
    }

    // Twelve micro-batches a step: they can be dealt to 1, 2, 3 and 4 processes.
    std::vector<std::string> recipe(int ranks, const std::string& run_dir, const std::vector<std::string>& more,
                                    const std::vector<std::string>& more_of_mpirun = {}) const {
        std::vector<std::string> words = {mpirun, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none",
                                          "--timeout", "120", "-np", std::to_string(ranks)};
        words.insert(words.end(), more_of_mpirun.begin(), more_of_mpirun.end());
        words.insert(words.end(), {program("train_mot"), "--data", data, "--run-dir", dir / run_dir});
        std::istringstream flags("--threads 1 --d-model 16 --heads 2 --context 8 --experts 6 --expert-size 10 "
                                 "--group-size 4 --expert-choice-fraction 0.25 --micro-batch 4 --grad-accumulation 12 "
                                 "--init-scale 1 --lr 1e-2 --warmup-steps 2 --log-interval 1 --statistics-interval 3 "
                                 "--eval-interval 5 --eval-batches 7");
        for (std::string word; flags >> word;) words.push_back(word);
        words.insert(words.end(), more.begin(), more.end());
        return words;
    }
    int start(int ranks, const std::string& run_dir, const std::vector<std::string>& more) const {
        ::setenv("OMP_WAIT_POLICY", "passive", 0);  // there are more processes than CPUs
        return Process(recipe(ranks, run_dir, more), output).wait();
    }

    // Every number of the logs that belongs to the model. tolerance 0: the same bits.
    void expect_equal_logs(const std::string& got_dir, const std::string& want_dir, double tolerance) {
        const std::vector<json> want = log(want_dir, "step"), got = log(got_dir, "step");
        ASSERT_EQ(got.size(), want.size());
        int compared = 0;
        for (size_t i = 0; i < want.size(); i++)
            for (const auto& [key, value] : want[i].items()) {
                const bool speed = key.find("seconds") != key.npos || key.find("per_second") != key.npos ||
                                   key.find("gflops") != key.npos;
                if (speed) continue;
                EXPECT_FALSE(value.is_null()) << key << " was not finite";
                if (!value.is_number_float()) continue;
                ASSERT_TRUE(got[i].contains(key)) << key;
                const double a = got[i].at(key), b = value;
                EXPECT_LE(std::abs(a - b), tolerance * std::max(1.0, std::abs(b)))
                    << got_dir << ", record " << i << ", " << key << ": " << a << " instead of " << b;
                compared++;
            }
        EXPECT_GT(compared, 20);
    }

    // Losses of training, or of validation (key "val_loss"), alone.
    void expect_equal_losses(const std::string& got_dir, const std::string& want_dir, double tolerance,
                             const char* key = "loss") {
        const std::vector<json> want = log(want_dir, key), got = log(got_dir, key);
        ASSERT_EQ(got.size(), want.size());
        EXPECT_GT(want.size(), 1u);
        for (size_t i = 0; i < want.size(); i++)
            EXPECT_NEAR(got[i].at(key).get<double>(), want[i].at(key).get<double>(), tolerance) << key << " " << i;
    }
};

inline const std::vector<std::string> every_kind = {
    "--pattern", "attention ffn attention mot attention moe_token_choice attention moe_expert_choice"};
inline std::vector<std::string> with(std::vector<std::string> flags, const std::vector<std::string>& more) {
    flags.insert(flags.end(), more.begin(), more.end());
    return flags;
}

}  // namespace llmc::test
