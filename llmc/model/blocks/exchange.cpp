#include "llmc/model/blocks/exchange.h"

namespace llmc {

namespace {

void all_to_all(Comm& comm, Tensor out, Tensor in) {
    comm.after_compute();
    comm.all_to_all(out, in);
    comm.before_compute();
}

// A temporary of these sizes like x.
Tensor temp(const Pass& p, const char* name, const Tensor& x, Shape shape) { return p.temp(name, x.dtype, shape); }

}  // namespace

Shape rows_of_all_ranks(const Pass& p, const Shape& rows) {
    if (!p.expert_ranks) return rows;
    return {rows[0] / p.expert_ranks->size, rows[1] * p.expert_ranks->size, rows[2]};
}

void to_experts(const Pass& p, Tensor arrived, Tensor rows) {
    const int64_t N = p.expert_ranks->size, experts = arrived.shape[0], n = rows.numel() / (N * experts);
    Tensor received = temp(p, "received", rows, {N, experts, n});
    all_to_all(*p.expert_ranks, received, rows.view(received.shape));
    swap_axes(arrived.view({experts, N, n}), received, p.ctx);
}

void from_experts(const Pass& p, Tensor rows, Tensor answers) {
    const int64_t N = p.expert_ranks->size, experts = answers.shape[0], n = rows.numel() / (N * experts);
    Tensor sent = temp(p, "sent", rows, {N, experts, n});
    swap_axes(sent, answers.view({experts, N, n}), p.ctx);
    all_to_all(*p.expert_ranks, rows.view(sent.shape), sent);
}

Pass with_all_sequences(const Pass& p) {
    Pass all = p;
    all.B = p.B * p.group_ranks->size, all.T = p.T / p.group_ranks->size;
    return all;
}

void to_positions(const Pass& p, Tensor all, Tensor x) {
    const int64_t G = p.group_ranks->size, n = x.numel() / (p.B * G);
    Tensor sent = temp(p, "sent", x, {G, p.B, n});
    swap_axes(sent, x.view({p.B, G, n}), p.ctx);
    all_to_all(*p.group_ranks, all.view(sent.shape), sent);
}

void from_positions(const Pass& p, Tensor x, Tensor all) {
    const int64_t G = p.group_ranks->size, n = x.numel() / (p.B * G);
    Tensor received = temp(p, "received", x, {G, p.B, n});
    all_to_all(*p.group_ranks, received, all.view(received.shape));
    swap_axes(x.view({p.B, G, n}), received, p.ctx);
}

}  // namespace llmc
