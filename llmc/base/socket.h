// TCP connections between processes on a trusted network. Sockets close themselves; messages are sent and received
// whole.
#pragma once
#include <cstddef>
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

    // Sends or receives all `size` bytes. False if the other side has closed the connection or nothing was transferred
    // for the time of set_patience.
    bool send(const void* bytes, size_t size) const;
    bool receive(void* bytes, size_t size) const;
    void set_patience(double seconds) const;  // 0, the default: wait without limit

    // Waits up to this time; true if there is something to receive or the other side has closed.
    bool readable(double seconds) const;

private:
    int fd = -1;
};

// Listens at this port on all addresses of this host. RunError with the reason.
Socket listen_on(int port);

// The next incoming connection; an empty Socket if there is none within this time.
Socket accept_from(const Socket& listener, double seconds);

// One attempt to connect, of at most this time; an empty Socket, and the reason in `why`, if it fails.
Socket connect_to(const std::string& host, int port, double seconds, std::string& why);

}  // namespace llmc
