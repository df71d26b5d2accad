#include "llmc/data/output_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "llmc/base/errors.h"
#include "llmc/base/files.h"

namespace llmc {

namespace fs = std::filesystem;

OutputDirectory::OutputDirectory(const std::string& path, const std::string& marker, bool overwrite)
    : final_path(path) {
    while (final_path.size() > 1 && final_path.ends_with('/')) final_path.pop_back();
    std::error_code error;
    if (path_exists(final_path)) {
        if (!fs::is_directory(final_path, error))
            input_error("cannot write to ", path, ": it exists and is not a directory");
        bool is_older_result = path_exists(final_path + "/" + marker);
        if (is_older_result && !overwrite)
            input_error(path, " already holds a dataset: choose another directory or add --overwrite");
        if (!is_older_result && !fs::is_empty(final_path, error))
            input_error(path, " is not empty and does not hold a dataset: choose another directory");
    }
    temporary_path = final_path + ".tmp";
    make_directories(temporary_path);
    lock = ::open(temporary_path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock < 0) run_error("cannot open ", temporary_path, ": ", std::strerror(errno));
    if (::flock(lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {  // some filesystems have no locks
        ::close(lock);
        run_error("another process is writing ", temporary_path, ": wait for it or choose another directory");
    }
    for (const auto& entry : fs::directory_iterator(temporary_path, error)) fs::remove_all(entry.path(), error);
}

OutputDirectory::~OutputDirectory() {
    if (lock < 0) return;
    std::error_code error;
    fs::remove_all(temporary_path, error);
    ::close(lock);
}

void OutputDirectory::commit() {
    fsync_directory(temporary_path);
    std::string older = final_path + ".old";
    std::error_code error;
    bool replaces = path_exists(final_path) && !fs::is_empty(final_path, error);
    if (replaces) {
        fs::remove_all(older, error);
        rename_durably(final_path, older);
    }
    rename_durably(temporary_path, final_path);  // over an empty directory this is allowed
    ::close(lock);
    lock = -1;
    if (replaces) fs::remove_all(older, error);
}

}  // namespace llmc
