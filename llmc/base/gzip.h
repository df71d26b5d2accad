// Reading files that may be gzipped, told by their first two bytes rather than by their name.
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

    // Up to `size` bytes, as many as there are; 0 only at the end or where the stream breaks (see failure()). All bytes
    // before a break are delivered.
    size_t read(char* bytes, size_t size);

    const std::string& failure() const { return why; }     // why the stream broke; empty while it is whole
    int64_t input_bytes() const { return bytes_consumed; } // of the file as it lies on disk

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
