// What the tests of whole models share: a tiny model with everything it needs to run, and its results as plain vectors.
#pragma once
#include <map>

#include "dev/test/reference.h"
#include "llmc/model/model.h"
#include "llmc/step/session.h"

namespace llmc::test {

using Tokens = std::vector<int32_t>;

// Small enough for milliseconds, large enough for every option: 8 positions, groups of 4, 6 experts.
inline ModelConfig tiny(const std::string& pattern) {
    ModelConfig c;
    c.pattern = pattern;
    c.vocab_size = 50, c.d_model = 16, c.heads = 2, c.d_ff = 24, c.context = 8;
    c.group_size = 4, c.experts = 6, c.expert_size = 10;
    c.init_scale = 1;
    return c;
}
inline const std::string dense_pattern = "2x(attention ffn)", mot_pattern = "attention ffn attention mot",
                         moe_pattern = "attention moe_token_choice attention moe_expert_choice";

inline Tokens random_tokens(int64_t n, uint64_t seed, int64_t vocab = 50) {
    Vector v = random_integers(n, 0, vocab, seed);
    return Tokens(v.begin(), v.end());
}

inline Vector read_tensor(const Tensor& t, Context& ctx) {
    std::vector<char> bytes(static_cast<size_t>(t.bytes()));
    download(bytes.data(), t, ctx);
    return decode(t.dtype, bytes);
}
inline void write_tensor(const Tensor& t, const Vector& values, Context& ctx) {
    upload(t, encode(t.dtype, values).data(), ctx);
}

using NamedVectors = std::map<std::string, Vector>;
inline NamedVectors read_all(const std::vector<NamedTensor>& tensors, Context& ctx) {
    NamedVectors all;
    for (const NamedTensor& t : tensors) all[t.name] = read_tensor(t.tensor, ctx);
    return all;
}

// True if all elements are equal (a NaN equals nothing).
inline testing::AssertionResult identical(const Vector& a, const Vector& b) {
    if (a.size() != b.size()) return testing::AssertionFailure() << a.size() << " elements against " << b.size();
    for (size_t i = 0; i < a.size(); i++)
        if (!(a[i] == b[i]))
            return testing::AssertionFailure() << "element " << i << ": " << a[i] << " against " << b[i];
    return testing::AssertionSuccess();
}
inline testing::AssertionResult identical(const NamedVectors& a, const NamedVectors& b) {
    if (a.size() != b.size()) return testing::AssertionFailure() << a.size() << " tensors against " << b.size();
    for (const auto& [name, values] : a) {
        if (!b.count(name)) return testing::AssertionFailure() << name << " is missing";
        if (auto same = identical(values, b.at(name)); !same)
            return testing::AssertionFailure() << name << ", " << same.message();
    }
    return testing::AssertionSuccess();
}
// As close(), for every tensor of two sets.
inline testing::AssertionResult all_close(const NamedVectors& got, const NamedVectors& want, double tol) {
    if (want.empty()) return testing::AssertionFailure() << "there is nothing to compare";
    for (const auto& [name, values] : want) {
        if (!got.count(name)) return testing::AssertionFailure() << name << " is missing";
        if (auto ok = close(got.at(name), values, tol); !ok)
            return testing::AssertionFailure() << name << ": " << ok.message();
    }
    return testing::AssertionSuccess();
}

// A model that can be trained, with random parameters.
struct Lab {
    Context ctx;
    Model model;
    Arena arena;
    UnitHooks hooks;

    explicit Lab(const ModelConfig& config, const std::string& precision = "fp32",
                 ContextOptions options = {.threads = 1})
        : ctx(options), model(config, Precision::of(from_word<PrecisionMode>(precision)), true, ctx),
          arena("test", ctx) {
        arena.allocate(64 << 20);  // on GPUs half of it for the library of products
        model.allocate(true);
        model.initialize(1);
        for (const NamedTensor& p : model.parameters()) {  // norms and biases too should be no special numbers
            Vector values = read_tensor(p.tensor, ctx);
            Vector noise = random_vector(p.tensor.numel(), hash_of_name(p.name), 0.2);
            for (size_t i = 0; i < values.size(); i++) values[i] += noise[i];
            write_tensor(p.tensor, values, ctx);
        }
        model.refresh_compute_copy();
    }
    static uint64_t hash_of_name(const std::string& name) {
        uint64_t hash = 17;
        for (char c : name) hash = hash * 31 + uint64_t(static_cast<unsigned char>(c));
        return hash;
    }

    Tensor tokens_on_device(const Tokens& tokens, int64_t rows) {
        Tensor t = arena.tensor("tokens", DType::i32, {rows, int64_t(tokens.size()) / rows});
        upload(t, tokens.data(), ctx);
        return t;
    }

    // [rows, T, V]
    Vector logits(const Tokens& tokens, int64_t rows, const EvalOptions& options = {}) {
        int64_t mark = arena.mark();
        Tensor t = tokens_on_device(tokens, rows);
        Tensor out = arena.tensor("logits", model.stat(), {rows, t.shape[1], model.config.vocab_size});
        model.logits(out, t, options, arena, hooks);
        Vector values = read_tensor(out, ctx);
        arena.release(mark);
        return values;
    }

    // [rows, T]
    Vector evaluate(const Tokens& tokens, const Tokens& targets, int64_t rows, const EvalOptions& options = {}) {
        int64_t mark = arena.mark();
        Tensor t = tokens_on_device(tokens, rows), y = tokens_on_device(targets, rows);
        Tensor losses = arena.tensor("losses", model.stat(), {t.numel()});
        model.evaluate(losses, t, y, options, arena, hooks);
        Vector values = read_tensor(losses, ctx);
        arena.release(mark);
        return values;
    }

    // Losses [rows, T]; the gradients of dloss * their sum stay in the model.
    struct TrainOptions {
        bool accumulate = false, recompute = false;
        double dloss = 1;
    };
    Vector train(const Tokens& tokens, const Tokens& targets, int64_t rows, const TrainOptions& options) {
        int64_t mark = arena.mark();
        Tensor t = tokens_on_device(tokens, rows), y = tokens_on_device(targets, rows);
        Tensor losses = arena.tensor("losses", model.stat(), {t.numel()});
        model.train({t, y, losses, options.dloss, options.accumulate}, options.recompute, arena, hooks);
        Vector values = read_tensor(losses, ctx);
        arena.release(mark);
        return values;
    }

    // A training pass that also measures: losses [rows, T] and every metric by name.
    struct Measured {
        Vector losses;
        std::map<std::string, double> metrics;
    };
    Measured train_measured(const Tokens& tokens, const Tokens& targets, int64_t rows, double dloss = 1) {
        int64_t mark = arena.mark();
        Tensor t = tokens_on_device(tokens, rows), y = tokens_on_device(targets, rows);
        Tensor losses = arena.tensor("losses", model.stat(), {t.numel()});
        Tensor metrics = arena.tensor("metrics", DType::f64, {model.metric_count()});
        model.train({t, y, losses, dloss, false, metrics}, false, arena, hooks);
        Measured measured{read_tensor(losses, ctx), {}};
        const Vector values = read_tensor(metrics, ctx);
        for (const MetricSlot& slot : model.metric_slots()) measured.metrics[slot.name] = values[size_t(slot.first)];
        arena.release(mark);
        return measured;
    }

    // Logits [rows, V] after each chunk of positions, one after another.
    std::vector<Vector> extend(const Tokens& tokens, int64_t rows, const std::vector<int64_t>& chunks,
                               const EvalOptions& options = {}) {
        int64_t mark = arena.mark();
        const int64_t T = int64_t(tokens.size()) / rows;
        Generation generation = model.start_generation(rows, arena);
        Tensor out = arena.tensor("logits", model.stat(), {rows, model.config.vocab_size});
        std::vector<Vector> all;
        for (int64_t n : chunks) {
            Tokens part;
            for (int64_t b = 0; b < rows; b++)
                for (int64_t t = 0; t < n; t++) part.push_back(tokens[size_t(b * T + generation.position + t)]);
            int64_t temporaries = arena.mark();
            model.extend(out, tokens_on_device(part, rows), generation, options, arena, hooks);
            all.push_back(read_tensor(out, ctx));
            arena.release(temporaries);
        }
        arena.release(mark);
        return all;
    }

    NamedVectors gradients() { return read_all(model.gradients(), ctx); }
    NamedVectors parameters() { return read_all(model.parameters(), ctx); }
    Tensor parameter(const std::string& name) {
        ParamTable::Found found = model.table.find(name);
        return view_of(*found.spec, unit_range(*found.unit, model.params));
    }
};

}  // namespace llmc::test
