// The run log on disk: header, records, torn lines, cutting back, a full disk. And the signals that end a run.
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "dev/test/child.h"
#include "llmc/base/errors.h"
#include "llmc/base/files.h"
#include "llmc/train/log.h"
#include "llmc/train/signals.h"

using namespace llmc;
using namespace llmc::test;
using nlohmann::json;

namespace {

struct LogTest : testing::Test {
    std::string directory, path;
    void SetUp() override {
        char name[] = "/tmp/llmc_log_XXXXXX";
        directory = mkdtemp(name);
        path = directory + "/log.jsonl";
    }
    void TearDown() override { std::filesystem::remove_all(directory); }
    void write(const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
};

}  // namespace

TEST_F(LogTest, HeaderThenRecordsThenAppends) {
    {
        RunLog log(path, {{"program", "train_mot"}});
        EXPECT_TRUE(log.append({{"step", 1}, {"loss", 0.1}}));
        EXPECT_EQ(read_file(path),  // at once
                  "{\"log_format\":1,\"program\":\"train_mot\"}\n{\"loss\":0.1,\"step\":1}\n");
        EXPECT_TRUE(log.append({{"step", 2}, {"loss", NAN}}));
        EXPECT_TRUE(log.append({{"step", 3}, {"text", "bad \xff byte\nline"}}));
        EXPECT_EQ(log.problem(), "");
    }
    { RunLog(path, {{"program", "other"}}).append({{"step", 4}}); }  // no second header
    std::ifstream in(path);
    std::vector<json> lines;
    for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
    ASSERT_EQ(lines.size(), 5u);
    EXPECT_EQ(lines[0]["program"], "train_mot");
    EXPECT_TRUE(lines[2]["loss"].is_null());
    EXPECT_EQ(lines[3]["text"], "bad \xef\xbf\xbd byte\nline");
    EXPECT_EQ(lines[4]["step"], 4);
}

TEST_F(LogTest, OpeningCutsATornLine) {
    write("{\"log_format\":1}\n{\"step\":1}\n{\"st");
    { RunLog(path, {}).append({{"step", 2}}); }
    EXPECT_EQ(read_file(path), "{\"log_format\":1}\n{\"step\":1}\n{\"step\":2}\n");
    write("{\"log_fo");  // killed within the header: a new one
    { RunLog(path, {{"a", 1}}).append({{"step", 2}}); }
    EXPECT_EQ(read_file(path), "{\"a\":1,\"log_format\":1}\n{\"step\":2}\n");
}

TEST_F(LogTest, TruncateAfterStep) {
    write("{\"log_format\":1}\n{\"step\":1}\n{\"note\":\"kept\"}\n{\"step\":2}\n{\"step\":2,\"validation\":3.5}\n"
          "{\"step\":3}\n{\"note\":\"of step 3\"}\n{\"step\":4}\n{\"step\":5,\"lo");
    TruncatedLog cut = truncate_after_step(path, 2);
    EXPECT_EQ(cut.kept, 5);
    EXPECT_EQ(cut.dropped, 3);
    EXPECT_EQ(cut.unreadable, 1);
    std::string expected = "{\"log_format\":1}\n{\"step\":1}\n{\"note\":\"kept\"}\n{\"step\":2}\n"
                           "{\"step\":2,\"validation\":3.5}\n";
    EXPECT_EQ(read_file(path), expected);
    cut = truncate_after_step(path, 2);  // again: nothing to do
    EXPECT_EQ(cut.kept, 5);
    EXPECT_EQ(cut.dropped + cut.unreadable, 0);
    EXPECT_EQ(read_file(path), expected);
    EXPECT_EQ(truncate_after_step(directory + "/absent", 2).kept, 0);
    EXPECT_FALSE(path_exists(directory + "/absent"));
}

TEST_F(LogTest, DamagedLinesInTheMiddleAreCountedAndDropped) {
    write(std::string("{\"log_format\":1}\n\0\0\0\n[1]\n{\"step\":1}\n", 36));
    TruncatedLog cut = truncate_after_step(path, 9);
    EXPECT_EQ(cut.kept, 2);
    EXPECT_EQ(cut.unreadable, 2);
    EXPECT_EQ(read_file(path), "{\"log_format\":1}\n{\"step\":1}\n");
}

TEST_F(LogTest, RefusesOtherFormatsAndBadPlaces) {
    write("{\"log_format\":2}\n{\"step\":1}\n");
    EXPECT_THROW(truncate_after_step(path, 0), InputError);
    EXPECT_EQ(read_file(path), "{\"log_format\":2}\n{\"step\":1}\n");
    EXPECT_THROW(RunLog(directory + "/absent/log.jsonl", {}), RunError);
}

// A full disk (here: a limit on the size of files) costs no record: all are there once there is room again.
TEST_F(LogTest, FullDiskLosesNothing) {
    int code = in_child([&] {
        signal(SIGXFSZ, SIG_IGN);
        RunLog log(path, {});
        rlimit limit{40, RLIM_INFINITY};
        setrlimit(RLIMIT_FSIZE, &limit);
        bool all_written = true;
        for (int step = 1; step <= 5; step++) all_written &= log.append({{"step", step}});
        if (all_written || log.problem().empty() || read_file(path).size() != 40) _exit(1);
        limit.rlim_cur = RLIM_INFINITY;
        setrlimit(RLIMIT_FSIZE, &limit);
        if (!log.append({{"step", 6}}) || !log.problem().empty()) _exit(2);
    });
    EXPECT_EQ(code, 0);
    std::string expected = "{\"log_format\":1}\n";
    for (int step = 1; step <= 6; step++) expected += str("{\"step\":", step, "}\n");
    EXPECT_EQ(read_file(path), expected);
}

TEST(Signals, FirstIsNotedSecondInterruptEnds) {
    EXPECT_EQ(stop_signal(), 0);
    const auto quiet = [] { if (!freopen("/dev/null", "w", stderr)) _exit(99); };
    EXPECT_EQ(in_child([&] {
        quiet();
        catch_stop_signals();
        if (stop_signal() != 0) _exit(1);
        raise(SIGTERM);
        raise(SIGTERM);
        _exit(stop_signal());
    }), SIGTERM);
    EXPECT_EQ(in_child([&] {
        quiet();
        catch_stop_signals();
        raise(SIGINT);
        if (stop_signal() != SIGINT) _exit(1);
        raise(SIGTERM);  // does not replace the first
        if (stop_signal() != SIGINT) _exit(2);
        raise(SIGINT);
        _exit(3);        // not reached
    }), 130);
    EXPECT_EQ(in_child([] { raise(SIGTERM); }), killed_by(SIGTERM));  // not caught unless asked for
}

// No thread that computes has a handler on its stack, and what is not caught still ends the process.
TEST(Signals, HaveAThreadOfTheirOwn) {
    const auto send = [](int signal) {
        kill(getpid(), signal);
        while (!stop_signal()) usleep(1000);
    };
    EXPECT_EQ(in_child([&] {
        if (!freopen("/dev/null", "w", stderr)) _exit(99);
        take_signals_in_their_own_thread();
        catch_stop_signals();
        sigset_t blocked;
        pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
        if (!sigismember(&blocked, SIGINT) || !sigismember(&blocked, SIGTERM)) _exit(1);
        send(SIGINT);
        send(SIGINT);
        for (;;) pause();
    }), 130);
    EXPECT_EQ(in_child([&] {
        take_signals_in_their_own_thread();
        send(SIGTERM);
    }), killed_by(SIGTERM));
}
