// Version of the program and of its file formats: the text of --version.
#pragma once
#include <string>

namespace llmc {

inline constexpr const char* project_version = "0.1.0";

// Increase a number if a program that reads the old format would misread the new one.
inline constexpr int checkpoint_format = 1;
inline constexpr int log_format = 1;
inline constexpr int shard_magic = 20240520;  // llm.c's GPT-2 shards, header words 0 and 1
inline constexpr int shard_format = 1;

// The commit that this was built from, as `git describe --always --dirty` prints it; "unknown commit" outside of git.
const char* version_commit();

// Four lines without a newline at the end: project and commit; `backend`, the caller's description of the backend and
// its library, such as "cpu, oneDNN 2.6.3"; compiler; formats.
std::string version_text(const std::string& backend);

}  // namespace llmc
