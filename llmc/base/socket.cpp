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
#include <vector>

#include "llmc/base/clock.h"
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

// poll's time. A longer wait than a minute is several.
int milliseconds(double seconds) { return int(std::ceil(std::clamp(seconds, 0.0, 60.0) * 1000)); }

bool wait_for(int fd, short events, double seconds) {
    pollfd entry{fd, events, 0};
    const double end = seconds_now() + seconds;
    for (;;) {
        const double left = end - seconds_now();
        if (::poll(&entry, 1, milliseconds(left)) > 0) return true;
        if (left <= 0) return false;
    }
}

// Calls step(done), which transfers something without waiting, until all `size` bytes are. False if it fails, or if
// the time is over.
template <class Step>
bool transfer(int fd, short events, size_t size, double seconds, const Step& step) {
    const double end = seconds_now() + seconds;
    for (size_t done = 0; done < size;) {
        const ssize_t now = step(done);
        if (now > 0) done += size_t(now);
        else if (now == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) return false;
        else if (!wait_for(fd, events, end - seconds_now())) return false;
        if (seconds_now() > end) return done == size;
    }
    return true;
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

bool Socket::send(const void* bytes, size_t size, double seconds) const {
    const char* from = static_cast<const char*>(bytes);
    return transfer(fd, POLLOUT, size, seconds, [&](size_t done) {
        return ::send(fd, from + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT);
    });
}

bool Socket::receive(void* bytes, size_t size, double seconds) const {
    char* to = static_cast<char*>(bytes);
    return transfer(fd, POLLIN, size, seconds,
                    [&](size_t done) { return ::recv(fd, to + done, size - done, MSG_DONTWAIT); });
}

int64_t Socket::receive_now(void* bytes, size_t size) const {
    const ssize_t received = ::recv(fd, bytes, size, MSG_DONTWAIT);
    if (received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return 0;
    return received > 0 ? received : -1;
}

bool Socket::readable(double seconds) const { return wait_for(fd, POLLIN, seconds); }

void wait_for_any(std::span<const Socket* const> sockets, double seconds) {
    std::vector<pollfd> entries;
    for (const Socket* socket : sockets) entries.push_back({socket->descriptor(), POLLIN, 0});
    ::poll(entries.data(), nfds_t(entries.size()), milliseconds(seconds));
}

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
    const double end = seconds_now() + seconds;  // for all addresses together
    for (const addrinfo* a = found; a; a = a->ai_next) {
        Socket socket(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
        if (socket && connect_within(socket.descriptor(), a->ai_addr, a->ai_addrlen, end - seconds_now())) {
            tune(socket.descriptor());
            return socket;
        }
        why = std::strerror(errno);
    }
    return {};
}

}  // namespace llmc
