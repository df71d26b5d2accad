// Activations of a few elements by one thread, and what applies them to the rows of a product as soon as they are done.
#pragma once
#include "llmc/ops/cpu/tile.h"
#include "llmc/ops/ops.h"

namespace llmc {

// out[j] = f(x[j]). out may be x.
void activate(float* out, const float* x, int64_t n, Activation kind);
// dx[j] = dout[j] f'(x[j]); value[j] = f(x[j]) unless it is nullptr. dx may be dout.
void activate_backward(float* dx, float* value, const float* dout, const float* x, int64_t n, Activation kind);

// What a float32 product with these options does to its elements, which are in a cache: out = f(made), or
// out = made f'(pre), which are the same memory then. Without an activation, nothing.
class Epilogue {
public:
    // product: what is made, out or options.pre; its rows are ld elements apart.
    Epilogue(Tensor out, Tensor product, const MatmulOptions& options, int64_t ld)
        : forward(options.activation), backward(options.backward), made_first(ptr<float>(product)),
          out_first(ptr<float>(out)), pre(ptr<float>(options.pre)), value(ptr<float>(options.value)),
          next_strip(block_rows * ld) {}

    // made: `count` elements of a row of the product.
    void operator()(float* made, int64_t count) const {
        const int64_t at = made - made_first;
        if (forward != Activation::none) return activate(out_first + at, made, count, forward);
        if (backward == Activation::none) return;
        // pre has been in memory since the forward pass: that of the next strip comes while the strip is made.
        fetch_ahead(pre + at + next_strip, count);
        activate_backward(made, value ? value + at : nullptr, made, pre + at, count, backward);
    }

private:
    Activation forward, backward;
    float *made_first, *out_first, *pre, *value;
    int64_t next_strip;
};

}  // namespace llmc
