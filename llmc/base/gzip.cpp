#include "llmc/base/gzip.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "llmc/base/errors.h"

namespace llmc {

GunzipReader::GunzipReader(const std::string& path) : input(size_t(1) << 18) {
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) input_error("cannot read ", path, ": ", std::strerror(errno));
    if (inflateInit2(&stream, 15 + 16) != Z_OK) {  // a full window, and a gzip header
        ::close(fd);
        run_error("zlib could not start reading ", path);
    }
    refill();
    packed = stream.avail_in >= 2 && input[0] == 0x1f && input[1] == 0x8b;
}

GunzipReader::~GunzipReader() {
    inflateEnd(&stream);
    ::close(fd);
}

// Fills the empty input buffer; false at the end of the file.
bool GunzipReader::refill() {
    size_t got = 0;
    while (got < input.size() && !input_ended) {
        ssize_t n = ::read(fd, input.data() + got, input.size() - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) why = std::strerror(errno);
        if (n <= 0) input_ended = true;
        else got += size_t(n);
    }
    stream.next_in = input.data();
    stream.avail_in = uInt(got);
    bytes_consumed += int64_t(got);
    return got > 0;
}

size_t GunzipReader::read(char* bytes, size_t size) {
    size_t got = 0;
    while (got < size && !done) {
        if (stream.avail_in == 0 && !refill()) {
            done = true;
            if (packed && !member_ended && why.empty()) why = "the gzip data ends early: the file is cut off";
            break;
        }
        if (packed) {
            got += inflate_some(bytes + got, size - got);
        } else {
            size_t n = std::min(size - got, size_t(stream.avail_in));
            std::memcpy(bytes + got, stream.next_in, n);
            stream.next_in += n, stream.avail_in -= uInt(n), got += n;
        }
    }
    return got;
}

size_t GunzipReader::inflate_some(char* bytes, size_t size) {
    if (member_ended) {  // and more input follows
        inflateReset(&stream);
        member_ended = false;
    }
    size = std::min(size, size_t(1) << 30);  // zlib counts in 32 bits
    stream.next_out = reinterpret_cast<Bytef*>(bytes);
    stream.avail_out = uInt(size);
    int status = inflate(&stream, Z_NO_FLUSH);
    if (status == Z_STREAM_END) {
        member_ended = true;
    } else if (status != Z_OK && status != Z_BUF_ERROR) {
        why = str("the gzip data is damaged", stream.msg ? str(" (", stream.msg, ")") : "");
        done = true;
    }
    return size - stream.avail_out;
}

}  // namespace llmc
