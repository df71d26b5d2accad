// TCP between processes that trust each other's network: sockets that close themselves, whole messages.
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

    // All of the bytes, or false: the other side has closed, or nothing moved for as long as set_patience allows.
    bool send(const void* bytes, size_t size) const;
    bool receive(void* bytes, size_t size) const;
    void set_patience(double seconds) const;  // 0: for ever, as at first

    // Whether there is something to receive, or the other side has closed, within this time.
    bool readable(double seconds) const;

private:
    int fd = -1;
};

// Listens on all addresses of this host. RunError with the reason.
Socket listen_on(int port);

// The next one who connects; an empty Socket if nobody does within this time.
Socket accept_from(const Socket& listener, double seconds);

// One attempt of at most this time; an empty Socket, and why, if it fails.
Socket connect_to(const std::string& host, int port, double seconds, std::string& why);

}  // namespace llmc
