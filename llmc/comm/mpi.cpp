// COMM=mpi: collectives on the CPU's tensors.
//
// All are made of one exchange: every rank sends each other rank its share directly, and sums are taken where they
// belong, in the order of the ranks. So a sum has the same bits however the tensor is cut into parts and pieces, and on
// every rank, and what crosses the wire is what rings need: (W-1)/W of the tensor, twice for all_reduce.
#include <cstring>
#include <numeric>

#include "llmc/comm/mpi.h"
#include "llmc/ops/checks/common.h"

namespace llmc {

namespace {

MPI_Datatype mpi_type(DType dtype) {
    switch (dtype) {
        case DType::f32: return MPI_FLOAT;
        case DType::f64: return MPI_DOUBLE;
        case DType::bf16: return MPI_UINT16_T;
        case DType::i32: return MPI_INT32_T;
    }
    run_error("there is no dtype number ", int(dtype));
}

// What comes from others to be added is held in pieces of about this size: it should still be in the cache then.
constexpr int64_t held_bytes = 1 << 20, smallest_piece = 16 << 10;

int64_t piece_bytes(int64_t part_bytes, int size) {
    return std::min(round_up(part_bytes, 64), round_up(std::max(held_bytes / (size - 1), smallest_piece), 64));
}

struct Elements {
    char* data;
    int64_t count;
};

class MpiTransport final : public Transport {
public:
    MpiTransport(World& w, Context& c, Ranks ranks, Comm& o) : world(w), ctx(c), owner(o), me(o.rank), size(o.size) {
        const int same_group = ranks.first, order = world.rank;
        check_mpi(MPI_Comm_split(mpi_comm(world), same_group, order, &group), "MPI_Comm_split", world);
        requests.reserve(size_t(2 * size));
    }
    ~MpiTransport() override { MPI_Comm_free(&group); }

    void broadcast(Tensor t, int root) override {
        for (int64_t done = 0; done < t.numel(); done += owner.largest_message) {
            const Elements e = cut({bytes_of(t), t.numel()}, done, owner.largest_message, size_of(t.dtype));
            check_mpi(MPI_Bcast(e.data, int(e.count), mpi_type(t.dtype), root, group), "broadcast", world);
        }
        if (me != root) owner.received += t.bytes();
    }

    void all_reduce(Tensor t, void* workspace) override {
        Elements mine = part(t, me);
        sum(mine, t, workspace, "all_reduce");
        spread(t, mine, "all_reduce");
    }
    void reduce_scatter(Tensor out, Tensor in, void* workspace) override {
        sum({bytes_of(out), out.numel()}, in, workspace, "reduce_scatter");
    }
    void all_gather(Tensor out, Tensor in) override { spread(out, {bytes_of(in), in.numel()}, "all_gather"); }

    void all_to_all(Tensor out, Tensor in) override {
        const int64_t bytes = part(in, me).count * size_of(in.dtype);
        std::memcpy(part(out, me).data, part(in, me).data, size_t(bytes));
        exchange(owner.largest_message, in.dtype, "all_to_all", [&](int r) { return part(in, r); },
                 [&](int r) { return part(out, r); });
    }

    void all_to_all_uneven(Tensor out, Tensor in, const std::vector<int64_t>& receive,
                           const std::vector<int64_t>& send) override {
        const int64_t element = size_of(in.dtype);
        auto part = [&](const Tensor& t, const std::vector<int64_t>& counts, int r) {
            const int64_t begin = std::accumulate(counts.begin(), counts.begin() + r, int64_t(0));
            return Elements{bytes_of(t) + begin * element, counts[size_t(r)]};
        };
        std::memcpy(part(out, receive, me).data, part(in, send, me).data, size_t(send[size_t(me)] * element));
        exchange(owner.largest_message, in.dtype, "all_to_all_rows", [&](int r) { return part(in, send, r); },
                 [&](int r) { return part(out, receive, r); });
    }

private:
    World& world;
    Context& ctx;
    Comm& owner;
    const int me, size;
    MPI_Comm group = MPI_COMM_NULL;
    std::vector<MPI_Request> requests;

    static char* bytes_of(const Tensor& t) { return static_cast<char*>(t.data); }

    // Part number r of a tensor that all ranks share as equally as possible.
    Elements part(const Tensor& t, int r) const {
        const auto [begin, end] = part_of(t.numel(), r, size);
        return {bytes_of(t) + begin * size_of(t.dtype), end - begin};
    }
    // At most `count` elements from `begin` on.
    static Elements cut(Elements e, int64_t begin, int64_t count, int64_t element) {
        begin = std::min(begin, e.count);
        return {e.data + begin * element, std::min(count, e.count - begin)};
    }

    // Sends send(r) to every other rank r and receives receive(r) from it, all at once.
    template <class Send, class Receive>
    void exchange_once(DType dtype, const char* name, const Send& send, const Receive& receive) {
        requests.clear();
        auto start = [&](auto&& post, Elements e, int r) {
            if (e.count == 0) return;
            requests.emplace_back();
            check_mpi(post(e.data, int(e.count), mpi_type(dtype), r, 0, group, &requests.back()), name, world);
        };
        for (int ahead = 1; ahead < size; ahead++) {  // nearest first: not all ranks send to the same one
            const int from = (me + size - ahead) % size;
            const Elements e = receive(from);
            start(MPI_Irecv, e, from);
            owner.received += e.count * size_of(dtype);
        }
        for (int ahead = 1; ahead < size; ahead++) {
            const int to = (me + ahead) % size;
            start(MPI_Isend, send(to), to);
        }
        check_mpi(MPI_Waitall(int(requests.size()), requests.data(), MPI_STATUSES_IGNORE), name, world);
    }

    // The same in messages of at most `piece` elements. All ranks make as many steps as the longest part needs.
    template <class Send, class Receive>
    void exchange(int64_t piece, DType dtype, const char* name, const Send& send, const Receive& receive) {
        int64_t longest = 0;
        for (int r = 0; r < size; r++) longest = std::max({longest, send(r).count, receive(r).count});
        for (int64_t done = 0; done < longest; done += piece)
            exchange_once(dtype, name, [&](int r) { return cut(send(r), done, piece, size_of(dtype)); },
                          [&](int r) { return cut(receive(r), done, piece, size_of(dtype)); });
    }

    // whole's part of every rank = that rank's `mine`.
    void spread(const Tensor& whole, Elements mine, const char* name) {
        const Elements place = part(whole, me);
        if (place.data != mine.data) std::memcpy(place.data, mine.data, size_t(mine.count * size_of(whole.dtype)));
        exchange(owner.largest_message, whole.dtype, name, [&](int) { return mine; },
                 [&](int r) { return part(whole, r); });
    }

    // out = the sum over ranks of their `in`'s part of this rank. out may be that part.
    void sum(Elements out, const Tensor& in, void* workspace, const char* name) {
        const int64_t element = size_of(in.dtype), longest = (in.numel() + size - 1) / size;
        const int64_t held = piece_bytes(longest * element, size);
        const int64_t piece = std::min(held / element, owner.largest_message);
        const Elements mine = part(in, me);
        auto slot = [&](int r) { return static_cast<char*>(workspace) + (r < me ? r : r - 1) * held; };
        for (int64_t done = 0; done < longest; done += piece) {
            const Elements to = cut(out, done, piece, element);
            exchange_once(in.dtype, name, [&](int r) { return cut(part(in, r), done, piece, element); },
                          [&](int r) { return Elements{slot(r), to.count}; });
            auto from = [&](int r) { return r == me ? mine.data + done * element : slot(r); };
            switch (in.dtype) {
                case DType::f32: add<float>(to, from); break;
                case DType::f64: add<double>(to, from); break;
                case DType::bf16:
                case DType::i32: run_error(name, ": ", name_of(in.dtype), " is not summed");
            }
        }
    }

    // to = from(0) + from(1) + ..., in this order. One of them may be `to` itself.
    template <class T, class From>
    void add(Elements to, const From& from) {
        constexpr int64_t block = 1024;  // sums that stay in the first cache
#pragma omp parallel for schedule(static) num_threads(ctx.threads) if (to.count > 16 * block)
        for (int64_t begin = 0; begin < to.count; begin += block) {
            const int64_t n = std::min(block, to.count - begin);
            T sums[block] = {};
            for (int r = 0; r < size; r++) {
                const T* x = reinterpret_cast<const T*>(from(r)) + begin;
                for (int64_t i = 0; i < n; i++) sums[i] = r == 0 ? x[i] : sums[i] + x[i];
            }
            std::copy_n(sums, n, reinterpret_cast<T*>(to.data) + begin);
        }
    }
};

}  // namespace

std::unique_ptr<Transport> transport_create(World& world, Context& ctx, Ranks ranks, Comm& comm) {
    return std::make_unique<MpiTransport>(world, ctx, ranks, comm);
}

bool transport_needs_mpi() { return true; }
int choose_device(World&) { return -1; }

// A slot for what comes from each other rank.
int64_t reduction_workspace(int64_t bytes, int size) {
    if (size == 1 || bytes == 0) return 0;
    const int64_t longest = bytes / size + 8;  // parts differ by one element
    return (size - 1) * piece_bytes(longest, size);
}

}  // namespace llmc
