// A residual block: x <- x + block(norm(x)). The model owns norm and addition; a block is the map in between.
//
// Each kind is one file in this folder: it declares its parameters, its saved tensors and its generation state, and
// spells out forward, backward and extend as a straight list of op calls. Blocks hold no pointers: everything arrives
// with the Pass.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "llmc/comm/comm.h"
#include "llmc/model/config.h"
#include "llmc/model/params.h"
#include "llmc/ops/arena.h"

namespace llmc {

// A tensor that forward leaves for backward. A decision (routing, selection, drops) is always kept; anything else may
// be recomputed.
struct SavedSpec {
    const char* name;
    DType dtype;
    Shape shape;
    bool decision = false;
};
// A tensor that generation carries from position to position (attention: K and V).
struct StateSpec {
    const char* name;
    DType dtype;
    Shape shape;
};

// What a block sees of the run while it works.
struct Pass {
    Context& ctx;
    Arena& arena;          // temporaries: the model releases them after every call
    int64_t B = 0, T = 0;  // rows and positions of this call
    DType act = DType::f32;
    UnitView dense{}, experts{};
    UnitView masters{};  // the dense unit's parameters as the optimizer has them, where blocks compute with a copy
    std::vector<Tensor> slots{};  // saved tensors (forward, backward)
    std::vector<Tensor> state{};  // generation state (extend)
    int64_t first_position = 0;   // of the T positions (extend)
    bool accumulate = false;      // gradients are added to what earlier micro-batches left
    bool recomputing = false;     // a second forward for backward: decisions are in their slots already
    bool discrete = false;        // MoT evaluation with one-hot weights
    int64_t group_size = 1;       // MoT groups of this call
    int64_t live_rows = 0;        // rows from here to B only fill up groups, as zero vectors; 0: no such rows
    bool generating = false;      // extend: nothing is dropped for want of capacity
    double aux_scale = 0;         // weight of a block's own loss in the total that is differentiated
    int64_t expected_rows = 0;    // of ragged rows that come from several ranks: see MatmulOptions
    Comm* expert_ranks = nullptr;  // the ranks that share the experts, if they do: see exchange.h
    Comm* group_ranks = nullptr;   // those that share a micro-batch
    Tensor draw{};                // [1] i32: number of the random order of this micro-batch (--group-order random)
    Tensor metrics{};             // this block's scalars, if they are wanted now: [n] f64

    Tensor param(const char* local_name) const { return owner(local_name).param(local_name); }
    Tensor master(const char* local_name) const { return (masters.unit ? masters : dense).param(local_name); }
    Tensor grad(const char* local_name) const { return owner(local_name).grad(local_name); }
    Tensor saved(const char* name) const { return named(slots, name); }
    Tensor carried(const char* name) const { return named(state, name); }
    Tensor temp(const char* name, Shape shape) const { return arena.tensor(name, act, shape); }
    Tensor temp(const char* name, DType dtype, Shape shape) const { return arena.tensor(name, dtype, shape); }
    DType stat() const {
        return act == DType::f64 ? DType::f64 : DType::f32;
    }  // dtype of statistics and softmax weights

private:
    const UnitView& owner(const char* local_name) const { return experts.has(local_name) ? experts : dense; }
    Tensor named(const std::vector<Tensor>& list, const char* name) const;
};

// Backward of logits = x weight^T, logits [B,T,E] stat: dx += dlogits weight, dweight [E,C] stat (+)= dlogits^T x.
void logits_backward(const Pass& pass, Tensor dx, Tensor dweight, bool accumulate, Tensor dlogits, Tensor x,
                     Tensor weight);

class Block {
public:
    explicit Block(const ModelConfig& config) : config(config) {}
    virtual ~Block() = default;

    virtual const char* kind() const = 0;
    // Tensors without experts go to `dense`; tensors whose axis 0 counts experts go to `experts`.
    virtual void declare_params(Unit& dense, Unit& experts) const = 0;
    virtual std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& pass) const = 0;
    virtual std::vector<StateSpec> declare_state(int64_t, DType) const { return {}; }
    // Names of the scalars written to Pass::metrics. Some are losses of the block's own, see aux_loss_weight.
    virtual std::vector<std::string> declare_metrics() const { return {}; }

    // out = block(x), both [B,T,C] act.
    virtual void forward(const Pass& pass, Tensor out, Tensor x) const = 0;
    // dx = gradient with respect to x for the gradient dout; parameter gradients go to pass.grad(...).
    virtual void backward(const Pass& pass, Tensor dx, Tensor dout, Tensor x) const = 0;
    // Generation: positions first_position .. first_position+T-1 of B rows. Blocks that do not look at other positions
    // need no more than forward.
    virtual void extend(const Pass& pass, Tensor out, Tensor x) const { forward(pass, out, x); }

protected:
    // logits_backward for the parameter of this name.
    static void logits_backward(const Pass& pass, const char* weight, Tensor dx, Tensor dlogits, Tensor x);

    const ModelConfig config;
};

std::unique_ptr<Block> make_attention(const ModelConfig& config);
std::unique_ptr<Block> make_ffn(const ModelConfig& config);
std::unique_ptr<Block> make_mot(const ModelConfig& config);
std::unique_ptr<Block> make_moe_token_choice(const ModelConfig& config);
std::unique_ptr<Block> make_moe_expert_choice(const ModelConfig& config);
// kind: attention | ffn | mot | moe_token_choice | moe_expert_choice
std::unique_ptr<Block> make_block(const std::string& kind, const ModelConfig& config);

}  // namespace llmc
