// Reads files that may be gzipped. The first two bytes decide, not the name.
#pragma once
#include <zlib.h>

#include <cstdint>
#include <string>
#include <vector>

namespace llmc {

// A stream of a file's bytes, unpacked if it is gzip (several gzip members one after the other count as one).
class GunzipReader {
public:
    explicit GunzipReader(const std::string& path);  // InputError if it cannot be opened
    ~GunzipReader();
    GunzipReader(const GunzipReader&) = delete;
    GunzipReader& operator=(const GunzipReader&) = delete;

    // Reads up to `size` bytes and returns how many; 0 only at the end or at an error in the stream (see failure()).
    // All bytes before the error are delivered.
    size_t read(char* bytes, size_t size);

    const std::string& failure() const { return why; }      // what is wrong with the stream; empty if nothing is
    int64_t input_bytes() const { return bytes_consumed; }  // bytes read from the file, before unpacking

private:
    int fd = -1;
    z_stream stream{};
    std::vector<unsigned char> input;
    bool packed = false, input_ended = false, done = false, member_ended = false;
    std::string why;
    int64_t bytes_consumed = 0;

    bool refill();
    size_t inflate_some(char* bytes, size_t size);
};

}  // namespace llmc
