#include "llmc/base/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "llmc/base/errors.h"
#include "llmc/base/gzip.h"
#include "llmc/base/map_faults.h"

namespace llmc {

namespace {

std::string reason() { return std::strerror(errno); }

// Opens for reading. What is no regular file is refused here: a directory would fail unclearly, and a pipe or a device
// may never end. O_NONBLOCK: open() itself would wait for the other end of a pipe.
int open_to_read(const std::string& path, int64_t& size) {
    int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) input_error("cannot read ", path, ": ", reason());
    struct stat info{};
    if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        std::string why = info.st_mode == 0 ? reason() : "it is no regular file";
        if (S_ISDIR(info.st_mode)) why = "it is a directory";
        ::close(fd);
        input_error("cannot read ", path, ": ", why);
    }
    size = int64_t(info.st_size);
    return fd;
}

[[noreturn]] void refuse_size(const std::string& path, int64_t most) {
    input_error("cannot read ", path, ": it has more than ", most >> 20, " MiB, so it is not what belongs there");
}

}  // namespace

std::string read_file(const std::string& path, int64_t most) {
    int64_t size = 0;
    int fd = open_to_read(path, size);
    std::string bytes;
    size_t used = 0;
    for (;;) {  // until end of file: the size of /proc files is not known beforehand
        if (std::max(size, int64_t(used)) > most) {
            ::close(fd);
            refuse_size(path, most);
        }
        if (used == bytes.size()) bytes.resize(used == 0 ? size_t(size) + 1 : used * 2);
        ssize_t n = ::read(fd, bytes.data() + used, bytes.size() - used);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            std::string why = reason();
            ::close(fd);
            input_error("cannot read ", path, ": ", why);
        }
        if (n == 0) break;
        used += size_t(n);
    }
    ::close(fd);
    bytes.resize(used);
    return bytes;
}

std::string read_file_gunzip(const std::string& path, int64_t most) {
    int64_t size = 0;
    ::close(open_to_read(path, size));  // only to refuse what is no regular file
    GunzipReader reader(path);
    std::string bytes;
    for (size_t used = 0;;) {
        if (int64_t(used) > most) refuse_size(path, most);
        bytes.resize(used + (size_t(1) << 20) + used / 2);
        used += reader.read(bytes.data() + used, bytes.size() - used);
        if (used == bytes.size()) continue;
        if (!reader.failure().empty()) input_error("cannot read ", path, ": ", reader.failure());
        if (int64_t(used) > most) refuse_size(path, most);
        bytes.resize(used);
        return bytes;
    }
}

void write_file_atomic(const std::string& path, std::string_view bytes) {
    AtomicFile file(path);
    file.write(bytes.data(), bytes.size());
    file.commit();
}

void fsync_directory(const std::string& directory) {
    int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) run_error("cannot open directory ", directory, ": ", reason());
    // Some network file systems do not support fsync of a directory (EINVAL); their renames are durable by themselves.
    if (::fsync(fd) != 0 && errno != EINVAL) {
        std::string why = reason();
        ::close(fd);
        run_error("cannot sync directory ", directory, ": ", why);
    }
    ::close(fd);
}

void make_directories(const std::string& directory) {
    std::error_code error;
    std::filesystem::create_directories(directory, error);
    if (error) run_error("cannot create directory ", directory, ": ", error.message());
    if (!std::filesystem::is_directory(directory, error))
        run_error("cannot create directory ", directory, ": a file of that name exists");
}

void rename_durably(const std::string& from, const std::string& to) {
    if (std::rename(from.c_str(), to.c_str()) != 0) run_error("cannot rename ", from, " to ", to, ": ", reason());
    fsync_directory(parent_directory(to));
}

bool path_exists(const std::string& path) {
    struct stat info{};
    return ::lstat(path.c_str(), &info) == 0;
}

std::string parent_directory(const std::string& path) {
    std::string parent = std::filesystem::path(path).parent_path().string();
    return parent.empty() ? "." : parent;
}

uint32_t crc32_of(const void* bytes, size_t size, uint32_t crc) {
    return uint32_t(::crc32_z(crc, static_cast<const Bytef*>(bytes), size));
}

uint32_t crc32_append(uint32_t first, uint32_t second, int64_t second_size) {
    return uint32_t(::crc32_combine(first, second, z_off_t(second_size)));
}

std::string hex32(uint32_t value) {
    char text[9];
    std::snprintf(text, sizeof text, "%08x", value);
    return text;
}

// All of the bytes, at this place of the file.
static void write_all(int fd, int64_t offset, const char* bytes, size_t size, const std::string& path) {
    while (size > 0) {
        ssize_t n = ::pwrite(fd, bytes, size, off_t(offset));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) run_error("cannot write ", path, ": ", reason());
        bytes += n, size -= size_t(n), offset += n;
    }
}

AtomicFile::AtomicFile(const std::string& path)
    : final_path(path), temporary_path(str(path, ".tmp.", ::getpid())) {
    fd = ::open(temporary_path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) run_error("cannot write ", final_path, ": ", reason());
    buffer.reserve(1 << 20);
}

AtomicFile::~AtomicFile() {
    if (fd < 0) return;
    ::close(fd);
    ::unlink(temporary_path.c_str());
}

void AtomicFile::put(int64_t offset, const char* bytes, size_t size) {
    write_all(fd, offset, bytes, size, final_path);
}

void AtomicFile::flush() {
    put(written - int64_t(buffer.size()), buffer.data(), buffer.size());
    buffer.clear();
}

void AtomicFile::write(const void* bytes, size_t size) {
    const char* from = static_cast<const char*>(bytes);
    if (buffer.size() + size > buffer.capacity()) flush();
    if (size > buffer.capacity()) {
        put(written, from, size);
    } else {
        buffer.insert(buffer.end(), from, from + size);
    }
    written += int64_t(size);
}

void AtomicFile::write_at(int64_t offset, const void* bytes, size_t size) {
    if (offset < 0 || offset + int64_t(size) > written)
        run_error("write_at: bytes ", offset, "..", offset + int64_t(size), " are not inside the ", written,
                  " written so far to ", final_path);
    flush();
    put(offset, static_cast<const char*>(bytes), size);
}

void AtomicFile::commit() {
    flush();
    if (::fsync(fd) != 0) run_error("cannot write ", final_path, ": ", reason());
    // close() may be the first to report a full network disk; the descriptor is gone whatever it returns.
    bool closed = ::close(std::exchange(fd, -1)) == 0;
    if (!closed || std::rename(temporary_path.c_str(), final_path.c_str()) != 0) {
        std::string why = reason();
        ::unlink(temporary_path.c_str());
        run_error("cannot write ", final_path, ": ", why);
    }
    fsync_directory(parent_directory(final_path));
}

void PartFile::create(const std::string& path, int64_t size) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    const bool made = fd >= 0 && ::ftruncate(fd, off_t(size)) == 0;
    const std::string why = made ? "" : reason();
    if (fd >= 0) ::close(fd);
    if (!made) run_error("cannot create ", path, " of ", size, " bytes: ", why);
}

PartFile::PartFile(const std::string& path) : path(path), fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC)) {
    if (fd < 0) run_error("cannot write to ", path, ": ", reason());
}

PartFile::~PartFile() {
    if (fd >= 0) ::close(fd);
}

void PartFile::write_at(int64_t offset, const void* bytes, size_t size) {
    write_all(fd, offset, static_cast<const char*>(bytes), size, path);
}

void PartFile::commit() {
    if (::fsync(fd) != 0 || ::close(std::exchange(fd, -1)) != 0) run_error("cannot write ", path, ": ", reason());
}

MappedFile::MappedFile(const std::string& path) {
    int64_t size = 0;
    int fd = open_to_read(path, size);
    if (size > 0) {
        void* mapped = ::mmap(nullptr, size_t(size), PROT_READ, MAP_SHARED, fd, 0);
        if (mapped == MAP_FAILED) {
            std::string why = reason();
            ::close(fd);
            input_error("cannot map ", path, " into memory: ", why);
        }
        address = static_cast<char*>(mapped);
        length = size_t(size);
        note_map(address, length, path);
    }
    ::close(fd);  // the mapping keeps the file alive: thousands of shards need no descriptors
}

MappedFile::~MappedFile() {
    if (!address) return;
    forget_map(address);
    ::munmap(address, length);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : address(std::exchange(other.address, nullptr)), length(std::exchange(other.length, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(address, other.address);
    std::swap(length, other.length);
    return *this;
}

}  // namespace llmc
