// Comm: what is the same on every transport. Checks, counting, one rank.
#include <numeric>

#include "llmc/comm/backend.h"
#include "llmc/ops/checks/common.h"

namespace llmc {

Comm::Comm(World& w, Context& c, Ranks r) : ranks(r), world(w), ctx(c) {
    if (ranks.count == 0) ranks = {0, 1, world.size};
    const int last = ranks.first + (ranks.count - 1) * ranks.stride, ahead = world.rank - ranks.first;
    if (ranks.first < 0 || ranks.stride < 1 || ranks.count < 1 || last >= world.size || ahead < 0 ||
        world.rank > last || ahead % ranks.stride != 0)
        run_error("ranks ", ranks.first, " to ", last, " in steps of ", ranks.stride, " of ", world.size,
                  " are not a group that contains rank ", world.rank);
    rank = ahead / ranks.stride;
    size = ranks.count;
    if (world.processes() && size > 1 && !ctx.counting) transport = transport_create(world, ctx, ranks, *this);
}

Comm::~Comm() = default;

namespace {

void check_contiguous(const Tensor& t, const char* name) {
    if (!t.contiguous()) run_error(name, ": ", t.name, " must be contiguous");
}

void check_sum(const Tensor& t, const char* name) {
    if (t.dtype != DType::f32 && t.dtype != DType::f64)
        run_error(name, ": ", t.name, " is ", name_of(t.dtype), "; only F32 and F64 are summed");
}

// part [n] of whole [size*n].
void check_part(const Tensor& part, const Tensor& whole, int size, const char* name) {
    check_contiguous(part, name);
    check_contiguous(whole, name);
    if (whole.dtype != part.dtype)
        run_error(name, ": ", part.name, " is ", name_of(part.dtype), ", ", whole.name, " is ", name_of(whole.dtype));
    if (whole.numel() != size * part.numel())
        run_error(name, ": ", whole.name, " has ", whole.numel(), " elements, expected ", size, " times the ",
                  part.numel(), " of ", part.name);
}

}  // namespace

// One collective that was checked: counts it, and carries it out. `passes`: how often the whole tensor goes round.
// One rank copies `in` to `out`, several call send(workspace).
template <class Send>
void Comm::run(const char* name, Tensor whole, int64_t passes, int64_t scratch, Tensor out, Tensor in,
               const Send& send) {
    CommCost& cost = costs[name];
    const int64_t wire = passes * (size - 1) * whole.bytes() / size;
    cost.calls++, cost.bytes += whole.bytes(), cost.wire += wire;
    write_down({.kind = Event::collective, .name = name, .bytes = whole.bytes(), .wire = wire});
    Op op(ctx, name, 0, scratch, total_bytes({out, in}));
    if (!op.run || whole.numel() == 0) return;
    if (size == 1) {
        if (out.data != in.data) copy(out, in.view(out.shape), ctx);
        return;
    }
    if (!transport) run_error(name, ": ", size, " simulated ranks can count collectives but not send data");
    const Waiting waiting(world.watchdog(), name, whole.bytes());
    send(op.workspace);
    if (ctx.profile) transport->before_compute();  // the op's time should include it
}

void Comm::broadcast(Tensor t, int root) {
    check_contiguous(t, "broadcast");
    if (root < 0 || root >= size) run_error("broadcast: there is no rank ", root, " among ", size);
    run("broadcast", t, 1, 0, t, t, [&](void*) { transport->broadcast(t, root); });
}

void Comm::all_reduce(Tensor t) {
    check_contiguous(t, "all_reduce");
    check_sum(t, "all_reduce");
    run("all_reduce", t, 2, reduction_workspace(t.bytes(), size), t, t,
        [&](void* workspace) { transport->all_reduce(t, workspace); });
}

void Comm::reduce_scatter(Tensor out, Tensor in) {
    check_part(out, in, size, "reduce_scatter");
    check_sum(in, "reduce_scatter");
    run("reduce_scatter", in, 1, reduction_workspace(in.bytes(), size), out, in,
        [&](void* workspace) { transport->reduce_scatter(out, in, workspace); });
}

void Comm::all_gather(Tensor out, Tensor in) {
    check_part(in, out, size, "all_gather");
    run("all_gather", out, 1, 0, out, in, [&](void*) { transport->all_gather(out, in); });
}

void Comm::all_to_all(Tensor out, Tensor in) {
    check_part(in, out, 1, "all_to_all");
    if (in.numel() % size != 0)
        run_error("all_to_all: ", in.name, " has ", in.numel(), " elements, which cannot be divided equally among ",
                  size, " ranks");
    run("all_to_all", in, 1, 0, out, in, [&](void*) { transport->all_to_all(out, in); });
}

void Comm::all_to_all_rows(Tensor out, Tensor in, const std::vector<int64_t>& receive,
                           const std::vector<int64_t>& send) {
    check_contiguous(out, "all_to_all_rows");
    check_contiguous(in, "all_to_all_rows");
    if (out.dtype != in.dtype || out.columns() != in.columns())
        run_error("all_to_all_rows: rows of ", out.name, " ", out.shape.text(), " differ in size from those of ",
                  in.name, " ", in.shape.text());
    const std::pair<const Tensor*, const std::vector<int64_t>*> sides[] = {{&out, &receive}, {&in, &send}};
    for (const auto& [t, rows] : sides) {
        const int64_t total = std::accumulate(rows->begin(), rows->end(), int64_t(0));
        if (int64_t(rows->size()) != size || total > t->rows())
            run_error("all_to_all_rows: ", total, " rows for ", rows->size(), " ranks, but ", t->name, " has ",
                      t->rows(), ", and there are ", size, " ranks");
    }
    const int64_t row = in.columns() * size_of(in.dtype);
    int64_t sent = 0;
    const int64_t share = std::min(in.rows(), out.rows()) / size;  // the larger one has room for the worst case
    for (int r = 0; r < size; r++) sent += (ctx.counting ? share : send[size_t(r)]) * (r != rank) * row;
    CommCost& cost = costs["all_to_all_rows"];
    cost.calls++, cost.bytes += sent, cost.wire += sent;
    write_down({.kind = Event::collective, .name = "all_to_all_rows", .bytes = sent, .wire = sent});
    Op op(ctx, "all_to_all_rows", 0, 0, total_bytes({out, in}));
    if (!op.run) return;
    const int64_t n = in.columns();
    if (size == 1) return copy(out.slice(0, receive[0]), in.slice(0, send[0]), ctx);
    if (!transport) run_error("all_to_all_rows: ", size, " simulated ranks can count collectives but not send data");
    const Waiting waiting(world.watchdog(), "all_to_all_rows", sent);
    auto elements = [n](std::vector<int64_t> rows) {
        for (int64_t& count : rows) count *= n;
        return rows;
    };
    transport->all_to_all_uneven(out, in, elements(receive), elements(send));
    if (ctx.profile) transport->before_compute();
}

void Comm::write_down(Event event) {
    event.first = ranks.first, event.stride = ranks.stride, event.count = ranks.count;
    if (size > 1) ctx.write_down(event);
}

void Comm::after_compute() {
    write_down({.kind = Event::after_compute});
    if (transport) transport->after_compute();
}
void Comm::before_compute() {
    write_down({.kind = Event::before_compute});
    if (transport) transport->before_compute();
}
void Comm::mark(int i) {
    write_down({.kind = Event::mark, .number = i});
    if (transport) transport->mark(i);
}
void Comm::before_compute(int i) {
    write_down({.kind = Event::before_compute_mark, .number = i});
    if (transport) transport->before_compute(i);
}

}  // namespace llmc
