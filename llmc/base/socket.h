// TCP connections between processes on a trusted network. Sockets close themselves; messages are sent and received
// whole.
#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>

namespace llmc {

class Socket {
public:
    Socket() = default;
    explicit Socket(int descriptor) : fd(descriptor) {}
    ~Socket() { close(); }
    Socket(Socket&& other) noexcept : fd(std::exchange(other.fd, -1)) {}
    Socket& operator=(Socket&& other) noexcept {
        std::swap(fd, other.fd);
        return *this;
    }

    explicit operator bool() const { return fd >= 0; }
    int descriptor() const { return fd; }
    void close();

    static constexpr double forever = std::numeric_limits<double>::infinity();

    // Sends or receives all `size` bytes. False if the other side has closed the connection, or if all of it takes
    // longer than this.
    bool send(const void* bytes, size_t size, double seconds = forever) const;
    bool receive(void* bytes, size_t size, double seconds = forever) const;

    // Receives up to `size` bytes that are here already, and returns their number; -1 if no more can come.
    int64_t receive_now(void* bytes, size_t size) const;

    // Waits up to this time; true if there is something to receive or the other side has closed.
    bool readable(double seconds) const;

private:
    int fd = -1;
};

// Listens at this port on all addresses of this host. RunError with the reason.
Socket listen_on(int port);

// Waits up to this time until one of these sockets is readable.
void wait_for_any(std::span<const Socket* const> sockets, double seconds);

// The next incoming connection; an empty Socket if there is none within this time.
Socket accept_from(const Socket& listener, double seconds);

// One attempt to connect, of at most this time; an empty Socket, and the reason in `why`, if it fails.
Socket connect_to(const std::string& host, int port, double seconds, std::string& why);

}  // namespace llmc
