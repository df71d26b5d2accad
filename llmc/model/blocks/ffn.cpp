// Dense feed-forward: out = f(x Wup^T + b) Wdown^T + b, or gated and without biases (feed_forward.h).
#include "llmc/model/blocks/feed_forward.h"

namespace llmc {
namespace {

class Ffn final : public Block {
public:
    explicit Ffn(const ModelConfig& c)
        : Block(c), feed_forward("", c.ffn_activation,
                                 {.d_model = c.d_model, .hidden = c.d_ff,
                                  .bias = c.ffn_bias && !is_gated(c.ffn_activation)}) {}

    void declare_params(Unit& dense, Unit&) const override { feed_forward.declare_params(dense); }
    std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& p) const override {
        std::vector<SavedSpec> saved;
        feed_forward.declare_saved(saved, {B, T, config.d_model}, p.act);
        return saved;
    }
    void forward(const Pass& p, Tensor out, Tensor x) const override { feed_forward.forward(p, out, x); }
    void backward(const Pass& p, Tensor dx, Tensor dout, Tensor x) const override {
        feed_forward.backward(p, dx, dout, x);
    }

private:
    const FeedForward feed_forward;
};

}  // namespace

std::unique_ptr<Block> make_ffn(const ModelConfig& config) { return std::make_unique<Ffn>(config); }

}  // namespace llmc
