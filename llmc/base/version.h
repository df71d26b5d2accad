// What this program is and which file formats it reads and writes: the text behind --version.
#pragma once
#include <string>

namespace llmc {

inline constexpr const char* project_version = "0.1.0";

// Raised when a reader of the older format would misread the newer one.
inline constexpr int checkpoint_format = 1;
inline constexpr int log_format = 1;
inline constexpr int shard_magic = 20240520;  // llm.c's GPT-2 shards, header words 0 and 1
inline constexpr int shard_format = 1;

// The commit this was built from as `git describe --always --dirty` has it; "unknown commit" outside of git.
const char* version_commit();

// Four lines: project and commit; backend and its library, as the caller describes them (for example
// "cpu, oneDNN 2.6.3"); compiler; formats. No newline at the end.
std::string version_text(const std::string& backend);

}  // namespace llmc
