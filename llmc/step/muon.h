// Muon (Jordan et al. 2024) for the weight matrices of hidden layers (ParamSpec::hidden), AdamW for all other
// parameters. Of a matrix it keeps one momentum, "m.".
//
//   m = b m + (1 - b) g,  u = b m + (1 - b) g        Nesterov momentum of the clipped gradient g; b = --muon-momentum
//   o = u with all singular values brought near 1    orthogonalized(), five Newton-Schulz iterations
//   p = p (1 - lr weight_decay) - lr 0.2 sqrt(max(rows, columns)) o
//
// The factor makes the elements of a step about as large as AdamW's, 0.2 lr, so that learning rate and weight decay
// are those of AdamW (Liu et al. 2025, "Muon is scalable for LLM training").
//
// A slice of a unit may cut a matrix, and o needs all of it. With divided state each rank makes u of its slice, the
// ranks exchange these slices, and each rank makes o of every matrix that its slice has a part of.
#pragma once
#include "llmc/step/adamw.h"

namespace llmc {

class MuonOptimizer final : public AdamWOptimizer {
public:
    MuonOptimizer(const TrainConfig& config, Model& model, Context& ctx);
    void update(const UnitSlice& slice, Tensor step, Arena& arena) override;

private:
    void update_others(const UnitSlice& slice, Tensor step);
    Tensor directions(const UnitSlice& slice, Tensor step, Arena& arena);
    void update_matrices(const ParamSpec& spec, const UnitSlice& slice, Tensor directions, Tensor step, Arena& arena);

    const double momentum;
};

// x [n,R,K] f32 (f64): each of the n matrices with its singular values s <= its Frobenius norm brought into 0.68 .. 1.2
// if s is above 0.003 of that norm, smaller ones in proportion; singular vectors stay. Overwrites x; the result lies on
// the arena. Five iterations of X <- (a + b S + c S^2) X, S = X X^T, from X = x / |x| (Jordan et al. 2024). The
// products are f32, because those of bf16 differ from them by some percent.
Tensor orthogonalized(Tensor x, Arena& arena, Context& ctx);

}  // namespace llmc
