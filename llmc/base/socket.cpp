#include "llmc/base/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <memory>

#include "llmc/base/errors.h"

namespace llmc {

namespace {

void set_option(int fd, int level, int name, int value) { ::setsockopt(fd, level, name, &value, sizeof value); }

// Small messages are sent at once. A host without power sends nothing: after a minute and a half it counts as lost.
void tune(int fd) {
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 30);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 6);
}

bool wait_for(int fd, short events, double seconds) {
    pollfd entry{fd, events, 0};
    return ::poll(&entry, 1, int(std::ceil(std::max(0.0, seconds) * 1000))) > 0;
}

// Connects within the time; errno says why not.
bool connect_within(int fd, const sockaddr* address, socklen_t size, double seconds) {
    const int flags = ::fcntl(fd, F_GETFL);
    ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    if (::connect(fd, address, size) != 0) {
        if (errno != EINPROGRESS) return false;
        int error = ETIMEDOUT;
        socklen_t length = sizeof error;
        if (wait_for(fd, POLLOUT, seconds)) ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error) {
            errno = error;
            return false;
        }
    }
    return ::fcntl(fd, F_SETFL, flags) == 0;
}

}  // namespace

void Socket::close() {
    if (fd >= 0) ::close(std::exchange(fd, -1));
}

bool Socket::send(const void* bytes, size_t size) const {
    const char* from = static_cast<const char*>(bytes);
    while (size > 0) {
        const ssize_t sent = ::send(fd, from, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return false;
        from += sent, size -= size_t(sent);
    }
    return true;
}

bool Socket::receive(void* bytes, size_t size) const {
    char* to = static_cast<char*>(bytes);
    while (size > 0) {
        const ssize_t received = ::recv(fd, to, size, 0);
        if (received < 0 && errno == EINTR) continue;
        if (received <= 0) return false;
        to += received, size -= size_t(received);
    }
    return true;
}

void Socket::set_patience(double seconds) const {
    const timeval time{time_t(seconds), suseconds_t((seconds - std::floor(seconds)) * 1e6)};
    ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
}

bool Socket::readable(double seconds) const { return wait_for(fd, POLLIN, seconds); }

Socket listen_on(int port) {
    Socket listener(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in6 both{};  // all zero: any address
    sockaddr_in old{};
    both.sin6_family = AF_INET6, old.sin_family = AF_INET;
    both.sin6_port = old.sin_port = htons(uint16_t(port));
    const sockaddr* address = reinterpret_cast<sockaddr*>(&both);
    socklen_t size = sizeof both;
    if (!listener) {  // a host without IPv6
        listener = Socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        address = reinterpret_cast<sockaddr*>(&old), size = sizeof old;
    }
    set_option(listener.descriptor(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
    set_option(listener.descriptor(), SOL_SOCKET, SO_REUSEADDR, 1);  // connections that ended a moment ago do not count
    if (::bind(listener.descriptor(), address, size) != 0 || ::listen(listener.descriptor(), SOMAXCONN) != 0)
        run_error("cannot listen on port ", port, ": ", std::strerror(errno));
    return listener;
}

Socket accept_from(const Socket& listener, double seconds) {
    if (!listener.readable(seconds)) return {};
    Socket socket(::accept4(listener.descriptor(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket && (errno == EMFILE || errno == ENFILE))
        run_error("too many open files for one more connection: raise `ulimit -n`");
    if (socket) tune(socket.descriptor());
    return socket;
}

Socket connect_to(const std::string& host, int port, double seconds, std::string& why) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (const int status = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found)) {
        why = ::gai_strerror(status);
        return {};
    }
    const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, ::freeaddrinfo);
    for (const addrinfo* a = found; a; a = a->ai_next) {
        Socket socket(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
        if (socket && connect_within(socket.descriptor(), a->ai_addr, a->ai_addrlen, seconds)) {
            tune(socket.descriptor());
            return socket;
        }
        why = std::strerror(errno);
    }
    return {};
}

}  // namespace llmc
