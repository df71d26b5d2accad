// The processes of a run, by TCP: a star around rank 0. What they tell each other is small; tensors go another way.
//
// Each rank has two connections to rank 0. One carries the messages. The other, the life line, is silent until a rank
// ends: it says so there, or the kernel closes the line of one that could not. The watchdog looks at it, so a rank that
// waits in a collective of GPUs hears of it too; rank 0 tells everybody.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <thread>

#include "llmc/base/socket.h"
#include "llmc/comm/backend.h"
#include "llmc/comm/rendezvous.h"
#include "llmc/base/rng.h"

namespace llmc {

namespace {

double seconds_now() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// ------------------------------------------------------------------------------------------------ what is sent
enum Line : int32_t { data_line, life_line, lines };

// What a process says first, and rank 0's answer. Whoever says something else is a stranger.
struct Hello {
    char magic[8] = {'m', 'o', 't', '.', 'c', 'u', '/', '1'};
    uint64_t job = 0;
    int32_t rank = 0, size = 0, line = 0;
    char host[68] = "";
};
struct Welcome {
    char magic[8] = {'w', 'e', 'l', 'c', 'o', 'm', 'e', '1'};
    uint64_t job = 0;
};

// The last words on a life line. No text: the rank has said itself why it ends, or all is well.
struct LastWords {
    static constexpr int32_t goodbye = -1;
    int32_t exit_code = goodbye;
    char text[252] = "";
};

template <size_t n>
void write(char (&to)[n], const std::string& text) {
    to[text.copy(to, n - 1)] = '\0';
}

struct Peer {
    int rank = 0;
    std::string host;
    Socket line[lines];
    bool here() const { return line[data_line] && line[life_line]; }
};

// "1, 3-5"
std::string ranges(const std::vector<int>& ranks) {
    std::string text;
    for (size_t i = 0, end; i < ranks.size(); i = end) {
        for (end = i + 1; end < ranks.size() && ranks[end] == ranks[end - 1] + 1;) end++;
        text += str(i ? ", " : "", ranks[i]);
        if (end > i + 1) text += str(end > i + 2 ? "-" : ", ", ranks[end - 1]);
    }
    return text;
}

// ------------------------------------------------------------------------------------------------ the processes
class TcpProcesses final : public Processes {
public:
    TcpProcesses(const Rendezvous& meeting, World& w) : world(w) {
        world.rank = mine.rank = meeting.rank;
        world.size = meeting.size;
        if (world.rank == 0) accept_all(meeting);
        else peers.push_back(find_rank_0(meeting));
        const std::vector<std::string> hosts = all_gather(world.host);
        world.local_rank = int(std::count(hosts.begin(), hosts.begin() + world.rank, world.host));
        world.local_size = int(std::count(hosts.begin(), hosts.end(), world.host));
    }
    ~TcpProcesses() override { say_last({}); }

    void barrier() override { all_gather(""); }

    void broadcast(void* bytes, int64_t count, int root) override {
        if (world.rank != 0) {
            if (world.rank == root) send(peers[0], bytes, count);
            else receive(peers[0], bytes, count);
            return;
        }
        for (const Peer& peer : peers)
            if (peer.rank == root) receive(peer, bytes, count);
        for (const Peer& peer : peers)
            if (peer.rank != root) send(peer, bytes, count);
    }

    std::vector<std::string> all_gather(const std::string& text) override {
        std::vector<std::string> all(size_t(world.size));
        std::vector<int64_t> sizes(all.size());
        std::string together;  // rank 0 sends every rank two messages, however many there are
        if (world.rank == 0) {
            all[0] = text;
            for (const Peer& peer : peers) all[size_t(peer.rank)] = receive_text(peer);
            for (size_t r = 0; r < all.size(); r++) sizes[r] = int64_t(all[r].size()), together += all[r];
            for (const Peer& peer : peers) {
                send(peer, sizes.data(), int64_t(sizes.size() * sizeof sizes[0]));
                send(peer, together.data(), int64_t(together.size()));
            }
            return all;
        }
        send_text(peers[0], text);
        receive(peers[0], sizes.data(), int64_t(sizes.size() * sizeof sizes[0]));
        together.resize(size_t(std::accumulate(sizes.begin(), sizes.end(), int64_t(0))));
        receive(peers[0], together.data(), int64_t(together.size()));
        size_t begin = 0;
        for (size_t r = 0; r < all.size(); begin += size_t(sizes[r++]))
            all[r] = together.substr(begin, size_t(sizes[r]));
        return all;
    }

    std::span<Activity> activities() override { return {&mine, 1}; }

    // The lock is kept to the end, so that no other thread says anything more.
    std::string problem() override {
        std::lock_guard lock(mutex);
        const LastWords words = hear_last();
        if (words.exit_code == LastWords::goodbye) return "";
        tell(words);
        if (!*words.text) ::_exit(words.exit_code);
        return words.text;
    }

    [[noreturn]] void abort(int exit_code) override {
        LastWords words;
        words.exit_code = exit_code;
        say_last(words);
        std::_Exit(exit_code);
    }

private:
    World& world;
    Activity mine{0};
    std::vector<Peer> peers;  // rank 0: all others, in order; others: rank 0
    std::mutex mutex;         // of life lines, which the main thread and the watchdog use

    // ---- meeting
    void accept_all(const Rendezvous& meeting) {
        for (int r = 1; r < world.size; r++) peers.emplace_back().rank = r;
        const double end = seconds_now() + meeting.seconds;
        Socket listener;
        try {
            listener = listen_on(meeting.port);
        } catch (const RunError& error) {
            run_error("rank 0 (", world.host, ") cannot wait for the other processes: ", error.what(),
                      "; set MASTER_PORT to a free port, the same for all of them");
        }
        while (!std::all_of(peers.begin(), peers.end(), [](const Peer& peer) { return peer.here(); })) {
            const double left = end - seconds_now();
            if (left <= 0) miss_some(meeting);
            if (Socket socket = accept_from(listener, left)) admit(std::move(socket), meeting);
        }
    }

    void admit(Socket socket, const Rendezvous& meeting) {
        constexpr double patience = 2;  // who comes has something to say
        Hello hello;
        const Hello ours;
        Welcome welcome;
        welcome.job = hash_of(meeting.job);
        socket.set_patience(patience);
        if (!socket.receive(&hello, sizeof hello)) return;
        if (std::memcmp(hello.magic, ours.magic, sizeof ours.magic) || hello.job != welcome.job) return;
        hello.host[sizeof hello.host - 1] = '\0';
        if (hello.size != world.size)
            run_error("rank ", hello.rank, " (", hello.host, ") was started as one of ", hello.size,
                      " processes, rank 0 (", world.host, ") as one of ", world.size, ": start all with one command");
        if (hello.rank < 1 || hello.rank >= world.size || hello.line < 0 || hello.line >= lines) return;
        Peer& peer = peers[size_t(hello.rank - 1)];
        if (peer.line[hello.line])
            run_error("two processes say that they are rank ", hello.rank, ", on ", peer.host, " and ", hello.host,
                      ": start all with one command");
        if (!socket.send(&welcome, sizeof welcome)) return;
        socket.set_patience(0);
        peer.host = hello.host;
        peer.line[hello.line] = std::move(socket);
    }

    [[noreturn]] void miss_some(const Rendezvous& meeting) const {
        std::vector<int> missing;
        for (const Peer& peer : peers)
            if (!peer.here()) missing.push_back(peer.rank);
        run_error(missing.size() > 1 ? "ranks " : "rank ", ranges(missing), " of ", world.size,
                  " did not connect to rank 0 (", world.host, ", port ", meeting.port, ") within ", meeting.seconds,
                  " seconds: look for their own messages, and whether their hosts may connect to this one");
    }

    Peer find_rank_0(const Rendezvous& meeting) const {
        Peer peer;
        peer.host = meeting.host;
        const double end = seconds_now() + meeting.seconds;
        for (int line = 0; line < lines; line++) peer.line[line] = knock(meeting, line, end);
        return peer;
    }

    Socket knock(const Rendezvous& meeting, int line, double end) const {
        Hello hello;
        hello.job = hash_of(meeting.job);
        hello.rank = world.rank, hello.size = world.size, hello.line = line;
        write(hello.host, world.host);
        std::string why = "no time left";
        for (double left; (left = end - seconds_now()) > 0;) {
            Socket socket = connect_to(meeting.host, meeting.port, left, why);
            Welcome welcome, ours;
            if (socket) {
                why = "another program answers there";
                socket.set_patience(left);
                if (socket.send(&hello, sizeof hello) && socket.receive(&welcome, sizeof welcome) &&
                    welcome.job == hello.job && !std::memcmp(welcome.magic, ours.magic, sizeof ours.magic)) {
                    socket.set_patience(0);
                    return socket;
                }
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
        }
        run_error("rank ", world.rank, " (", world.host, ") could not reach rank 0 at ", meeting.host, ", port ",
                  meeting.port, ", within ", meeting.seconds, " seconds (", why,
                  "): check that it runs there and that the address is right; "
                  "MASTER_ADDR and MASTER_PORT set another one");
    }

    // ---- messages
    static std::string gone(const Peer& peer) {
        return str("rank ", peer.rank, " (", peer.host,
                   ") is gone: it gave up (and says why), was killed, or cannot be reached any more");
    }
    // The watchdog knows more and ends this process. Only while the World is being made there is none.
    [[noreturn]] static void lost(const Peer& peer) {
        std::this_thread::sleep_for(std::chrono::seconds(3));
        run_error(gone(peer));
    }
    static void send(const Peer& peer, const void* bytes, int64_t count) {
        if (!peer.line[data_line].send(bytes, size_t(count))) lost(peer);
    }
    static void receive(const Peer& peer, void* bytes, int64_t count) {
        if (!peer.line[data_line].receive(bytes, size_t(count))) lost(peer);
    }
    static void send_text(const Peer& peer, const std::string& text) {
        const int64_t size = int64_t(text.size());
        send(peer, &size, sizeof size);
        send(peer, text.data(), size);
    }
    static std::string receive_text(const Peer& peer) {
        int64_t size = 0;
        receive(peer, &size, sizeof size);
        std::string text(size_t(size), '\0');
        receive(peer, text.data(), size);
        return text;
    }

    // ---- life lines
    void say_last(const LastWords& words) {
        std::lock_guard lock(mutex);
        tell(words);
    }
    void tell(const LastWords& words) {
        for (const Peer& peer : peers)
            if (peer.line[life_line]) peer.line[life_line].send(&words, sizeof words);
    }
    // Of the first rank that has ended otherwise than well; a goodbye if there is none.
    LastWords hear_last() {
        for (Peer& peer : peers) {
            Socket& line = peer.line[life_line];
            if (!line || !line.readable(0)) continue;
            LastWords words;
            if (!line.receive(&words, sizeof words)) {
                words.exit_code = 1;
                write(words.text, gone(peer));
            }
            line.close();
            if (words.exit_code != LastWords::goodbye) return words;
        }
        return {};
    }
};

}  // namespace

std::unique_ptr<Processes> tcp_processes_start(const Rendezvous& meeting, World& world) {
    return std::make_unique<TcpProcesses>(meeting, world);
}

}  // namespace llmc
