// Watchdog: a thread that ends the process when a collective takes too long, or the launcher is gone.
//
// A rank that waits cannot know why the others do not come. So the ranks of a host write into shared memory which
// collective they are in, and a rank that gives up prints this: the rank that is in no collective is the one that
// hangs.
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

// The collective that a rank is in. Other ranks may read it while it is written and then print a mixture of two names.
struct Activity {
    int rank;
    std::atomic<double> since{0};  // when it began, seconds of the host's monotonic clock; 0: in no collective
    std::atomic<int64_t> bytes{0};
    std::atomic<char> what[32] = {};
};

class Watchdog {
public:
    // `activities`: those of all ranks on this host, in shared memory.
    Watchdog(const World& world, std::span<Activity> activities);
    ~Watchdog();

    void set_timeout(double seconds);  // the longest time of a collective
    // This rank enters a collective that moves `bytes` bytes; it leaves it. Calls may be nested.
    void begin(const char* what, int64_t bytes);
    void end();

    // A check that the watchdog's thread makes regularly: given the longest time of a collective, it returns a sentence
    // about a problem, or "" if there is none. A problem ends the process.
    using Question = std::function<std::string(double timeout)>;
    std::list<Question>::iterator add(Question question);
    void remove(std::list<Question>::iterator question);

private:
    const World& world;
    std::span<Activity> activities;
    Activity& mine;
    const int launcher;  // the process that started this one
    double timeout = 600;
    int depth = 0;  // of nested collectives; the outermost is reported
    bool stop = false;
    std::list<Question> questions;
    std::mutex mutex;
    std::condition_variable changed;
    std::thread thread;

    void watch();
    std::string problem() const;
    std::string what_others_do() const;
};

// Marks this rank as being in a collective while the object lives. watchdog may be null: nobody to wait for.
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
