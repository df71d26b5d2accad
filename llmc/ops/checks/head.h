// What head_loss checks and shares.
#pragma once
#include "llmc/ops/checks/common.h"

namespace llmc {

struct HeadShape {
    int64_t rows, model, vocabulary;
    // Leading dimension of the logits; columns past the vocabulary are never read. Not whole pages of floats: rows that
    // lie those apart share few lines of a cache.
    int64_t ld() const { return columns() + (columns() % 1024 ? 0 : 64); }
    int64_t columns() const { return round_up(vocabulary, 64); }
    // Rows of logits at a time, about as many as fit `logits` elements.
    int64_t chunk(int64_t logits) const {
        return std::min(rows, std::clamp<int64_t>(logits / columns() / 64 * 64, 64, 8192));
    }
    // Of `products` matrix products: the logits, and one for each gradient.
    double flops(int64_t products) const {
        return 2.0 * double(products) * double(rows) * double(vocabulary) * double(model);
    }
};

inline HeadShape check_head(const Tensor& losses, const Tensor& dx, const Tensor& dweight, const Tensor& x,
                            const Tensor& weight, const Tensor& targets) {
    if (weight.shape.rank != 2 || x.columns() != weight.shape[1])
        run_error("head_loss: ", weight.name, " has shape ", weight.shape.text(), ", expected [vocabulary, ",
                  x.columns(), "] for ", x.name, " ", x.shape.text());
    if (weight.shape[0] < 1) run_error("head_loss: ", weight.name, " has an empty vocabulary");
    const HeadShape s{x.rows(), x.columns(), weight.shape[0]};
    check(x, x.dtype, x.shape, "head_loss:");
    check(weight, x.dtype, weight.shape, "head_loss:");
    for (const Tensor& t : {losses, targets})
        if (t.numel() != s.rows)
            run_error("head_loss: ", t.name, " has shape ", t.shape.text(), " for ", s.rows, " rows of ", x.name);
    check(losses, arithmetic_dtype(x.dtype), losses.shape, "head_loss:");
    check(targets, DType::i32, targets.shape, "head_loss:");
    if (dx) check(dx, x.dtype, x.shape, "head_loss:");
    if (dweight) check(dweight, arithmetic_dtype(x.dtype), weight.shape, "head_loss:");
    return s;
}

}  // namespace llmc
