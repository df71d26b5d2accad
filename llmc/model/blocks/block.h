// A residual block: x <- x + block(norm(x)). The model computes norm and addition; a block computes what is between.
//
// Each kind of block is one file in this folder and one row of kind_table.h. The file declares parameters, saved
// tensors and generation state, and implements forward, backward and extend as a list of op calls. Blocks keep no
// pointers to tensors: the Pass brings all of them with every call.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "llmc/comm/comm.h"
#include "llmc/model/blocks/kinds.h"
#include "llmc/model/config.h"
#include "llmc/model/params.h"
#include "llmc/ops/arena.h"

namespace llmc {

// A tensor that forward saves for backward. A decision (routing, selection, drops) is always kept; everything else may
// be recomputed.
struct SavedSpec {
    const char* name;
    DType dtype;
    Shape shape;
    bool decision = false;
};
// A tensor that generation keeps from position to position (attention: K and V).
struct StateSpec {
    const char* name;
    DType dtype;
    Shape shape;
};

// What a block receives with a call: tensors, sizes and settings.
struct Pass {
    Context& ctx;
    Arena& arena;                 // for temporaries: the model releases them after every call
    int64_t B = 0, T = 0;         // sequences and positions of this call
    DType act = DType::f32;       // type of activations
    UnitView dense{}, experts{};  // parameters and gradients of the block and of its experts
    UnitView masters{};  // the dense unit's parameters in the optimizer's precision, if blocks compute with a copy
    std::vector<Tensor> slots{};  // the saved tensors (forward, backward)
    std::vector<Tensor> state{};  // the generation state (extend)
    int64_t first_position = 0;   // extend: position of the first of the T tokens
    bool accumulate = false;      // true: add gradients to those of earlier micro-batches; false: overwrite
    bool recomputing = false;     // forward runs a second time, for backward: decisions are already in their tensors
    bool discrete = false;        // evaluate MoT with one-hot weights
    int64_t group_size = 1;       // MoT group size of this call
    int64_t live_rows = 0;        // rows from here to B are zero vectors that fill up groups; 0: there are none
    bool generating = false;      // extend: token choice has no capacity limit
    double aux_scale = 0;         // weight of the block's own loss (load balancing) in the gradient
    int64_t expected_rows = 0;    // of ragged rows that come from several ranks: see MatmulOptions
    Comm* expert_ranks = nullptr;  // the ranks that divide the experts, if they do: see exchange.h
    Comm* group_ranks = nullptr;   // the ranks that divide a micro-batch, if they do
    Tensor draw{};                 // [1] i32: number of this micro-batch's random order (--group-order random)
    Tensor metrics{};              // [n] f64: the block's metrics go here; not given: they are not wanted

    // The tensor with this local name, of the block or of its experts; RunError if the block has not declared it.
    Tensor param(const char* local_name) const { return owner(local_name).param(local_name); }
    // The parameter in the optimizer's precision, for ops that need more than act has (routers).
    Tensor master(const char* local_name) const { return (masters.unit ? masters : dense).param(local_name); }
    Tensor grad(const char* local_name) const { return owner(local_name).grad(local_name); }
    Tensor saved(const char* name) const { return named(slots, name); }
    Tensor carried(const char* name) const { return named(state, name); }
    // A temporary tensor of type act, or of another type.
    Tensor temp(const char* name, Shape shape) const { return arena.tensor(name, act, shape); }
    Tensor temp(const char* name, DType dtype, Shape shape) const { return arena.tensor(name, dtype, shape); }
    // Type of statistics and softmax weights.
    DType stat() const { return arithmetic_dtype(act); }

private:
    const UnitView& owner(const char* local_name) const { return experts.has(local_name) ? experts : dense; }
    Tensor named(const std::vector<Tensor>& list, const char* name) const;
};

// Backward of logits = x weight^T with x [B,T,C] act, weight [E,C], logits [B,T,E] stat:
// dx [B,T,C] act += dlogits weight; dweight [E,C] stat = dlogits^T x, or += if accumulate.
void logits_backward(const Pass& pass, Tensor dx, Tensor dweight, bool accumulate, Tensor dlogits, Tensor x,
                     Tensor weight);

class Block {
public:
    explicit Block(const ModelConfig& config) : config(config) {}
    virtual ~Block() = default;

    // Declares the parameters. Tensors whose axis 0 is the expert go to `experts`, all others to `dense`.
    virtual void declare_params(Unit& dense, Unit& experts) const = 0;
    // The tensors that forward saves for backward with B sequences of T positions.
    virtual std::vector<SavedSpec> declare_saved(int64_t B, int64_t T, const Pass& pass) const = 0;
    // The generation state for this many rows and this type of activations.
    virtual std::vector<StateSpec> declare_state(int64_t, DType) const { return {}; }
    // Names of the metrics, in the order of Pass::metrics. Some are losses of the block, see aux_loss_weight.
    virtual std::vector<std::string> declare_metrics() const { return {}; }

    // out = block(x), both [B,T,C] act. Fills the saved tensors and, if given, the metrics.
    virtual void forward(const Pass& pass, Tensor out, Tensor x) const = 0;
    // dx = gradient with respect to x, given dout, the gradient with respect to out; all [B,T,C] act, and x is
    // forward's input. The gradients of the parameters go to pass.grad(...).
    virtual void backward(const Pass& pass, Tensor dx, Tensor dout, Tensor x) const = 0;
    // Generation: out = block(x) for positions first_position .. first_position+T-1 of B rows, with the state of all
    // positions before. Blocks that do not look at other positions use forward.
    virtual void extend(const Pass& pass, Tensor out, Tensor x) const { forward(pass, out, x); }

protected:
    // logits_backward for the parameter with this local name.
    static void logits_backward(const Pass& pass, const char* weight, Tensor dx, Tensor dlogits, Tensor x);

    const ModelConfig config;
};

// The block of this kind (kinds.h). InputError if there is no such kind.
std::unique_ptr<Block> make_block(const std::string& kind, const ModelConfig& config);

}  // namespace llmc
