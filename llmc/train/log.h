// The run log: one JSON object per line (log.jsonl), for programs to read while the run goes on.
//
// The first line is a header, {"log_format": 1, ...}; every other record says which "step" it belongs to.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace llmc {

class RunLog {
public:
    // Opens `log_path` for appending; a new or empty file gets `header` as its first line (with "log_format" added). A
    // last line without its end (a killed run) is cut off. RunError if the file cannot be written.
    RunLog(const std::string& log_path, nlohmann::json header);
    ~RunLog();
    RunLog(const RunLog&) = delete;
    RunLog& operator=(const RunLog&) = delete;

    // Appends one record; it is in the file when this returns true. False: the file cannot be written now (disk full;
    // see problem()); the record waits in memory and goes out with the next append that works. NaN is written as null.
    bool append(const nlohmann::json& record);
    const std::string& problem() const { return trouble; }  // empty if all is written

private:
    std::string path, pending, trouble;
    int fd = -1;
    int64_t size = 0;  // bytes in the file; a record that got only half way is completed by the next append
};

struct TruncatedLog {
    int64_t kept = 0;        // lines that stay
    int64_t dropped = 0;     // records of later steps
    int64_t unreadable = 0;  // lines that are no JSON object, dropped too: a torn last line is usual, more is damage
};

// Before a resume: drops every record whose "step" is larger than `step`, and records without a step that follow one of
// those. Atomic; to be called before the RunLog is opened. A file that does not exist is fine. InputError if the log
// has another format; RunError if it cannot be written.
TruncatedLog truncate_after_step(const std::string& path, int64_t step);

}  // namespace llmc
