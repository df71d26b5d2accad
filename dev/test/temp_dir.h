// A directory for one test, removed when it ends.
#pragma once
#include <stdlib.h>

#include <filesystem>
#include <string>

struct TempDir {
    std::string path;
    TempDir() {
        std::string name = (std::filesystem::temp_directory_path() / "llmc_test_XXXXXX").string();
        if (!::mkdtemp(name.data())) throw std::runtime_error("cannot make a temporary directory");
        path = name;
    }
    ~TempDir() {
        std::error_code error;
        std::filesystem::remove_all(path, error);
    }
    TempDir(const TempDir&) = delete;
    TempDir& operator=(const TempDir&) = delete;
    std::string operator/(const std::string& name) const { return path + "/" + name; }
};
