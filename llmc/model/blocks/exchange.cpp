#include "llmc/model/blocks/exchange.h"

#include <numeric>

namespace llmc {

namespace {

void all_to_all(Comm& comm, Tensor out, Tensor in) {
    comm.after_compute();
    comm.all_to_all(out, in);
    comm.before_compute();
}

// A temporary of these sizes like x.
Tensor temp(const Pass& p, const char* name, const Tensor& x, Shape shape) { return p.temp(name, x.dtype, shape); }

// out[r] = in[from[r]], 0 where from[r] is -1: a routing of one expert.
void reorder(const Pass& p, Tensor out, Tensor in, Tensor from) {
    moe_gather(out, in.view({1, in.shape[0], in.shape[1]}), from, 1, {}, p.ctx);
}

std::vector<int32_t> on_host(const Pass& p, Tensor t) {
    std::vector<int32_t> values(size_t(t.numel()));
    download(values.data(), t, p.ctx);
    return values;
}

}  // namespace

// ------------------------------------------------------------------------ equal numbers of rows, to experts and back

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

// ----------------------------------------------------------------------------------------- ragged rows, there and back

void declare_ragged_exchange(std::vector<SavedSpec>& saved, int64_t ranks, int64_t experts, int64_t rows) {
    saved.push_back({"arrived_offsets", DType::i32, {experts / ranks + 1}, true});
    saved.push_back({"arrived_order", DType::i32, {1, rows}, true});
    saved.push_back({"arrived_place", DType::i32, {1, rows}, true});
    saved.push_back({"exchanged", DType::i32, {2, ranks}, true});
}

void plan_ragged_exchange(const Pass& p, Tensor offsets) {
    Comm& comm = *p.expert_ranks;
    const int64_t N = comm.size, E = offsets.numel() - 1, here = E / N;
    const std::vector<int32_t> begins = on_host(p, offsets);
    std::vector<int32_t> counts(static_cast<size_t>(E)), exchanged(size_t(2 * N));
    for (int64_t e = 0; e < E; e++) {
        counts[size_t(e)] = begins[size_t(e + 1)] - begins[size_t(e)];
        exchanged[size_t(e / here)] += counts[size_t(e)];
    }
    // Each rank gets the numbers of rows for its experts from every rank s: theirs[s * here + e].
    Tensor mine = p.temp("counts", DType::i32, {E}), of_all = p.temp("counts of all ranks", DType::i32, {E});
    upload(mine, counts.data(), p.ctx);
    all_to_all(comm, of_all, mine);
    const std::vector<int32_t> theirs = on_host(p, of_all);
    std::vector<int32_t> from(theirs.size());  // first received row of (s, e); rows are ordered by rank, then by expert
    std::exclusive_scan(theirs.begin(), theirs.end(), from.begin(), 0);
    for (int64_t i = 0; i < E; i++) exchanged[size_t(N + i / here)] += theirs[size_t(i)];

    if (p.ctx.counting) return;  // the tables are as long as memory
    const size_t rows = size_t(p.saved("arrived_order").numel());
    std::vector<int32_t> order(rows, -1), place(rows, -1), arrived_offsets;
    int32_t row = 0;
    for (int64_t e = 0; e < here; e++) {
        arrived_offsets.push_back(row);
        for (int64_t s = 0; s < N; s++)
            for (int32_t i = 0; i < theirs[size_t(s * here + e)]; i++, row++) {
                const int32_t source = from[size_t(s * here + e)] + i;
                order[size_t(row)] = source, place[size_t(source)] = row;
            }
    }
    arrived_offsets.push_back(row);
    upload(p.saved("arrived_offsets"), arrived_offsets.data(), p.ctx);
    upload(p.saved("arrived_order"), order.data(), p.ctx);
    upload(p.saved("arrived_place"), place.data(), p.ctx);
    upload(p.saved("exchanged"), exchanged.data(), p.ctx);
}

RaggedExchange::RaggedExchange(const Pass& p) {
    const std::vector<int32_t> both = on_host(p, p.saved("exchanged"));
    const auto middle = both.begin() + p.expert_ranks->size;
    sent.assign(both.begin(), middle), received.assign(middle, both.end());
}

void RaggedExchange::to_experts(const Pass& p, Tensor arrived, Tensor rows) const {
    Tensor unordered = temp(p, "received", rows, arrived.shape);
    p.expert_ranks->after_compute();
    p.expert_ranks->all_to_all_rows(unordered, rows, received, sent);
    p.expert_ranks->before_compute();
    reorder(p, arrived, unordered, p.saved("arrived_order"));
}

void RaggedExchange::from_experts(const Pass& p, Tensor rows, Tensor answers) const {
    Tensor unordered = temp(p, "sent", rows, answers.shape);
    reorder(p, unordered, answers, p.saved("arrived_place"));
    p.expert_ranks->after_compute();
    p.expert_ranks->all_to_all_rows(rows, unordered, sent, received);
    p.expert_ranks->before_compute();
}

// ----------------------------------------------------------------------------------- positions for sequences, and back

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
