// Files: whole reads, atomic and durable writes, read-only memory maps, checksums, gzip by content.
//
// A file written through AtomicFile or write_file_atomic either has all its bytes under its name or does not exist (or
// keeps its old content): bytes go to a temporary name beside it, are fsynced, and only then renamed. The directory is
// fsynced last, so that the new name survives a power cut too.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llmc {

inline constexpr int64_t any_size = INT64_MAX;
inline constexpr int64_t largest_read = int64_t(256) << 20;  // of files that are small if they are what they should be

// The whole file as bytes. InputError with path and reason if it cannot be read, if it is no regular file (a pipe may
// never end), or if it has more bytes than `most`.
std::string read_file(const std::string& path, int64_t most = largest_read);

// As read_file, but a gzip file (recognised by its first two bytes, not by its name) is unpacked: `most` counts what
// comes out. InputError also where the gzip stream is damaged or ends early.
std::string read_file_gunzip(const std::string& path, int64_t most = largest_read);

// Replaces or creates `path` with exactly these bytes. RunError with path and reason (disk full, no permission); then
// the old content is untouched and the temporary file is gone.
void write_file_atomic(const std::string& path, std::string_view bytes);

// Makes renames and new names inside `directory` durable. RunError on failure.
void fsync_directory(const std::string& directory);

// Creates the directory and its parents; fine if it exists. RunError if that is impossible.
void make_directories(const std::string& directory);

// Renames and makes the new name durable (files or directories; an existing file is replaced). RunError on failure.
void rename_durably(const std::string& from, const std::string& to);

// True if the path names anything at all (file, directory, ...).
bool path_exists(const std::string& path);

// The directory part of a path: "a/b" -> "a", "b" -> ".".
std::string parent_directory(const std::string& path);

// CRC-32 (zlib's) of bytes, continued from `crc` so that long data can be fed in pieces.
uint32_t crc32_of(const void* bytes, size_t size, uint32_t crc = 0);

// The CRC-32 of two byte strings one after the other, from their CRCs and the length of the second.
uint32_t crc32_append(uint32_t first, uint32_t second, int64_t second_size);

// 8 lower-case hex digits, as checksums are written in our JSON files.
std::string hex32(uint32_t value);

// A file that grows in pieces and gets its real name only by commit(). Destroyed without commit: it never existed.
// Every failure is a RunError with path and reason.
class AtomicFile {
public:
    explicit AtomicFile(const std::string& path);
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    void write(const void* bytes, size_t size);                       // append
    void write_at(int64_t offset, const void* bytes, size_t size);    // overwrite earlier bytes (a header)
    void commit();                                                    // fsync, close, rename, fsync the directory
    int64_t size() const { return written; }

private:
    std::string final_path, temporary_path;
    int fd = -1;
    int64_t written = 0;
    std::vector<char> buffer;  // small appends are gathered before they reach the kernel
    void put(int64_t offset, const char* bytes, size_t size);
    void flush();
};

// A file of known size that one process creates, full of zeros, and several may then fill, each its own bytes. Nothing
// is durable before commit. Every failure is a RunError with path and reason.
class PartFile {
public:
    static void create(const std::string& path, int64_t size);
    explicit PartFile(const std::string& path);  // one that exists
    ~PartFile();
    PartFile(const PartFile&) = delete;
    PartFile& operator=(const PartFile&) = delete;

    void write_at(int64_t offset, const void* bytes, size_t size);
    void commit();  // fsync, close

private:
    std::string path;
    int fd = -1;
};

// A whole file mapped read-only; the bytes stay valid as long as the object lives. Movable. Empty files have data()
// null and size() 0. InputError if it cannot be opened or mapped. If it is cut off later, reading what is gone ends the
// process with a sentence: see map_faults.h.
class MappedFile {
public:
    MappedFile() = default;
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const char* data() const { return address; }
    size_t size() const { return length; }
    std::string_view bytes() const { return {address, length}; }

private:
    char* address = nullptr;
    size_t length = 0;
};

}  // namespace llmc
