// A test program that starts itself again under mpirun, and what its ranks share.
#pragma once
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "dev/test/program_test.h"
#include "llmc/comm/comm.h"

namespace llmc::test {

inline bool under_mpirun() { return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr; }

// The processes of this test program: one, or mpirun's. MPI can be started only once in a process.
inline World& world() {
    static World world;
    return world;
}

// What GoogleTest printed in several processes: how many of them ran at least one test and failed none, and the names
// of the tests that were skipped, each as often as it was. "[  PASSED  ] 0 tests." is also what a process prints that
// ran nothing.
struct Verdicts {
    int passed = 0;
    std::vector<std::string> skipped;
};
inline Verdicts verdicts_of(const std::string& text) {
    const std::string pass = "[  PASSED  ] ", skip = "[  SKIPPED ] ";
    Verdicts verdicts;
    for (size_t at = 0; (at = text.find(pass, at)) != std::string::npos;)
        if (at += pass.size(); text[at] >= '1' && text[at] <= '9') verdicts.passed++;
    for (size_t at = 0; (at = text.find(skip, at)) != std::string::npos;) {
        at += skip.size();
        const size_t space = text.find(' ', at);  // "Suite.Test (0 ms)"; the lists at the end have no time
        if (space != std::string::npos && text[space + 1] == '(')
            verdicts.skipped.push_back(text.substr(at, space - at));
    }
    return verdicts;
}

// `ranks` processes of this program, which run the tests that match `filter`, and what they print.
struct RankedRun {
    TempDir dir;
    const std::string output = dir / "output.txt";
    Process process;

    RankedRun(int ranks, const std::string& filter) : process(words(ranks, filter), output) {}
    int wait() const { return process.wait(); }  // mpirun's exit code
    std::string said() const { return read_file(output); }

private:
    static std::vector<std::string> words(int ranks, const std::string& filter) {
        // Sanitizers would blame MPI's own leaks on the test.
        const char* old = std::getenv("ASAN_OPTIONS");
        ::setenv("EMU_DEVICES", "4", 0);
        ::setenv("OMP_WAIT_POLICY", "passive", 0);  // there are more threads than CPUs
        ::setenv("ASAN_OPTIONS", (std::string(old ? old : "") + ":detect_leaks=0").c_str(), 1);
        return {path_of("mpirun"), "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--timeout", "300",
                "-np", std::to_string(ranks), std::filesystem::read_symlink("/proc/self/exe"),
                "--gtest_filter=" + filter, "--gtest_also_run_disabled_tests", "--gtest_color=no"};
    }
};

// How many processes, and whether streams of the emulated GPU work only while the host waits: that shows where one
// forgot to wait for another.
struct Start {
    int ranks;
    bool lazy_streams;
};

// Expects that these tests pass on all ranks of a launch, and that none is skipped but `may_skip`; what they printed.
// Skips, and gives nothing, in a process that is itself one of the ranks, or where there is no mpirun.
inline std::string run_on_ranks(const Start& start, const std::string& filter, const std::string& may_skip = "") {
    auto launch = [&](std::string& text) {
        if (under_mpirun()) GTEST_SKIP() << "this is one of them";
        if (path_of("mpirun").empty()) GTEST_SKIP() << "no mpirun: install openmpi-bin";
        ::setenv("EMU_LAZY", start.lazy_streams ? "1" : "0", 1);
        RankedRun run(start.ranks, filter);
        EXPECT_EQ(run.wait(), 0) << run.said();
        text = run.said();
        const Verdicts verdicts = verdicts_of(text);
        EXPECT_EQ(verdicts.passed, start.ranks) << text;
        for (const std::string& test : verdicts.skipped) EXPECT_EQ(test, may_skip) << text;
    };
    std::string text;
    launch(text);
    return text;
}

}  // namespace llmc::test
