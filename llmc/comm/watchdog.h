// Watchdog: a thread that ends the process when a collective takes too long, or the launcher is gone.
//
// A rank that waits cannot know why the others do not come. So the ranks of a host write down in shared memory what
// they are in, and who gives up prints it: the rank that is in no collective is the one that hangs.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <mutex>
#include <span>
#include <string>
#include <thread>

namespace llmc {

class World;

// What a rank is in now. Others read it while it is written: at worst they print a mixture of two names.
struct Activity {
    int rank;
    std::atomic<double> since{0};    // seconds of a clock that the host's processes share; 0: in no collective
    std::atomic<int64_t> bytes{0};
    std::atomic<char> what[32] = {};
};

class Watchdog {
public:
    // `activities`: of all ranks on this host, in memory that they share.
    Watchdog(const World& world, std::span<Activity> activities);
    ~Watchdog();

    void set_timeout(double seconds);
    void begin(const char* what, int64_t bytes);
    void end();

    // Asked regularly, on the watchdog's thread: what else is wrong, given the seconds that a collective may take.
    // Nothing if all is well.
    using Question = std::function<std::string(double timeout)>;
    std::list<Question>::iterator add(Question question);
    void remove(std::list<Question>::iterator question);

private:
    const World& world;
    std::span<Activity> activities;
    Activity& mine;
    const int launcher;  // the process that started this one
    double timeout = 600;
    int depth = 0;  // collectives inside collectives: the outermost counts
    bool stop = false;
    std::list<Question> questions;
    std::mutex mutex;
    std::condition_variable changed;
    std::thread thread;

    void watch();
    std::string problem() const;
    std::string what_others_do() const;
};

// This rank is in a collective as long as one of these lives. A null watchdog: nobody to wait for.
struct Waiting {
    Waiting(Watchdog* watchdog, const char* what, int64_t bytes = 0) : watchdog(watchdog) {
        if (watchdog) watchdog->begin(what, bytes);
    }
    ~Waiting() {
        if (watchdog) watchdog->end();
    }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

private:
    Watchdog* watchdog;
};

}  // namespace llmc
