#include "llmc/model/model.h"

#include <algorithm>

namespace llmc {

struct Model::Run {
    Arena& arena;
    UnitHooks& hooks;
    int64_t B, T;
    bool training = false, recompute = false, accumulate = false;
    EvalOptions eval{};
    Tensor metrics{};
    int64_t first_position = 0;
    bool generating = false;
    double aux_scale = 0;
    Tensor draw{};
};

// What forward leaves for the backward of one block: x and what the block saves, with recomputation only x and
// decisions. The norm of x is made again: one pass over memory costs less than keeping it.
struct Model::Kept {
    Tensor x, normed, mean, rstd;  // [B,T,C], [B,T,C], [B,T], [B,T]
    std::vector<Tensor> slots;     // the block's saved tensors (recomputing: only its decisions)
    int64_t mark = 0;              // of the arena before all of this: backward gives it back
};

Model::Model(const ModelConfig& c, const Precision& precision, bool decay_everything, Context& ctx,
             const Sharding& sharding, Mesh* mesh)
    : config(resolved(c)), precision(precision), sharding(sharding), mesh(mesh), buffers("parameters", ctx), ctx(ctx),
      norm(config.norm == Norm::rmsnorm ? Norm::rmsnorm : Norm::layernorm) {
    const int64_t V = config.vocab_size, C = config.d_model;
    if (!backend_supports(precision.act))
        input_error("--precision ", precision.mode, " is for the CPU: this build's backend computes in fp32 and bf16");
    if (V < 1) input_error("the vocabulary size is not known: set --vocab-size or give --data");
    auto add_unit = [&](const std::string& name, const std::string& prefix, bool experts = false) {
        table.units.push_back({name, experts, 0, 0, 0, {}, prefix});
        return table.units.size() - 1;
    };
    auto declare_norm = [&](Unit& unit, const std::string& prefix) {
        unit.ones(prefix + "weight", {C});
        if (config.norm_bias) unit.zeros(prefix + "bias", {C});
    };

    Unit& embedding = table.units[add_unit("embedding", "embedding")];
    embedding.weight("token.weight", {V, C}, 1);
    if (config.positions == Positions::learned) embedding.weight("position.weight", {config.context, C}, 1);

    int64_t first_metric = 0;
    for (const std::string& word : parse_pattern(config.pattern)) kinds.push_back(&block_kind(word));
    for (size_t i = 0; i < kinds.size(); i++) {
        blocks.push_back(kinds[i]->make(config));
        std::string name = str("blocks.", i);
        Unit dense{name, false, 0, 0, 0, {}, name}, experts{name + ".experts", true, 0, 0, 0, {}, name};
        declare_norm(dense, "norm.");
        blocks[i]->declare_params(dense, experts);
        table.units.push_back(dense);
        if (!experts.params.empty()) table.units.push_back(experts);
        for (const std::string& metric : blocks[i]->declare_metrics())
            metrics.push_back({name + "." + metric, first_metric++, aux_loss_weight(config, metric)});
    }
    if (config.final_norm) declare_norm(table.units[add_unit("final_norm", "final_norm")], "");
    if (!config.tied_head) table.units[add_unit("head", "head")].weight("weight", {V, C}, C);
    table.finish(decay_everything, sharding);
}

// ---------------------------------------------------------------------------------------------------- buffers

void Model::allocate(bool training) {
    const bool copy = precision.compute_copy();
    auto buffer = [&](const char* name, DType dtype, bool slices) {
        return buffers.tensor(name, dtype, {slices ? table.slices_size : table.size});
    };
    auto lay_out = [&] {
        params = buffer("parameters", precision.param, copy ? sharding.moments() : sharding.parameters());
        compute = copy ? buffer("compute copy", precision.act, sharding.parameters()) : params;
        if (training) grads = buffer("gradients", precision.grad, sharding.gradients());
    };
    lay_out();
    int64_t bytes = buffers.peak();
    buffers.release(0);
    buffers.allocate(bytes);
    lay_out();
    for (const Tensor& t : {params, compute, grads})
        if (t) fill(t, 0, ctx);  // the padding between tensors must be and stay zero
    find_places();
}

void Model::find_places() {
    places.clear();
    auto range = [&](const Unit& unit, const Tensor& buffer) {
        return !buffer || has_slices_only(table, buffer) ? Tensor{} : unit_range(unit, buffer);
    };
    for (const Unit& unit : table.units)
        places.push_back({range(unit, compute), range(unit, grads), range(unit, params)});
}

void Model::refresh_compute_copy() {
    if (!precision.compute_copy()) return;
    if (compute.numel() == params.numel()) return copy(compute, params, ctx);
    for (const Unit& unit : table.units)
        copy(slice_range(table, unit, compute), slice_range(table, unit, params), ctx);
}

std::vector<NamedTensor> Model::parameters() const { return named_tensors(table, params, ""); }
std::vector<NamedTensor> Model::gradients() const { return named_tensors(table, grads, ""); }
std::vector<NamedTensor> Model::parameter_parts(bool owned) const { return named_parts(table, params, "", owned); }

UnitView Model::view(const std::string& unit_name, bool gradients) const {
    const Unit* unit = table.find_unit(unit_name);
    if (!unit) return {};
    const Place& place = places[size_t(unit - table.units.data())];
    if (!place.params) run_error("the parameters of ", unit_name, " are used while they are not gathered");
    return {unit, place.params, gradients ? place.grads : Tensor{}};
}

void Model::check_rows(int64_t rows, int64_t group_size) const {
    llmc::check_rows(config, rows, group_size);
}

// Number 0 for a random order without a number; not given if no block has a random order.
Tensor Model::zero_draw(Arena& arena) const {
    if (!shuffles_groups(config)) return {};
    Tensor draw = arena.tensor("draw", DType::i32, {1});
    fill(draw, 0, ctx);
    return draw;
}

// -------------------------------------------------------------------------------------------------- one block

Pass Model::pass_for(size_t i, const Run& run) const {
    std::string name = str("blocks.", i);
    Pass pass{ctx, run.arena};
    pass.B = run.B, pass.T = run.T, pass.act = precision.act;
    pass.dense = view(name, run.training), pass.experts = view(name + ".experts", run.training);
    if (precision.compute_copy())
        pass.masters = {pass.dense.unit, places[size_t(pass.dense.unit - table.units.data())].masters, {}};
    pass.first_position = run.first_position;
    pass.accumulate = run.accumulate, pass.discrete = run.eval.discrete;
    pass.live_rows = run.eval.live_rows;
    pass.generating = run.generating, pass.aux_scale = run.aux_scale;
    pass.draw = run.draw;
    if (mesh && mesh->experts.size > 1) pass.expert_ranks = &mesh->experts;
    if (mesh && mesh->group.size > 1) pass.group_ranks = &mesh->group;
    pass.group_size = run.eval.group_size ? run.eval.group_size : config.group_size;
    if (run.metrics) {
        int64_t first = -1, count = 0;
        for (const MetricSlot& slot : metrics)
            if (slot.name.compare(0, name.size() + 1, name + ".") == 0)
                first = first < 0 ? slot.first : first, count++;
        if (count) pass.metrics = run.metrics.slice(first, first + count);
    }
    return pass;
}

static void append_slots(std::vector<Tensor>& slots, const std::vector<SavedSpec>& specs, bool decisions,
                         Arena& arena) {
    for (const SavedSpec& s : specs)
        if (s.decision == decisions) slots.push_back(arena.tensor(s.name, s.dtype, s.shape));
}

// normed = norm_i(x), or with a branch: kept.x = x + branch first. Makes normed, mean and rstd.
void Model::normalize(size_t i, Kept& kept, Tensor x, Tensor branch, const Run& run) const {
    const int64_t B = run.B, T = run.T, C = config.d_model;
    kept.normed = run.arena.tensor("normed", precision.act, {B, T, C});
    kept.mean = norm == Norm::layernorm ? run.arena.tensor("mean", stat(), {B, T}) : Tensor{};
    kept.rstd = run.arena.tensor("rstd", stat(), {B, T});
    const bool last = i == blocks.size();
    UnitView unit = view(last ? "final_norm" : str("blocks.", i), false);
    Tensor weight = unit.param(last ? "weight" : "norm.weight");
    Tensor bias = config.norm_bias ? unit.param(last ? "bias" : "norm.bias") : Tensor{};
    if (branch)
        residual_norm_forward(kept.x, kept.normed, kept.mean, kept.rstd, x, branch, weight, bias, norm, norm_eps, ctx);
    else
        norm_forward(kept.normed, kept.mean, kept.rstd, x, weight, bias, norm, norm_eps, ctx);
}

// Backward of normalize: dx (+)= gradient through norm_i of dnormed.
void Model::normalize_backward(size_t i, const Kept& kept, Tensor dx, Tensor dnormed, bool accumulate_dx,
                               const Run& run) const {
    const bool last = i == blocks.size();
    UnitView unit = view(last ? "final_norm" : str("blocks.", i), true);
    Tensor dbias = config.norm_bias ? unit.grad(last ? "bias" : "norm.bias") : Tensor{};
    norm_backward(dx, unit.grad(last ? "weight" : "norm.weight"), dbias, dnormed, kept.x, kept.mean, kept.rstd,
                  unit.param(last ? "weight" : "norm.weight"), norm, accumulate_dx, run.accumulate, ctx);
}

void Model::announce(size_t i, const Run& run, Phase phase, bool before) const {
    for (const char* suffix : {"", ".experts"})
        if (const Unit* unit = table.find_unit(str("blocks.", i, suffix)))
            before ? run.hooks.before(*unit, phase) : run.hooks.after(*unit, phase);
}

// kept.x = x + branch (block 0: x), branch = block_i(norm_i(kept.x)). Unless training, kept.x overwrites x and nothing
// else survives.
Model::Kept Model::forward_block(size_t i, Tensor x, Tensor branch, const Run& run) {
    announce(i, run, Phase::forward, true);
    const Range range(kinds[i]->name, ctx);
    Pass pass = pass_for(i, run);
    std::vector<SavedSpec> specs = blocks[i]->declare_saved(run.B, run.T, pass);
    Kept kept;
    kept.mark = run.arena.mark();
    kept.x = i == 0 || !run.training ? x : run.arena.tensor("x", precision.act, x.shape);
    append_slots(kept.slots, specs, true, run.arena);
    int64_t mark = run.arena.mark();
    pass.slots = kept.slots;
    append_slots(pass.slots, specs, false, run.arena);
    int64_t temporaries = run.arena.mark();
    normalize(i, kept, x, i == 0 ? Tensor{} : branch, run);
    blocks[i]->forward(pass, branch, kept.normed);
    if (run.training && !run.recompute) {
        kept.slots = pass.slots;
        run.arena.release(temporaries);
    } else {
        run.arena.release(mark);
    }
    kept.normed = kept.mean = kept.rstd = {};
    announce(i, run, Phase::forward, false);
    return kept;
}

// dstream [B,T,C]: the gradient of the residual stream above the block on entry, below it on return.
void Model::backward_block(size_t i, Tensor dstream, const Run& run, Kept& kept) {
    announce(i, run, Phase::backward, true);
    const Range range(kinds[i]->name, ctx);
    Pass pass = pass_for(i, run);
    pass.slots = kept.slots;
    normalize(i, kept, kept.x, {}, run);
    if (run.recompute) {  // the same forward once more, with the decisions of the first
        const Range again("recompute", ctx);
        append_slots(pass.slots, blocks[i]->declare_saved(run.B, run.T, pass), false, run.arena);
        pass.recomputing = true, pass.metrics = {};
        int64_t temporaries = run.arena.mark();
        blocks[i]->forward(pass, run.arena.tensor("branch", precision.act, dstream.shape), kept.normed);
        run.arena.release(temporaries);
    }
    Tensor dnormed = run.arena.tensor("dnormed", precision.act, dstream.shape);
    blocks[i]->backward(pass, dnormed, dstream, kept.normed);
    normalize_backward(i, kept, dstream, dnormed, true, run);
    run.arena.release(kept.mark);
    announce(i, run, Phase::backward, false);
}

// ----------------------------------------------------------------------------------------------- whole passes

// x_0 [B,T,C] of tokens [B,T].
Tensor Model::embed(Tensor tokens, const Run& run) {
    const Range range("embedding", ctx);
    const Unit& unit = *table.find_unit("embedding");
    run.hooks.before(unit, Phase::forward);
    UnitView embedding = view("embedding", false);
    Tensor positions = config.positions == Positions::learned ? embedding.param("position.weight") : Tensor{};
    Tensor x = run.arena.tensor("x", precision.act, {run.B, run.T, config.d_model});
    embedding_forward(x, tokens, embedding.param("token.weight"), positions, run.first_position, ctx);
    run.hooks.after(unit, Phase::forward);
    return x;
}

// The head's input [B,T,C]. Training: kept gets one entry per block and one for the final norm, if there is one. branch
// [B,T,C]: scratch.
Tensor Model::forward(Tensor tokens, Tensor branch, const Run& run, std::vector<Kept>& kept) {
    const Range range("forward", ctx);
    Tensor x = embed(tokens, run);
    for (size_t i = 0; i < blocks.size(); i++) {
        kept.push_back(forward_block(i, x, branch, run));
        x = kept.back().x;
    }
    return finish_stream(x, branch, run, kept);
}

// x + branch, through the final norm if there is one.
Tensor Model::finish_stream(Tensor x, Tensor branch, const Run& run, std::vector<Kept>& kept) {
    if (!config.final_norm) {
        Tensor sum =
            run.training ? run.arena.tensor("x", precision.act, x.shape) : x;  // training: block n-1's backward needs x
        add(sum, x, branch, ctx);
        return sum;
    }
    const Range range("final norm", ctx);
    const Unit& unit = *table.find_unit("final_norm");
    Kept last;
    last.mark = run.arena.mark();
    last.x = run.training ? run.arena.tensor("x", precision.act, x.shape) : x;
    run.hooks.before(unit, Phase::forward);
    normalize(blocks.size(), last, x, branch, run);
    run.hooks.after(unit, Phase::forward);
    kept.push_back(last);
    return last.normed;
}

// dstream [B,T,C]: gradient of the head's input; is overwritten by those of the residual stream, block after block.
void Model::backward(Tensor dstream, Tensor tokens, const Run& run, std::vector<Kept>& kept) {
    const Range range("backward", ctx);
    if (config.final_norm) {
        const Range range("final norm", ctx);
        const Unit& unit = *table.find_unit("final_norm");
        run.hooks.before(unit, Phase::backward);
        normalize_backward(blocks.size(), kept.back(), dstream, dstream, false, run);
        run.arena.release(kept.back().mark);
        run.hooks.after(unit, Phase::backward);
    }
    for (size_t i = blocks.size(); i-- > 0;) backward_block(i, dstream, run, kept[i]);

    const Range embedding_range("embedding", ctx);
    const Unit& unit = *table.find_unit("embedding");
    run.hooks.before(unit, Phase::backward);
    UnitView embedding = view("embedding", true);
    Tensor dpositions = config.positions == Positions::learned ? embedding.grad("position.weight") : Tensor{};
    embedding_backward(embedding.grad("token.weight"), dpositions, dstream, tokens, run.accumulate || config.tied_head,
                       run.accumulate, ctx);
    run.hooks.after(unit, Phase::backward);
}

// Runs use(unit) between the hooks of the unit that holds the head's weight [V,C]; a tied head is the token embedding.
void Model::with_head(const Run& run, const std::function<void(const UnitView&)>& use) {
    const Range range("head", ctx);
    const Unit& unit = *table.find_unit(config.tied_head ? "embedding" : "head");
    // Training does the head's forward and backward in one op. A tied gradient is complete only after the embedding's.
    const Phase phase = run.training && !config.tied_head ? Phase::backward : Phase::forward;
    run.hooks.before(unit, phase);
    use(view(unit.name, run.training));
    run.hooks.after(unit, phase);
}
const char* Model::head_weight() const { return config.tied_head ? "token.weight" : "weight"; }

void Model::train(const MicroBatch& batch, bool recompute, Arena& arena, UnitHooks& hooks) {
    const int64_t B = batch.tokens.shape[0], T = batch.tokens.shape[1], C = config.d_model;
    check_rows(B * sharding.group_ranks);
    hooks.begin(true);
    // What is added up slice by slice starts anew in every micro-batch.
    Run run{arena, hooks, B, T, true, recompute, batch.accumulate && !sharding.gradients(), {}, batch.metrics};
    run.aux_scale = batch.dloss * double(B * T);
    const WorkspaceOnArena workspace(arena, ctx);
    int64_t mark = arena.mark();
    run.draw = batch.draw ? batch.draw : zero_draw(arena);
    std::vector<Kept> kept;
    kept.reserve(blocks.size() + 1);
    Tensor branch = arena.tensor("branch", precision.act, {B, T, C});
    Tensor h = forward(batch.tokens, branch, run, kept);  // [B,T,C]
    Tensor dstream = branch;                              // the last branch has been added to the stream

    with_head(run, [&](const UnitView& head) {
        head_loss(batch.losses, dstream.view({B * T, C}), head.grad(head_weight()), h.view({B * T, C}),
                  head.param(head_weight()), batch.targets.view({B * T}), batch.dloss, run.accumulate, ctx);
    });
    backward(dstream, batch.tokens, run, kept);
    arena.release(mark);
}

void Model::evaluate(Tensor losses, Tensor tokens, Tensor targets, const EvalOptions& options, Arena& arena,
                     UnitHooks& hooks) {
    const int64_t B = tokens.shape[0], T = tokens.shape[1], C = config.d_model;
    check_rows(B * sharding.group_ranks, options.group_size);
    if (options.discrete) check_discrete(config);
    hooks.begin(false);
    Run run{arena, hooks, B, T, false, false, false, options};
    const WorkspaceOnArena workspace(arena, ctx);
    int64_t mark = arena.mark();
    run.draw = zero_draw(arena);
    std::vector<Kept> kept;
    Tensor h = forward(tokens, arena.tensor("branch", precision.act, {B, T, C}), run, kept);
    with_head(run, [&](const UnitView& head) {
        head_loss(losses, {}, {}, h.view({B * T, C}), head.param(head_weight()), targets.view({B * T}), 0, false, ctx);
    });
    arena.release(mark);
}

void Model::logits(Tensor logits, Tensor tokens, const EvalOptions& options, Arena& arena, UnitHooks& hooks) {
    check_rows(tokens.shape[0], options.group_size);
    if (options.discrete) check_discrete(config);
    hooks.begin(false);
    Run run{arena, hooks, tokens.shape[0], tokens.shape[1], false, false, false, options};
    const WorkspaceOnArena workspace(arena, ctx);
    int64_t mark = arena.mark();
    run.draw = zero_draw(arena);
    std::vector<Kept> kept;
    Tensor branch = arena.tensor("branch", precision.act, {run.B, run.T, config.d_model});
    Tensor h = forward(tokens, branch, run, kept);
    with_head(run,
              [&](const UnitView& head) { matmul(logits, h, head.param(head_weight()), {.transpose_b = true}, ctx); });
    arena.release(mark);
}

// ------------------------------------------------------------------------------------------------- generation

Generation Model::start_generation(int64_t rows, Arena& arena) const {
    Generation generation{rows, 0, {}};
    for (const auto& block : blocks) {
        std::vector<Tensor> state;
        for (const StateSpec& s : block->declare_state(rows, precision.act))
            state.push_back(arena.tensor(s.name, s.dtype, s.shape));
        generation.state.push_back(state);
    }
    return generation;
}

void Model::extend(Tensor logits, Tensor tokens, Generation& generation, const EvalOptions& options, Arena& arena,
                   UnitHooks& hooks) {
    const int64_t B = tokens.shape[0], n = tokens.shape[1], C = config.d_model;
    check_rows(B, options.group_size);
    if (options.discrete) check_discrete(config);
    if (const std::string why = sees_the_future(config); !why.empty())
        input_error("a model ", why, " is not causal and cannot generate");
    if (generation.position + n > config.context)
        input_error("cannot extend to position ", generation.position + n, ": the model's context is ", config.context,
                    " tokens");
    hooks.begin(false);
    Run run{arena, hooks, B, n, false, false, false, options, {}, generation.position, true};
    const WorkspaceOnArena workspace(arena, ctx);
    int64_t mark = arena.mark();
    Tensor x = embed(tokens, run), branch = arena.tensor("branch", precision.act, x.shape);
    std::vector<Kept> kept;
    for (size_t i = 0; i < blocks.size(); i++) {
        int64_t temporaries = arena.mark();
        announce(i, run, Phase::forward, true);
        const Range range(kinds[i]->name, ctx);
        Pass pass = pass_for(i, run);
        pass.state = generation.state[i];
        append_slots(pass.slots, blocks[i]->declare_saved(B, n, pass), true, arena);
        append_slots(pass.slots, blocks[i]->declare_saved(B, n, pass), false, arena);
        Kept k{x, {}, {}, {}, {}};
        normalize(i, k, x, i == 0 ? Tensor{} : branch, run);
        blocks[i]->extend(pass, branch, k.normed);
        announce(i, run, Phase::forward, false);
        arena.release(temporaries);
    }
    Tensor h = finish_stream(x, branch, run, kept);
    Tensor last(static_cast<char*>(h.data) + (n - 1) * C * size_of(h.dtype), h.dtype, {B, C}, "last positions");
    last.stride = {n * C, 1};
    with_head(run, [&](const UnitView& head) {
        matmul(logits, last, head.param(head_weight()), {.transpose_b = true}, ctx);
    });
    arena.release(mark);
    generation.position += n;
}

}  // namespace llmc
