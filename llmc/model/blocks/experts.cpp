#include "llmc/model/blocks/experts.h"

#include "llmc/model/blocks/exchange.h"

namespace llmc {

// On average as many rows come as are sent.
static Pass expecting(Pass p, int64_t rows) {
    p.expected_rows = rows;
    return p;
}

void Experts::declare_saved(std::vector<SavedSpec>& saved, const Pass& p, const Shape& rows, int64_t pairs) const {
    if (!p.expert_ranks) return one.declare_saved(saved, rows, p.act);
    const int64_t N = p.expert_ranks->size, C = rows[-1];
    Shape arrived{experts / N, N * rows[1], C};
    if (pairs) {
        arrived = {N * ragged_rows(pairs, experts / N), C};
        declare_ragged_exchange(saved, N, experts, arrived[0]);
    }
    saved.push_back({"arrived", p.act, arrived});
    one.declare_saved(saved, arrived, p.act);
}

void Experts::forward(const Pass& p, Tensor y, Tensor x, Tensor offsets) const {
    if (!p.expert_ranks) return one.forward(p, y, x, offsets);
    Tensor arrived = p.saved("arrived"), answers = p.temp("answers", arrived.shape);
    if (!offsets) {
        to_experts(p, arrived, x);
        one.forward(p, answers, arrived);
        return from_experts(p, y, answers);
    }
    if (!p.recomputing) plan_ragged_exchange(p, offsets);
    const RaggedExchange exchange(p);
    exchange.to_experts(p, arrived, x);
    one.forward(expecting(p, x.shape[0]), answers, arrived, p.saved("arrived_offsets"));
    exchange.from_experts(p, y, answers);
}

void Experts::backward(const Pass& p, Tensor rows, Tensor x, Tensor offsets) const {
    if (!p.expert_ranks) return one.backward(p, rows, rows, x, offsets);
    Tensor arrived = p.saved("arrived"), there = p.temp("there", arrived.shape);
    if (!offsets) {
        to_experts(p, there, rows);
        one.backward(p, there, there, arrived);
        return from_experts(p, rows, there);
    }
    const RaggedExchange exchange(p);
    exchange.to_experts(p, there, rows);
    one.backward(expecting(p, rows.shape[0]), there, there, arrived, p.saved("arrived_offsets"));
    exchange.from_experts(p, rows, there);
}

}  // namespace llmc
