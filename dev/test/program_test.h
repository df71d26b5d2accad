// Runs the programs that were built beside a test, on a small data set of its own.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "dev/test/child.h"
#include "dev/test/temp_dir.h"
#include "llmc/base/errors.h"
#include "llmc/base/files.h"
#include "llmc/base/rng.h"
#include "llmc/base/safetensors.h"
#include "llmc/data/bpe_train.h"
#include "llmc/data/shards.h"

namespace llmc::test {

using nlohmann::json;

// build/cpu/train_gpt for build/cpu/test/test_train_gpt.
inline std::string program(const std::string& name) {
    return std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / name;
}

// Where the shell would find this program; "" if nowhere.
inline std::string path_of(const std::string& program) {
    std::istringstream path(std::getenv("PATH") ? std::getenv("PATH") : "");
    for (std::string directory; std::getline(path, directory, ':');)
        if (path_exists(directory + "/" + program)) return directory + "/" + program;
    return "";
}

struct Process {
    pid_t id;
    // file_limit: largest file the process may write, in bytes, as on a full disk; 0: none.
    Process(std::vector<std::string> words, const std::string& output, rlim_t file_limit = 0) {
        id = ::fork();
        if (id != 0) return;
        const rlimit limit{file_limit, file_limit};
        if (file_limit) ::setrlimit(RLIMIT_FSIZE, &limit);
        int fd = ::open(output.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
        ::dup2(fd, 1);
        ::dup2(fd, 2);
        std::vector<char*> arguments;
        for (std::string& word : words) arguments.push_back(word.data());
        arguments.push_back(nullptr);
        ::execv(arguments[0], arguments.data());
        ::_exit(127);
    }
    int wait() const {  // the exit code, or killed_by(signal)
        int status = 0;
        ::waitpid(id, &status, 0);
        return ending_of(status);
    }
};

class ProgramTest : public testing::Test {
protected:
    TempDir dir;
    const std::string output = dir / "output.txt", data = dir / "data";
    uint64_t vocabulary = 257;  // of the data

    void SetUp() override {
        for (const char* name : {"train_gpt", "train_mot"})
            if (!path_exists(program(name))) GTEST_SKIP() << "the program " << program(name) << " is not built";
        // Random bytes with a little structure: every second token is the one before plus one.
        std::vector<uint16_t> tokens(6000);
        RandomStream random(1, "test tokens");
        for (size_t i = 0; i < tokens.size(); i++)
            tokens[i] = uint16_t(i % 2 ? (tokens[i - 1] + 1) % vocabulary : random.bits(i) % vocabulary);
        make_directories(data);
        ShardWriter train(data, "train", 3000), val(data, "val", 3000);
        train.write(std::span(tokens).first(5000));
        val.write(std::span(tokens).subspan(5000));
        write_dataset_json(data, BpeTrainer().train(257), int64_t(vocabulary), {1, 5000, 5000, train.finish()},
                           {1, 1000, 1000, val.finish()});
    }

    int run(std::vector<std::string> words) {
        words[0] = program(words[0]);
        return Process(words, output).wait();
    }
    std::string said() const { return read_file(output); }

    std::vector<json> log(const std::string& run_dir, const std::string& key) const {
        std::vector<json> records;
        std::istringstream lines(read_file(dir / run_dir + "/log.jsonl"));
        for (std::string line; std::getline(lines, line);)
            if (json record = json::parse(line); record.contains(key)) records.push_back(record);
        return records;
    }
};

}  // namespace llmc::test
