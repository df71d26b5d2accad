#include "llmc/step/muon.h"

#include <algorithm>
#include <cmath>

namespace llmc {

namespace {

constexpr int iterations = 5;
constexpr Polynomial quintic{3.4445, -4.7750, 2.0315};  // a, b, c: steep at 0, so that small singular values grow fast

bool every_parameter(const ParamSpec&) { return true; }
bool by_muon(const ParamSpec& spec) { return spec.hidden.rank > 0; }
bool by_adamw(const ParamSpec& spec) { return !by_muon(spec); }

}  // namespace

Tensor orthogonalized(Tensor x, Arena& arena, Context& ctx) {
    const int64_t n = x.shape[0], rows = x.shape[1], columns = x.shape[2], k = std::min(rows, columns);
    const bool tall = rows > columns;  // then S = X^T X is the smaller one, and X <- X (a + b S + c S^2)
    Tensor y = arena.tensor("iterate", x.dtype, x.shape), s = arena.tensor("S", x.dtype, {n, k, k}),
           p = arena.tensor("polynomial of S", x.dtype, {n, k, k});
    normalize_matrices(x, ctx);
    for (int i = 0; i < iterations; i++) {
        matmul(s, x, x, {.transpose_a = tall, .transpose_b = !tall}, ctx);
        matmul(p, s, s, {}, ctx);
        matrix_polynomial(p, s, quintic, ctx);
        if (tall)
            matmul(y, x, p, {}, ctx);
        else
            matmul(y, p, x, {}, ctx);
        std::swap(x, y);
    }
    return x;
}

MuonOptimizer::MuonOptimizer(const TrainConfig& config, Model& model, Context& ctx)
    : AdamWOptimizer(config, {{"m.", 1, every_parameter}, {"v.", 2, by_adamw}}, model, ctx),
      momentum(config.muon_momentum) {}

void MuonOptimizer::update(const UnitSlice& slice, Tensor step, Arena& arena) {
    const std::vector<ParamSpec>& params = slice.unit.params;
    update_others(slice, step);
    if (std::none_of(params.begin(), params.end(), by_muon)) return;
    const WorkspaceOnArena workspace(arena, ctx);
    const int64_t mark = arena.mark();
    const Tensor unit_directions = directions(slice, step, arena);
    for (const ParamSpec& spec : params)
        if (by_muon(spec)) update_matrices(spec, slice, unit_directions, step, arena);
    arena.release(mark);
}

// AdamW for what lies between the matrices.
void MuonOptimizer::update_others(const UnitSlice& s, Tensor step) {
    auto update_between = [&](int64_t from, int64_t to) {
        from = std::max(from, s.begin), to = std::min(to, s.end);
        if (from < to) update_range(s, from, to, step);
    };
    int64_t from = 0;
    for (size_t i = 0; i < s.unit.params.size(); i++) {
        if (!by_muon(s.unit.params[i])) continue;
        update_between(from, s.unit.params[i].offset);
        from = s.unit.end_of(i);
    }
    update_between(from, s.unit.size);
}

// The momentum's directions [unit.size] of all matrices of the unit; undefined for its other parameters. All ranks that
// divide the unit take part.
Tensor MuonOptimizer::directions(const UnitSlice& s, Tensor step, Arena& arena) {
    Tensor all = arena.tensor("directions", model.precision.grad, {s.unit.size});
    const bool cut = model.sharding.moments();
    if (cut) fill(all.slice(s.begin, s.end), 0, ctx);  // what is sent is defined
    for (const ParamSpec& spec : s.unit.params) {
        const auto [from, to] = s.part_of(spec);
        if (by_muon(spec) && from < to)
            muon_momentum(all.slice(from, to), states()[0].range(s.unit, from, to), s.of(s.grads, from, to), step,
                          momentum, ctx);
    }
    if (!cut) return all;
    model.mesh->all.after_compute();
    model.mesh->of_unit(s.unit.experts).all_gather(all, all.slice(s.begin, s.end));
    model.mesh->all.before_compute();
    return all;
}

// Updates the slice's part of one parameter, from whole matrices.
void MuonOptimizer::update_matrices(const ParamSpec& spec, const UnitSlice& s, Tensor directions, Tensor step,
                                    Arena& arena) {
    const auto [from, to] = s.part_of(spec);
    if (from == to) return;
    const int64_t rows = spec.hidden[0], columns = spec.hidden[1], size = rows * columns, mark = arena.mark();
    const int64_t first = (from - spec.offset) / size, end = (to - spec.offset + size - 1) / size;
    const int64_t begin = spec.offset + first * size;  // of the first matrix that the slice has a part of
    Tensor matrices = directions.slice(begin, spec.offset + end * size).view({end - first, rows, columns});
    const Tensor step_along = orthogonalized(matrices, arena, ctx).view({(end - first) * size});
    const MuonUpdate update{0.2 * std::sqrt(double(std::max(rows, columns))), options.weight_decay,
                            options.stochastic_rounding, options.seed, s.unit.first_index + from};
    muon_update(s.of(s.params, from, to), s.of(s.compute_copy, from, to), step_along.slice(from - begin, to - begin),
                step, update, ctx);
    arena.release(mark);
}

}  // namespace llmc
