// The run log: one JSON object per line (log.jsonl), which programs can read during the run.
//
// The first line is a header, {"log_format": 1, ...}; every other record has its "step".
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace llmc {

class RunLog {
public:
    // Opens `log_path` for appending; a new or empty file gets `header` as its first line (with "log_format" added). An
    // incomplete last line (of a killed run) is removed. RunError if the file cannot be written.
    RunLog(const std::string& log_path, nlohmann::json header);
    ~RunLog();
    RunLog(const RunLog&) = delete;
    RunLog& operator=(const RunLog&) = delete;

    // Appends one record. True: it is in the file. False: the file cannot be written now (disk full; see problem());
    // the record is kept in memory and written with the next append that works. NaN is written as null.
    bool append(const nlohmann::json& record);
    const std::string& problem() const { return trouble; }  // empty if all is written

private:
    std::string path, pending, trouble;
    int fd = -1;
    int64_t size = 0;  // bytes in the file; a record that was written in part is completed by the next append
};

struct TruncatedLog {
    int64_t kept = 0;        // lines that were kept
    int64_t dropped = 0;     // records of later steps, removed
    int64_t unreadable = 0;  // lines that are not a JSON object, removed: one at the end is normal, more is damage
};

// For a resume: removes every record with a larger "step" than `step`, and records without a step after one of those.
// Atomic; call it before the RunLog is opened. The file need not exist. InputError if the log has another format;
// RunError if it cannot be written.
TruncatedLog truncate_after_step(const std::string& path, int64_t step);

}  // namespace llmc
