// The processes of a run, by TCP: a star around rank 0. What they tell each other is small; tensors go another way.
//
// Each rank has two connections to rank 0. One carries the messages. The other, the life line, is silent until a rank
// ends: it says so there, or the kernel closes the line of one that could not. The watchdog looks at it, so a rank that
// waits in a collective of GPUs hears of it too; rank 0 tells everybody.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <thread>

#include "llmc/base/clock.h"
#include "llmc/base/rng.h"
#include "llmc/base/socket.h"
#include "llmc/comm/backend.h"
#include "llmc/comm/messages.h"
#include "llmc/comm/rendezvous.h"

namespace llmc {

namespace {

enum Line : int32_t { data_line, life_line, lines };

constexpr double life_patience = 2;  // for a message on a life line, which is sent whole

struct Peer {
    int rank = 0;
    std::string host;
    Socket line[lines];
    bool here() const { return line[data_line] && line[life_line]; }
};

// Who has connected to rank 0 and not yet said who it is.
struct Guest {
    Socket socket;
    double until;  // then its time is over
    std::string said = {};
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
        meeting_now = nullptr;
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
        if (int64_t(text.size()) > longest_text)
            run_error("all_gather: a text of ", text.size(), " bytes is longer than ", longest_text);
        std::vector<std::string> all(size_t(world.size));
        std::vector<int64_t> lengths(all.size());
        std::string together;  // rank 0 sends every rank two messages, however many there are
        if (world.rank == 0) {
            all[0] = text;
            for (const Peer& peer : peers) all[size_t(peer.rank)] = receive_text(peer, receive_lengths(peer, 1)[0]);
            for (size_t r = 0; r < all.size(); r++) lengths[r] = int64_t(all[r].size()), together += all[r];
            for (const Peer& peer : peers) send_text(peer, lengths, together);
            return all;
        }
        const int64_t length = int64_t(text.size());
        send_text(peers[0], {&length, 1}, text);
        lengths = receive_lengths(peers[0], all.size());
        for (size_t r = 0; r < all.size(); r++) all[r] = receive_text(peers[0], lengths[r]);
        return all;
    }

    std::span<Activity> activities() override { return {&mine, 1}; }

    // The lock is kept to the end, so that no other thread says anything more.
    std::string problem() override {
        std::lock_guard lock(mutex);
        const LastWords words = hear_last();
        if (words.exit_code == LastWords::goodbye) return "";
        tell(words);
        if (words.text.empty()) ::_exit(words.exit_code);
        return words.text;
    }

    [[noreturn]] void abort(int exit_code) override {
        say_last({exit_code, ""});
        std::_Exit(exit_code);
    }

private:
    World& world;
    Activity mine{0};
    std::vector<Peer> peers;  // rank 0: all others, in order; others: rank 0
    std::mutex mutex;         // of life lines, which the main thread and the watchdog use
    const Rendezvous* meeting_now = nullptr;  // during the meeting, which has one end for all that is said in it
    double meeting_end = 0;

    // ---- meeting
    void begin_meeting(const Rendezvous& meeting, double seconds) {
        meeting_now = &meeting;
        meeting_end = seconds_now() + seconds;
    }
    double time_left() const { return meeting_now ? meeting_end - seconds_now() : Socket::forever; }

    Socket listen(const Rendezvous& meeting) const {
        try {
            return listen_on(meeting.port);
        } catch (const RunError& error) {
            run_error("rank 0 (", world.host, ") cannot wait for the other processes: ", error.what(),
                      "; set MASTER_PORT to a free port, the same for all of them");
        }
    }

    // Listens to all guests at once: none keeps the others waiting.
    void accept_all(const Rendezvous& meeting) {
        for (int r = 1; r < world.size; r++) peers.emplace_back().rank = r;
        begin_meeting(meeting, meeting.seconds);
        const Socket listener = listen(meeting);
        const size_t most = size_t(world.size) * lines + 64;  // guests
        std::vector<Guest> guests;
        while (!std::all_of(peers.begin(), peers.end(), [](const Peer& peer) { return peer.here(); })) {
            if (time_left() <= 0) miss_some(all_absent());
            double end = meeting_end;
            std::vector<const Socket*> sockets = {&listener};
            for (const Guest& guest : guests) sockets.push_back(&guest.socket), end = std::min(end, guest.until);
            wait_for_any(sockets, end - seconds_now());
            if (Socket socket = accept_from(listener, 0)) {
                if (guests.size() == most) guests.erase(guests.begin());
                guests.push_back({std::move(socket), seconds_now() + meeting.patience});
            }
            std::erase_if(guests, [&](Guest& guest) { return is_done(guest); });
        }
    }

    // True if the guest has become a peer, is a stranger, or has used up its time.
    bool is_done(Guest& guest) {
        char bytes[hello_bytes];
        const int64_t size = guest.socket.receive_now(bytes, hello_bytes - guest.said.size());
        if (size < 0) return true;
        guest.said.append(bytes, size_t(size));
        if (guest.said.size() < hello_bytes) return seconds_now() > guest.until;
        if (const std::optional<Hello> hello = read_hello(guest.said)) admit(std::move(guest.socket), *hello);
        return true;
    }

    void admit(Socket socket, const Hello& hello) {
        const Welcome welcome = {hash_of(meeting_now->job)};
        if (hello.job != welcome.job) return;
        if (hello.size != world.size)
            run_error("rank ", hello.rank, " (", hello.host, ") was started as one of ", hello.size,
                      " processes, rank 0 (", world.host, ") as one of ", world.size, ": start all with one command");
        if (hello.rank < 1 || hello.rank >= world.size || hello.line < 0 || hello.line >= lines) return;
        Peer& peer = peers[size_t(hello.rank - 1)];
        if (peer.line[hello.line])
            run_error("two processes say that they are rank ", hello.rank, ", on ", peer.host, " and ", hello.host,
                      ": start all with one command");
        if (!socket.send(bytes_of(welcome).data(), welcome_bytes, 0)) return;
        peer.host = hello.host;
        peer.line[hello.line] = std::move(socket);
    }

    std::vector<int> all_absent() const {
        std::vector<int> absent;
        for (const Peer& peer : peers)
            if (!peer.here()) absent.push_back(peer.rank);
        return absent;
    }

    // The ranks of which nothing was heard, `first` and those after it.
    std::vector<int> all_silent(int first) const {
        std::vector<int> silent;
        for (const Peer& peer : peers)
            if (peer.rank == first || (peer.rank > first && !peer.line[data_line].readable(0)))
                silent.push_back(peer.rank);
        return silent;
    }

    [[noreturn]] void miss_some(const std::vector<int>& missing) const {
        const bool connected = all_absent().empty();
        run_error(missing.size() > 1 ? "ranks " : "rank ", ranges(missing), " of ", world.size,
                  connected ? " connected to rank 0 (" : " did not connect to rank 0 (", world.host, ", port ",
                  meeting_now->port, connected ? ") but did not say all within " : ") within ", meeting_now->seconds,
                  " seconds: look for their own messages, and whether their hosts may connect to this one");
    }

    Peer find_rank_0(const Rendezvous& meeting) {
        Peer peer;
        peer.host = meeting.host;
        begin_meeting(meeting, meeting.seconds);
        for (int line = 0; line < lines; line++) peer.line[line] = knock(meeting, line);
        // Rank 0's own meeting ends before this one. It says who is missing.
        begin_meeting(meeting, meeting.seconds + meeting.patience);
        return peer;
    }

    // One connection to rank 0.
    Socket knock(const Rendezvous& meeting, int line) const {
        const Hello hello = {hash_of(meeting.job), world.rank, world.size, line, world.host};
        std::string why = "no time left";
        for (; time_left() > 0; std::this_thread::sleep_for(std::chrono::milliseconds(100))) {
            Socket socket = connect_to(meeting.host, meeting.port, time_left(), why);
            if (!socket) continue;
            why = "another program answers there";
            std::string answer(welcome_bytes, '\0');
            if (!socket.send(bytes_of(hello).data(), hello_bytes, time_left()) ||
                !socket.receive(answer.data(), answer.size(), time_left()))
                continue;
            const std::optional<Welcome> welcome = read_welcome(answer);
            if (welcome && welcome->job == hello.job) return socket;
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
    [[noreturn]] void lost(const Peer& peer) const {
        if (time_left() <= 0) {
            if (world.rank == 0) miss_some(all_silent(peer.rank));
            run_error("rank 0 at ", peer.host, ", port ", meeting_now->port, ", fell silent: look for its message");
        }
        std::this_thread::sleep_for(std::chrono::seconds(3));
        run_error(gone(peer));
    }
    void send(const Peer& peer, const void* bytes, int64_t count) const {
        if (!peer.line[data_line].send(bytes, size_t(count), time_left())) lost(peer);
    }
    void receive(const Peer& peer, void* bytes, int64_t count) const {
        if (!peer.line[data_line].receive(bytes, size_t(count), time_left())) lost(peer);
    }
    void send_text(const Peer& peer, std::span<const int64_t> lengths, const std::string& text) const {
        send(peer, lengths.data(), int64_t(lengths.size_bytes()));
        send(peer, text.data(), int64_t(text.size()));
    }
    std::vector<int64_t> receive_lengths(const Peer& peer, size_t count) const {
        std::string bytes(count * sizeof(int64_t), '\0');
        receive(peer, bytes.data(), int64_t(bytes.size()));
        auto lengths = read_lengths(bytes);
        if (!lengths)
            run_error("rank ", peer.rank, " (", peer.host, ") sent the length of a text that is not between 0 and ",
                      longest_text, ": start all ranks from one build, and let no other program use their port");
        return *std::move(lengths);
    }
    // Memory is taken as bytes come, not because a length says so.
    std::string receive_text(const Peer& peer, int64_t length) const {
        constexpr int64_t piece = 1 << 20;
        std::string text;
        for (int64_t done = 0, now; done < length; done += now) {
            now = std::min(piece, length - done);
            text.resize(size_t(done + now));
            receive(peer, text.data() + done, now);
        }
        return text;
    }

    // ---- life lines
    void say_last(const LastWords& words) {
        std::lock_guard lock(mutex);
        tell(words);
    }
    void tell(const LastWords& words) {
        const std::string bytes = bytes_of(words);
        for (const Peer& peer : peers)
            if (peer.line[life_line]) peer.line[life_line].send(bytes.data(), bytes.size(), life_patience);
    }
    // Of the first rank that has ended otherwise than well; a goodbye if there is none.
    LastWords hear_last() {
        for (Peer& peer : peers) {
            Socket& line = peer.line[life_line];
            if (!line || !line.readable(0)) continue;
            std::string bytes(last_words_bytes, '\0');
            std::optional<LastWords> words;
            if (line.receive(bytes.data(), bytes.size(), life_patience)) words = read_last_words(bytes);
            if (!words) words = {1, gone(peer)};
            line.close();
            if (words->exit_code != LastWords::goodbye) return *words;
        }
        return {};
    }
};

}  // namespace

std::unique_ptr<Processes> tcp_processes_start(const Rendezvous& meeting, World& world) {
    return std::make_unique<TcpProcesses>(meeting, world);
}

}  // namespace llmc
