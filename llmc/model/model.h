// The model: a stack of residual blocks between an embedding and a head, run by explicit forward and backward passes.
//
//   x_0 = embedding(tokens);   x_{i+1} = x_i + block_i(norm_i(x_i));   losses = head([final_norm](x_n), targets)
//
// The model owns the parameter-shaped buffers (parameters, compute copy, gradients, Adam's moments). Activations live
// on an Arena used as a stack: forward pushes what each block saves, backward pushes temporaries above and pops a block
// with its gradient, so the arena's peak is the activation memory.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "llmc/model/blocks/block.h"
#include "llmc/model/precision.h"

namespace llmc {

enum class Phase { forward, backward };

// Called in pairs around every use of a unit's parameters; after(unit, backward) comes once a micro-batch, when the
// unit's gradient is complete. Does nothing in one process: gathering, freeing, reducing and
// prefetching of sharded units hang here and nowhere else.
struct UnitHooks {
    virtual ~UnitHooks() = default;
    virtual void begin(bool /*training*/) {}  // of a pass over all units: forward and backward, or forward only
    virtual void before(const Unit&, Phase) {}
    virtual void after(const Unit&, Phase) {}
};

struct EvalOptions {
    bool discrete = false;   // MoT: one-hot merge and emit weights
    int64_t group_size = 0;  // MoT: another group size than trained with; 0: the model's
    int64_t live_rows = 0;   // rows from here on enter their groups as zero vectors; 0: all rows are real
};

// A block's scalar in the metrics buffer.
struct MetricSlot {
    std::string name;
    int64_t first, count;
    double loss_weight;  // what it counts in the total loss; 0: it only informs
};

// Rows that extend position by position: the carried tensors of every block.
struct Generation {
    int64_t rows = 0, position = 0;          // positions done so far
    std::vector<std::vector<Tensor>> state;  // per block
};

class Model {
public:
    // Declares the tables; allocates nothing. InputError if the configuration is impossible.
    // mesh: the ranks that share it, if it is divided.
    Model(const ModelConfig& config, const Precision& precision, bool decay_everything, Context& ctx,
          const Sharding& sharding = {}, Mesh* mesh = nullptr);

    // Buffers, each with all units or with this rank's slices, as `sharding` says. Training adds gradients and moments.
    void allocate(bool training);
    // Initial weights, made on the host in double from (seed, tensor name, element): the same on every backend and
    // world size.
    void initialize(uint64_t seed);
    void refresh_compute_copy();  // after parameters were loaded. Divided: of this rank's slices

    // InputError unless rows can be cut into groups (of the override, if not 0) and every expert gets a token.
    void check_rows(int64_t rows, int64_t group_size = 0) const;

    // Forward and backward of one micro-batch. tokens, targets [B,T] i32; losses [B*T] stat. dloss: weight of one
    // token's loss in the total; losses of blocks (load balancing), which are means over tokens, weigh B*T as much.
    // Gradients are overwritten, or added to if `accumulate`. metrics (optional): the buffer of metric_slots(). draw
    // (optional, [1] i32): number of the micro-batch over the whole run, for --group-order random; else 0.
    struct MicroBatch {
        Tensor tokens, targets, losses;
        double dloss;
        bool accumulate;
        Tensor metrics{};
        Tensor draw{};
    };
    void train(const MicroBatch& batch, bool recompute, Arena& arena, UnitHooks& hooks);
    // Losses only.
    void evaluate(Tensor losses, Tensor tokens, Tensor targets, const EvalOptions& options, Arena& arena,
                  UnitHooks& hooks);
    // logits [B,T,V] stat, all positions. For tests and small models: V is large.
    void logits(Tensor logits, Tensor tokens, const EvalOptions& options, Arena& arena, UnitHooks& hooks);

    // Generation: state for `rows` rows from `arena`, then `extend` by tokens [rows, n] as often as wanted.
    // logits [rows, V] stat of the last of the n positions.
    Generation start_generation(int64_t rows, Arena& arena) const;
    void extend(Tensor logits, Tensor tokens, Generation& generation, const EvalOptions& options, Arena& arena,
                UnitHooks& hooks);

    // Where nothing is cut into slices: masters, in table order; "m.<name>", "v.<name>"; gradients.
    std::vector<NamedTensor> parameters() const;
    std::vector<NamedTensor> optimizer() const;
    std::vector<NamedTensor> gradients() const;
    // What of masters and moments lies here, or (`owned`) what no other rank owns: see named_parts.
    std::vector<NamedTensor> parameter_parts(bool owned) const;
    std::vector<NamedTensor> optimizer_parts(bool owned) const;
    const std::vector<MetricSlot>& metric_slots() const { return metrics; }
    int64_t metric_count() const { return metrics.empty() ? 0 : metrics.back().first + metrics.back().count; }
    DType stat() const { return precision.act == DType::f64 ? DType::f64 : DType::f32; }

    const ModelConfig config;
    const Precision precision;
    const Sharding sharding;
    ParamTable table;
    Arena buffers;                                    // everything shaped like the parameters
    Tensor params, compute, grads, moment1, moment2;  // compute is params itself where there is no copy

    // Where a unit's parameters and gradient lie now: in the buffers above or, what of them has only slices there,
    // where the hooks have put it for as long as it is used. `masters`: the same in the optimizer's precision.
    struct Place {
        Tensor params, grads, masters;
    };
    std::vector<Place> places;  // of table.units
    Place& place(const Unit& unit) { return places[size_t(&unit - table.units.data())]; }
    void find_places();         // in the buffers; a model that reads another one's buffers calls this when it has them

private:
    struct Run;   // one call: sizes, options, arena, hooks
    struct Kept;  // what one block leaves for backward
    bool has(const std::string& kind) const;  // a block of this kind
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
    Mesh* mesh;
    Norm norm;
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<MetricSlot> metrics;
};

constexpr double norm_eps = 1e-5;

}  // namespace llmc
