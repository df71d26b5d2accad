// A process that trains one model, as the program that started it sees it: ours (train_worker.h) or PyTorch's
// (pytorch_trainer.py). It answers every line with a JSON object, and sleeps in between.
#pragma once
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "llmc/base/errors.h"

namespace llmc {

struct Worker {
    std::string name, model, mode;  // mode: of PyTorch, empty for ours
    pid_t id = -1;
    FILE *to = nullptr, *from = nullptr;
    nlohmann::json ready, end, bound;
    struct Sample {
        double seconds, processor_seconds, probe;
        double waited;  // seconds that its threads were ready to run and had no CPU: other programs had it
    };
    std::vector<Sample> samples;
    bool failed = false;
    // On a machine that is never quiet: the processor time of its only thread. Caches are shared all the same.
    bool by_processor_time = false;

    Worker(const std::string& worker_name, std::vector<std::string> words) : name(worker_name) {
        int in[2], out[2];
        if (::pipe2(in, O_CLOEXEC) || ::pipe2(out, O_CLOEXEC)) run_error("cannot make a pipe");
        id = ::fork();
        if (id == 0) {
            ::dup2(in[0], 0);
            ::dup2(out[1], 1);
            std::vector<char*> arguments;
            for (std::string& word : words) arguments.push_back(word.data());
            arguments.push_back(nullptr);
            ::execvp(arguments[0], arguments.data());
            ::_exit(127);
        }
        ::close(in[0]);
        ::close(out[1]);
        to = ::fdopen(in[1], "w"), from = ::fdopen(out[0], "r");
        ready = read();
    }
    ~Worker() { finish(); }
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    // The next line; a process that has died gives none, and takes no further part.
    nlohmann::json read() {
        std::string line;
        for (int c; (c = std::fgetc(from)) != EOF && c != '\n';) line.push_back(char(c));
        nlohmann::json answer = nlohmann::json::parse(line, nullptr, false);
        if (answer.is_object()) return answer;
        if (!failed) std::fprintf(stderr, "%s: the process ended early\n", name.c_str());
        failed = true;
        return nlohmann::json::object();
    }
    nlohmann::json ask(const char* word) {
        if (failed) return nlohmann::json::object();
        std::fprintf(to, "%s\n", word);
        std::fflush(to);
        return read();
    }
    // Seconds that its threads have waited for a CPU so far; 0 where the kernel does not tell.
    double waited() const {
        double nanoseconds = 0;
        std::error_code none;
        for (const auto& task : std::filesystem::directory_iterator(str("/proc/", id, "/task"), none)) {
            double running = 0, waiting = 0;
            if (std::ifstream(task.path() / "schedstat") >> running >> waiting) nanoseconds += waiting;
        }
        return nanoseconds * 1e-9;
    }
    // Its memory is free afterwards.
    void finish() {
        if (id < 0) return;
        std::fclose(to);
        std::fclose(from);
        ::waitpid(id, nullptr, 0);
        id = -1;
    }
    // Seconds of the samples that count, sorted.
    std::vector<double> good_samples(double best_probe) const {
        std::vector<double> seconds;
        for (const Sample& s : samples)
            if (s.probe >= 0.9 * best_probe && (by_processor_time || s.waited <= 0.05 * s.seconds))
                seconds.push_back(by_processor_time ? s.processor_seconds : s.seconds);
        std::sort(seconds.begin(), seconds.end());
        return seconds;
    }
};

}  // namespace llmc
