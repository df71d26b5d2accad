#include "llmc/base/version.h"

#include "llmc/base/errors.h"

// The Makefile passes the commit to this file alone, so a new commit recompiles nothing else.
#ifndef LLMC_COMMIT
#define LLMC_COMMIT "unknown commit"
#endif

namespace llmc {

const char* version_commit() { return LLMC_COMMIT; }

std::string version_text(const std::string& backend) {
#ifdef __clang__
    const char* compiler = "clang++ " __clang_version__;
#else
    const char* compiler = "g++ " __VERSION__;
#endif
    return str("mot.cu ", project_version, " (", version_commit(), ")\n",
               "backend   ", backend, "\n",
               "compiler  ", compiler, "\n",
               "formats   checkpoint ", checkpoint_format, ", shard ", shard_format, " (llm.c ", shard_magic, "/",
               shard_format, "), log ", log_format);
}

}  // namespace llmc
