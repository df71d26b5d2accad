// Names are in Linux's abstract namespace: a socket there is no file, and goes with its process.
#include "dev/emu/nccl_peers.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <thread>

#include "dev/emu/sanitizers.h"
#include "dev/emu/settings.h"

namespace emu {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// -------------------------------------------------------------------------------------------------------- the meeting
struct Address {  // of one rank
    sockaddr_un socket{};
    socklen_t size;

    Address(const std::string& name, int rank) {
        const std::string text = name + "." + std::to_string(rank);
        socket.sun_family = AF_UNIX;
        text.copy(socket.sun_path + 1, sizeof socket.sun_path - 1);  // the zero before it says that it is abstract
        size = socklen_t(offsetof(sockaddr_un, sun_path) + 1 + text.size());
    }
    const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&socket); }
};

int new_socket() {
    const int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (made < 0) fail("NCCL gets no socket: %s", strerror(errno));
    return made;
}

// -------------------------------------------------------------------------------------------------------- an exchange
// Letters to one peer, or from it. Each is preceded by its size, so that two ranks that do not agree are found out.
class Lane {
public:
    const int peer;
    const bool sends;

    Lane(int peer, bool sends, const std::vector<Letter>& all) : peer(peer), sends(sends) {
        for (const Letter& letter : all)
            if (letter.peer == peer) letters.push_back(letter);
    }
    bool over() const { return at == letters.size(); }

    // Moves as much as the socket takes or has, without waiting. False if the peer is gone.
    bool advance(int socket) {
        while (!over()) {
            const Letter& letter = letters[at];
            if (sends) size = letter.bytes;
            const bool in_size = moved < sizeof size;
            char* from = in_size ? reinterpret_cast<char*>(&size) + moved
                                 : static_cast<char*>(letter.data) + (moved - sizeof size);
            const size_t left = sizeof size + (in_size ? 0 : letter.bytes) - moved;
            const ssize_t n = sends ? send(socket, from, left, MSG_DONTWAIT | MSG_NOSIGNAL)
                                    : recv(socket, from, left, MSG_DONTWAIT);
            if (n < 0 && errno == EINTR) continue;
            if (n < 0 && errno == EAGAIN) return true;
            if (n <= 0) return false;
            moved += size_t(n);
            if (moved == sizeof size && size != letter.bytes)
                fail("NCCL: rank %d sends %zu bytes where %zu are expected: the ranks do not call the same", peer,
                     size_t(size), letter.bytes);
            if (moved == sizeof size + letter.bytes) at++, moved = 0;
        }
        return true;
    }

private:
    std::vector<Letter> letters;
    size_t at = 0, moved = 0;  // which letter, and how many bytes of its size and itself
    uint64_t size = 0;
};

}  // namespace

std::string random_name() {
    unsigned char bytes[16];
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) fail("NCCL gets no random name: %s", strerror(errno));
    std::string name = "emulated-nccl-";
    for (unsigned char byte : bytes)
        for (int digit : {byte >> 4, byte & 15}) name += "0123456789abcdef"[digit];
    return name;
}

// Each rank calls those below it, and is there to be called before it does.
std::shared_ptr<Peers> Peers::meet(const std::string& name, int ranks, int rank) {
    const std::shared_ptr<Peers> peers(new Peers(ranks, rank));
    const Address mine(name, rank);
    const int listener = new_socket();
    const double end = now() + settings().patience;
    bool met = bind(listener, mine.get(), mine.size) == 0 && listen(listener, ranks) == 0;
    if (!met)
        fprintf(stderr, "emulated NCCL: %s rank %d of %d: %s\n",
                errno == EADDRINUSE ? "there is another" : "nobody can call", rank, ranks, strerror(errno));
    met = met && peers->call_lower(name, end) && peers->admit_higher(listener, end);
    close(listener);
    return met ? peers : nullptr;
}

bool Peers::call_lower(const std::string& name, double end) {
    for (int peer = 0; peer < rank; peer++) {
        const Address theirs(name, peer);
        const int socket = sockets[size_t(peer)] = new_socket();
        while (connect(socket, theirs.get(), theirs.size) != 0) {
            if (now() >= end) return miss(peer);
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
        if (send(socket, &rank, sizeof rank, MSG_NOSIGNAL) != sizeof rank) return miss(peer);
    }
    return true;
}

bool Peers::admit_higher(int listener, double end) {
    for (;;) {
        const auto missing = std::find(sockets.begin() + rank + 1, sockets.end(), -1);
        if (missing == sockets.end()) return true;
        const double left = end - now();
        if (left <= 0) return miss(int(missing - sockets.begin()));
        pollfd wait{listener, POLLIN, 0};
        if (poll(&wait, 1, 1 + int(left * 1000)) != 1) continue;
        const int socket = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
        const timeval second{1, 0};  // for one who calls and says nothing
        setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
        int peer = -1;
        const bool speaks = socket >= 0 && recv(socket, &peer, sizeof peer, MSG_WAITALL) == sizeof peer;
        if (speaks && peer > rank && peer < ranks && sockets[size_t(peer)] < 0) sockets[size_t(peer)] = socket;
        else if (socket >= 0) close(socket);
    }
}

bool Peers::miss(int peer) const {
    fprintf(stderr, "emulated NCCL: rank %d of %d did not come within %d seconds (rank %d waits)\n", peer, ranks,
            settings().patience, rank);
    return false;
}

// The last owner closes. That the others are done is known from the count of owners, which TSan does not see here.
struct Use {
    void* of;
    ~Use() { release(of); }
};

Peers::~Peers() {
    acquire(this);
    for (int socket : sockets)
        if (socket >= 0) close(socket);
}

bool Peers::exchange(const std::vector<Letter>& out, const std::vector<Letter>& in) {
    const Use use{this};
    std::vector<Lane> lanes;
    for (int peer = 0; peer < ranks; peer++)
        if (peer != rank) lanes.emplace_back(peer, true, out), lanes.emplace_back(peer, false, in);
    for (;;) {
        std::vector<pollfd> waits;
        int gone = -1;
        for (Lane& lane : lanes) {
            const int socket = sockets[size_t(lane.peer)];
            if (!lane.advance(socket)) gone = lane.peer;
            if (!lane.over()) waits.push_back({socket, short(lane.sends ? POLLOUT : POLLIN), 0});
        }
        if (gone >= 0) return lose(gone);  // not before its last letter was read, which may say why
        if (waits.empty()) return true;
        poll(waits.data(), waits.size(), -1);
    }
}

// The other side sees it too: an abort of one rank is an error of all.
void Peers::abort() {
    const Use use{this};
    aborted = true;
    aborted.notify_all();
    for (int socket : sockets)
        if (socket >= 0) shutdown(socket, SHUT_RDWR);
}

bool Peers::lose(int peer) {
    if (!aborted) {
        fprintf(stderr, "emulated NCCL: rank %d of %d is gone: it has ended, was killed, or gave up (rank %d waits)\n",
                peer, ranks, rank);
        lost = true;
        aborted.wait(false);
    }
    return false;
}

}  // namespace emu
