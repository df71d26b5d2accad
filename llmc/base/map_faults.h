// A mapped file that someone cuts off, or whose disk fails, has no bytes any more where a program reads them: the
// kernel sends SIGBUS, and nobody can return from that. With the file on this list the process ends with a sentence
// that names it and exit code 1, instead of silently.
#pragma once
#include <cstddef>
#include <string>

namespace llmc {

void note_map(const char* address, size_t size, const std::string& path);
void forget_map(const char* address);

}  // namespace llmc
