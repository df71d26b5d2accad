#include "llmc/train/log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "llmc/base/errors.h"
#include "llmc/base/files.h"
#include "llmc/base/json_text.h"
#include "llmc/base/version.h"

namespace llmc {

namespace {

// One line. Broken UTF-8 (from a prompt or a path) becomes U+FFFD instead of an exception.
std::string line_of(const nlohmann::json& record) {
    return record.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace

RunLog::RunLog(const std::string& log_path, nlohmann::json header) : path(log_path) {
    std::string old = path_exists(path) ? read_file(path, any_size) : "";
    size = int64_t(old.rfind('\n') + 1);  // npos + 1 = 0
    fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) run_error("cannot write the log ", path, ": ", std::strerror(errno));
    header["log_format"] = log_format;
    if (size == 0) pending = line_of(header);
    if (::ftruncate(fd, off_t(size)) != 0 || (!pending.empty() && !append(nlohmann::json()))) {
        std::string why = trouble.empty() ? std::strerror(errno) : trouble;
        ::close(fd);
        run_error("cannot write the log ", path, ": ", why);
    }
}

RunLog::~RunLog() {
    append(nlohmann::json());
    ::close(fd);
}

bool RunLog::append(const nlohmann::json& record) {
    if (!record.is_null()) pending += line_of(record);  // null: only what waits
    while (!pending.empty()) {
        ssize_t n = ::pwrite(fd, pending.data(), pending.size(), off_t(size));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            trouble = std::strerror(errno);
            return false;
        }
        size += n;
        pending.erase(0, size_t(n));
    }
    trouble.clear();
    return true;
}

TruncatedLog truncate_after_step(const std::string& path, int64_t step) {
    TruncatedLog result;
    if (!path_exists(path)) return result;
    const std::string old = read_file(path, any_size);
    std::string kept;
    for (size_t begin = 0; begin < old.size();) {
        size_t end = old.find('\n', begin);
        bool whole = end != std::string::npos;
        std::string line = old.substr(begin, whole ? end - begin : std::string::npos);
        begin = whole ? end + 1 : old.size();
        nlohmann::json record = parse_json_or_null(line);
        if (!whole || !record.is_object()) {
            result.unreadable++;
            continue;
        }
        if (record.contains("log_format") && record["log_format"] != log_format)
            input_error("the log ", path, " has format ", record["log_format"].dump(), ", this program writes ",
                        log_format, ": move the file away or use another run directory");
        auto found = record.find("step");
        bool has_step = found != record.end() && found->is_number();
        if (has_step ? found->get<double>() > double(step) : result.dropped > 0) {
            result.dropped++;
        } else {
            result.kept++;
            kept += line + "\n";
        }
    }
    if (kept != old) write_file_atomic(path, kept);
    return result;
}

}  // namespace llmc
