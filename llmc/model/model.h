// The model: a stack of residual blocks between an embedding and a head, run by explicit forward and backward passes.
//
//   x_0 = embedding(tokens);   x_{i+1} = x_i + block_i(norm_i(x_i));   losses = head([final_norm](x_n), targets)
//
// The model owns the buffers that have the layout of the parameters (parameters, compute copy, gradients). Activations
// are in an Arena used as a stack: forward pushes what each block saves, and backward releases the saved tensors of a
// block when its gradient is done. The peak of the arena is therefore the activation memory.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "llmc/model/blocks/block.h"
#include "llmc/model/precision.h"

namespace llmc {

enum class Phase { forward, backward };

// The model calls before() before every use of a unit's parameters, and after() after it. after(unit, backward) comes
// once per micro-batch, when the unit's gradient is complete. With one process the hooks do nothing. With several they
// gather and free parameters, sum gradients and prefetch: SharedUnits implements them.
struct UnitHooks {
    virtual ~UnitHooks() = default;
    virtual void begin(bool /*training*/) {}  // a pass over all units begins: forward and backward, or forward only
    virtual void before(const Unit&, Phase) {}
    virtual void after(const Unit&, Phase) {}
};

struct EvalOptions {
    bool discrete = false;   // MoT: one-hot merge and emit weights
    int64_t group_size = 0;  // MoT group size; 0: the model's
    int64_t live_rows = 0;   // rows from here on are zero vectors in MoT groups; 0: all rows are real
};

// A metric of a block: one element of the metrics buffer.
struct MetricSlot {
    std::string name;
    int64_t first;       // its element of the buffer
    double loss_weight;  // its weight in the total loss; 0: it is not a loss
};

// The state of generation: the tensors that every block keeps between calls of extend.
struct Generation {
    int64_t rows = 0, position = 0;          // sequences, and positions computed so far
    std::vector<std::vector<Tensor>> state;  // per block
};

class Model {
public:
    // Declares parameters and metrics; allocates nothing. InputError if the configuration is impossible.
    // decay_everything: weight decay applies to all parameters, not only matrices. mesh: the Comms of the ranks, if the
    // model is divided.
    Model(const ModelConfig& config, const Precision& precision, bool decay_everything, Context& ctx,
          const Sharding& sharding = {}, Mesh* mesh = nullptr);

    // Allocates the buffers, each with whole units or with this rank's slices, as `sharding` says: parameters and
    // compute copy, and for training gradients.
    void allocate(bool training);
    // Sets the initial weights. They are computed on the host in double from (seed, tensor name, element), so they are
    // the same for every backend and number of ranks.
    void initialize(uint64_t seed);
    // Copies params to the compute copy, after parameters were loaded; in a divided model this rank's slices only.
    void refresh_compute_copy();

    // InputError unless `rows` sequences can be cut into MoT groups of group_size (0: the model's) and every expert
    // gets at least one token.
    void check_rows(int64_t rows, int64_t group_size = 0) const;

    // Forward and backward of one micro-batch. tokens, targets [B,T] i32; losses [B*T] stat is the output. dloss:
    // weight of one token's loss in the total. A block's own loss (load balancing) is a mean over tokens, so its weight
    // is B*T*dloss. accumulate: add to the gradients instead of overwriting them. metrics: buffer of metric_slots(),
    // optional. draw: [1] i32, a random number per micro-batch for --group-order random; if not given, 0.
    struct MicroBatch {
        Tensor tokens, targets, losses;
        double dloss;
        bool accumulate;
        Tensor metrics{};
        Tensor draw{};
    };
    void train(const MicroBatch& batch, bool recompute, Arena& arena, UnitHooks& hooks);
    // Forward: losses [B*T] stat of tokens, targets [B,T] i32.
    void evaluate(Tensor losses, Tensor tokens, Tensor targets, const EvalOptions& options, Arena& arena,
                  UnitHooks& hooks);
    // Forward: logits [B,T,V] stat of all positions. For tests and small models only, because this is a large tensor.
    void logits(Tensor logits, Tensor tokens, const EvalOptions& options, Arena& arena, UnitHooks& hooks);

    // Generation: start_generation takes the state of `rows` sequences from `arena`. Each call of extend then appends
    // tokens [rows, n] i32 and gives logits [rows, V] stat of the last of the n positions. InputError if the model is
    // not causal or its context is full.
    Generation start_generation(int64_t rows, Arena& arena) const;
    void extend(Tensor logits, Tensor tokens, Generation& generation, const EvalOptions& options, Arena& arena,
                UnitHooks& hooks);

    // All parameters (in the optimizer's precision) and gradients, in the order of the table. Only if these buffers
    // hold whole units.
    std::vector<NamedTensor> parameters() const;
    std::vector<NamedTensor> gradients() const;
    // The parts of parameters in this rank's memory, or with `owned` those in its own slices: see named_parts.
    std::vector<NamedTensor> parameter_parts(bool owned) const;
    const std::vector<MetricSlot>& metric_slots() const { return metrics; }
    // Number of elements of the metrics buffer.
    int64_t metric_count() const { return int64_t(metrics.size()); }
    // Type of losses, logits and statistics.
    DType stat() const { return arithmetic_dtype(precision.act); }

    const ModelConfig config;
    const Precision precision;
    const Sharding sharding;
    Mesh* const mesh;  // nullptr if the model is not divided
    ParamTable table;
    Arena buffers;                  // memory of the three tensors below
    Tensor params, compute, grads;  // compute is params itself if there is no copy

    // Where a unit's parameters and gradient are now: in the buffers above. If a buffer holds only slices, the hooks
    // set the address while the unit is in use, and there is none otherwise. masters: the parameters in the optimizer's
    // precision.
    struct Place {
        Tensor params, grads, masters;
    };
    std::vector<Place> places;  // one per unit of the table
    Place& place(const Unit& unit) { return places[size_t(&unit - table.units.data())]; }
    // Sets `places` from the buffers. A model that uses the buffers of another one must call this after it got them.
    void find_places();

private:
    struct Run;   // one call: sizes, options, arena, hooks
    struct Kept;  // what one block saves for backward
    UnitView view(const std::string& unit_name, bool gradients) const;
    Tensor zero_draw(Arena& arena) const;
    void with_head(const Run& run, const std::function<void(const UnitView&)>& use);
    const char* head_weight() const;
    Pass pass_for(size_t i, const Run& run) const;
    void announce(size_t i, const Run& run, Phase phase, bool before) const;
    void normalize(size_t i, Kept& kept, Tensor x, Tensor branch, const Run& run) const;
    void normalize_backward(size_t i, const Kept& kept, Tensor dx, Tensor dnormed, bool accumulate_dx,
                            const Run& run) const;
    Kept forward_block(size_t i, Tensor x, Tensor branch, const Run& run);
    void backward_block(size_t i, Tensor dstream, const Run& run, Kept& kept);
    Tensor embed(Tensor tokens, const Run& run);
    Tensor finish_stream(Tensor x, Tensor branch, const Run& run, std::vector<Kept>& kept);
    Tensor forward(Tensor tokens, Tensor branch, const Run& run, std::vector<Kept>& kept);
    void backward(Tensor dstream, Tensor tokens, const Run& run, std::vector<Kept>& kept);

    Context& ctx;
    Norm norm;
    std::vector<const BlockKind*> kinds;  // of the blocks
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<MetricSlot> metrics;
};

constexpr double norm_eps = 1e-5;

}  // namespace llmc
