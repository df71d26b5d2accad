// A directory that is created as "<path>.tmp" and renamed when it is complete.
#pragma once
#include <string>

namespace llmc {

class OutputDirectory {
public:
    // InputError if `path` exists and is not an empty directory; with `overwrite` it may be one that holds `marker`
    // (dataset.json), i.e. an older result. What an interrupted run left is deleted. RunError if another process is
    // writing there now.
    OutputDirectory(const std::string& path, const std::string& marker, bool overwrite);
    ~OutputDirectory();  // without commit(): removes what was written
    OutputDirectory(const OutputDirectory&) = delete;
    OutputDirectory& operator=(const OutputDirectory&) = delete;

    const std::string& temporary() const { return temporary_path; }  // write here
    void commit();                                                   // renames it to `path`, replacing an older result

private:
    std::string final_path, temporary_path;
    int lock = -1;
};

}  // namespace llmc
