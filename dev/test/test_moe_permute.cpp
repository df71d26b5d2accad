// Rows that are moved to the experts and back, against plain loops; and what holds for all sparse MoE ops: threads,
// counting, refusals.
#include "dev/test/moe_oracle.h"

namespace llmc {
namespace {

using namespace test;

Vector gather_oracle(const Sizes& s, const Vector& x, const Routing& r, const Vector* weights) {
    Vector gathered(size_t(r.rows() * s.C));
    for (int64_t row = 0; row < r.rows(); row++)
        if (auto [n, e] = r.at(s, row); n >= 0)
            for (int64_t c = 0; c < s.C; c++)
                gathered[size_t(row * s.C + c)] =
                    (weights ? (*weights)[size_t(n * s.E + e)] : 1.0) * x[size_t(n * s.C + c)];
    return gathered;
}

// Through `slots`, where the op goes through `where`.
Vector scatter_oracle(const Sizes& s, Vector out, const Vector& y, const Routing& r, const Vector* weights) {
    for (int64_t row = 0; row < r.rows(); row++)
        if (auto [n, e] = r.at(s, row); n >= 0)
            for (int64_t c = 0; c < s.C; c++)
                out[size_t(n * s.C + c)] +=
                    (weights ? (*weights)[size_t(n * s.E + e)] : 1.0) * y[size_t(row * s.C + c)];
    return out;
}

// The experts' rows: [E,S,C] with a capacity, [R,C] without.
Shape rows_shape(const Sizes& s, const Routing& r) {
    return r.offsets.empty() ? Shape{s.E, s.S, s.C} : Shape{r.rows(), s.C};
}

// f(sizes, type, routing) for all of them.
template <class F>
void for_all_routings(F f) {
    for (DType act : all_act)
        for (const Sizes& s : cases)
            for (const Routing& r : some_routings(s)) {
                SCOPED_TRACE(s.text() + str(" ", name_of(act), r.offsets.empty() ? "" : " dropless"));
                f(s, act, r);
            }
}

TEST(MoeOps, GatherMatchesPlainLoops) {
    for_all_routings([](const Sizes& s, DType act, const Routing& r) {
        for (bool weighted : {false, true}) {
            Inputs in(s, act, r);
            Device d;
            Tables tables(d, s, r);
            Tensor x = d.tensor(act, {s.B, s.T, s.C}, in.x, "x");
            Tensor weights = d.tensor(statistics_dtype(act), {s.B, s.T, s.E}, in.weights, "weights");
            Tensor gathered = d.tensor(act, rows_shape(s, r), "gathered");
            moe_gather(gathered, x, tables.slots, s.E, weighted ? weights : Tensor(), d.ctx);
            Vector want = gather_oracle(s, in.x, r, weighted ? &in.weights : nullptr);
            if (weighted)
                EXPECT_TRUE(close_sums(d.read(gathered), {want, magnitudes(want)}, act, tolerance(act)));
            else
                EXPECT_EQ(d.read(gathered), want);
        }
    });
}

TEST(MoeOps, ScatterMatchesPlainLoops) {
    for_all_routings([](const Sizes& s, DType act, const Routing& r) {
        for (bool weighted : {false, true})
            for (bool accumulate : {false, true}) {
                Inputs in(s, act, r);
                Device d;
                Tables tables(d, s, r);
                Tensor y = d.tensor(act, rows_shape(s, r), in.y, "y");
                Tensor weights = d.tensor(statistics_dtype(act), {s.B, s.T, s.E}, in.weights, "weights");
                Tensor out = d.tensor(act, {s.B, s.T, s.C}, "out");
                if (accumulate) d.write(out, in.before);
                moe_scatter(out, y, tables.where, weighted ? weights : Tensor(), accumulate, d.ctx);
                Vector zero(in.before.size(), 0.0);
                const Vector start = accumulate ? in.before : zero, weight_sizes = magnitudes(in.weights);
                const Sums want{scatter_oracle(s, start, in.y, r, weighted ? &in.weights : nullptr),
                                scatter_oracle(s, magnitudes(start), magnitudes(in.y), r,
                                               weighted ? &weight_sizes : nullptr)};
                EXPECT_TRUE(close_sums(d.read(out), want, act, tolerance(act, s.k + 1)));
            }
    });
}

TEST(MoeOps, WeightsBackwardMatchesPlainLoops) {
    for_all_routings([](const Sizes& s, DType act, const Routing& r) {
        for (bool accumulate : {false, true}) {
            const DType f = statistics_dtype(act);
            Inputs in(s, act, r);
            const Vector start = accumulate ? in.weights : Vector(in.weights.size(), 0.0);
            Sums want{start, magnitudes(start)};
            for (int64_t row = 0; row < r.rows(); row++)
                if (auto [n, e] = r.at(s, row); n >= 0)
                    for (int64_t c = 0; c < s.C; c++) {
                        const double product = in.x[size_t(n * s.C + c)] * in.y[size_t(row * s.C + c)];
                        want.value[size_t(n * s.E + e)] += product;
                        want.terms[size_t(n * s.E + e)] += std::abs(product);
                    }
            Device d;
            Tables tables(d, s, r);
            Tensor dout = d.tensor(act, {s.B, s.T, s.C}, in.x, "dout"), y = d.tensor(act, rows_shape(s, r), in.y, "y");
            Tensor dweights = d.tensor(f, {s.B, s.T, s.E}, "dweights");
            if (accumulate) d.write(dweights, in.weights);
            moe_weights_backward(dweights, dout, y, tables.where, accumulate, d.ctx);
            EXPECT_TRUE(close_sums(d.read(dweights), want, f, tolerance(f, s.C + 1)));
        }
    });
}

// <gather(x), y> = <x, scatter(y)>: each op is the other's gradient. And <scatter(y), x> = <weights, dweights>.
TEST(MoeOps, GatherAndScatterAreAdjoint) {
    for_all_routings([](const Sizes& s, DType act, const Routing& r) {
        if (act != arithmetic_types.back()) return;  // the most exact
        for (bool weighted : {false, true}) {
            Inputs in(s, act, r);
            for (double& v : in.y) v = std::isnan(v) ? 0 : v;  // gather leaves 0 there: no term of the products below
            Device d;
            Tables tables(d, s, r);
            Tensor x = d.tensor(act, {s.B, s.T, s.C}, in.x, "x"), y = d.tensor(act, rows_shape(s, r), in.y, "y");
            Tensor all = d.tensor(act, {s.B, s.T, s.E}, in.weights, "weights"), weights = weighted ? all : Tensor();
            Tensor gathered = d.tensor(act, y.shape, "gathered"), out = d.tensor(act, x.shape, "out");
            Tensor dweights = d.tensor(act, all.shape, "dweights");
            moe_gather(gathered, x, tables.slots, s.E, weights, d.ctx);
            moe_scatter(out, y, tables.where, weights, false, d.ctx);
            moe_weights_backward(dweights, x, y, tables.where, false, d.ctx);
            const double left = dot(d.read(gathered), in.y), right = dot(in.x, d.read(out));
            const double tol = tolerance(act, s.N() * s.k * s.C) * (1 + std::sqrt(double(s.N() * s.k * s.C)));
            EXPECT_NEAR(left, right, tol);
            if (weighted) {
                EXPECT_NEAR(right, dot(in.weights, d.read(dweights)), tol);
            }
        }
    });
}

// What no slot holds is neither read nor passed on: NaN weights and rows of dropped tokens do no harm.
TEST(MoeOps, WhatIsDroppedIsNotTouched) {
    Device d;
    Sizes s{1, 3, 2, 2, 1, 4};
    Routing r(s);
    r.put(4, 0);  // expert 0: token 2 and an empty row; expert 1: nothing
    r.where[2] = r.where[5] = -2;
    Tables tables(d, s, r);
    Tensor x = d.tensor(DType::f32, {1, 3, 4}, {nan, nan, nan, nan, nan, nan, nan, nan, 1, 2, 3, 4}, "x");
    Tensor weights = d.tensor(DType::f32, {1, 3, 2}, {nan, nan, nan, nan, 0.5, nan}, "weights");
    Tensor y = d.tensor(DType::f32, {2, 2, 4}, "y"), out = d.tensor(DType::f32, {1, 3, 4}, "out");
    Tensor dweights = d.tensor(DType::f32, {1, 3, 2}, "dweights");
    moe_gather(y, x, tables.slots, s.E, weights, d.ctx);
    Vector rows(16, 0.0);
    for (size_t c = 0; c < 4; c++) rows[c] = 0.5 * double(c + 1);
    EXPECT_EQ(d.read(y), rows);
    for (size_t i = 4; i < 16; i++) rows[i] = nan;
    d.write(y, rows);
    moe_scatter(out, y, tables.where, weights, false, d.ctx);
    EXPECT_EQ(d.read(out), (Vector{0, 0, 0, 0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1}));
    moe_weights_backward(dweights, x, y, tables.where, false, d.ctx);
    EXPECT_EQ(d.read(dweights), (Vector{0, 0, 0, 0, 15, 0}));
}

TEST(MoeOps, ResultsDoNotDependOnThreads) {
    const Sizes s = small_sizes() ? Sizes{6, 9, 7, 11, 2, 36} : Sizes{12, 70, 33, 40, 2, 130};
    Inputs in(s, DType::f32, Routing(s));
    std::vector<Vector> results[2];
    for (int threads : {1, 3}) {
        ContextOptions options;
        options.threads = threads;
        options.guard = true;  // and nothing is touched outside an op
        Device d(options);
        Vector p = make_probs(Probs::nans, s.N(), s.E, 11);
        for (double& v : p) v = std::isnan(v) ? nan : v + 0.1;
        Tensor probs = d.tensor(DType::f32, {s.B, s.T, s.E}, p, "probs");
        Tensor slots = d.tensor(DType::i32, {s.E, s.S}, "slots"), where = d.tensor(DType::i32, probs.shape, "where"),
               counts = d.tensor(DType::i32, {s.E}, "counts"), stats = d.tensor(DType::f64, {4}, "stats");
        Tensor all = d.tensor(DType::i32, {s.E, s.T * s.k * 2}, "all");
        Tensor weights = d.tensor(DType::f32, probs.shape, in.weights, "weights"),
               dweights = d.tensor(DType::f32, probs.shape, "dweights");
        Tensor x = d.tensor(DType::f32, {s.B, s.T, s.C}, in.x, "x"), out = d.tensor(DType::f32, x.shape, "out");
        Tensor y = d.tensor(DType::f32, {s.E, s.S, s.C}, "y");
        moe_choose_tokens(all, where, probs, s.k, s.B / 2, d.ctx);
        for (const Tensor& t : {all, where}) results[threads > 1].push_back(d.read(t));
        moe_choose_experts(slots, where, counts, {}, probs, {s.k, DropOrder::gate}, d.ctx);
        moe_gather(y, x, slots, s.E, weights, d.ctx);
        moe_scatter(out, y, where, weights, false, d.ctx);
        moe_weights_backward(dweights, x, y, where, false, d.ctx);
        moe_balance(stats, weights, counts, slots, d.ctx);
        moe_balance_backward(dweights, counts, 0.3, d.ctx);
        for (const Tensor& t : {slots, where, counts, y, out, dweights, stats})
            results[threads > 1].push_back(d.read(t));
        Tensor rows = d.tensor(DType::i32, {ragged_rows(s.N() * s.k, s.E)}, "rows"),
               offsets = d.tensor(DType::i32, {s.E + 1}, "offsets");
        moe_choose_experts(rows, where, counts, offsets, probs, {.k = s.k}, d.ctx);
        for (const Tensor& t : {rows, where, offsets}) results[threads > 1].push_back(d.read(t));
    }
    EXPECT_EQ(results[0], results[1]);
}

TEST(MoeOps, CountingAddsFlopsAndTouchesNothing) {
    Context ctx(ContextOptions{.counting = true});
    auto tensor = [&](DType dtype, Shape shape, const char* name) {
        return Tensor(device_alloc(shape.numel() * size_of(dtype), ctx), dtype, shape, name);
    };
    Tensor x = tensor(DType::bf16, {2, 8, 16}, "x"), y = tensor(DType::bf16, {4, 5, 16}, "y");
    Tensor probs = tensor(DType::f32, {2, 8, 4}, "probs"), where = tensor(DType::i32, {2, 8, 4}, "where");
    Tensor slots = tensor(DType::i32, {4, 5}, "slots"), counts = tensor(DType::i32, {4}, "counts");
    moe_choose_experts(slots, where, counts, {}, probs, {.order = DropOrder::gate}, ctx);
    moe_gather(y, x, slots, 4, {}, ctx);
    EXPECT_EQ(ctx.flops, 0);
    moe_gather(y, x, slots, 4, probs, ctx);
    EXPECT_EQ(ctx.flops, 320);
    moe_scatter(x, y, where, {}, false, ctx);
    EXPECT_EQ(ctx.flops, 2 * 320);
    moe_scatter(x, y, where, probs, false, ctx);
    EXPECT_EQ(ctx.flops, 4 * 320);
    moe_weights_backward(probs, x, y, where, true, ctx);
    EXPECT_EQ(ctx.flops, 6 * 320);
}

TEST(MoeOps, WrongTensorsAreNamed) {
    Device d;
    auto i32 = [&](Shape shape, const char* name) { return d.tensor(DType::i32, shape, name); };
    auto f32 = [&](Shape shape, const char* name) { return d.tensor(DType::f32, shape, name); };
    Tensor slots = i32({4, 5}, "slots"), where = i32({6, 3, 4}, "where"), counts = i32({4}, "counts");
    Tensor probs = f32({6, 3, 4}, "probs"), x = f32({6, 3, 8}, "x"), y = f32({4, 5, 8}, "y"),
           flat = f32({18, 4}, "flat");
    Tensor few = i32({3}, "few"), narrow = i32({3, 5}, "narrow"), short_where = i32({6, 2, 4}, "short_where");
    Tensor long_rows = f32({4, 5, 9}, "long_rows"), halves = d.tensor(DType::bf16, {6, 3, 4}, "halves");
    Tensor stats = d.tensor(DType::f64, {4}, "stats");
    auto choose = [&](Tensor slots, Tensor where, Tensor counts, Tensor offsets, Tensor probs, int64_t k) {
        moe_choose_experts(slots, where, counts, offsets, probs, {.k = k}, d.ctx);
    };
    EXPECT_TRUE(refuses([&] { choose(slots, where, counts, {}, probs, 5); }, "5 of 4 experts"));
    EXPECT_TRUE(refuses([&] { choose(slots, where, counts, {}, probs, 0); }, "0 of 4 experts"));
    EXPECT_TRUE(refuses([&] { choose(slots, where, few, {}, probs, 1); }, "counts few"));
    EXPECT_TRUE(refuses([&] { choose(narrow, where, counts, {}, probs, 1); }, "slots narrow"));
    EXPECT_TRUE(refuses([&] { choose(counts, where, counts, {}, probs, 1); }, "slots counts"));
    EXPECT_TRUE(refuses([&] { choose(slots, short_where, counts, {}, probs, 1); }, "where short_where"));
    EXPECT_TRUE(refuses([&] { choose(slots, where, counts, {}, flat, 1); }, "probs flat"));
    EXPECT_TRUE(refuses([&] { choose(slots, where, counts, {}, halves, 1); },
                        "probs halves has dtype BF16, expected F32 or F64"));
    Tensor offsets = i32({5}, "offsets"), rows = i32({ragged_rows(18, 4)}, "rows");
    EXPECT_TRUE(refuses([&] { choose(slots, where, counts, offsets, probs, 1); }, "slots slots"));
    EXPECT_TRUE(refuses([&] { choose(rows, where, counts, counts, probs, 1); }, "offsets counts"));
    EXPECT_TRUE(refuses([&] { choose(rows, where, counts, offsets, probs, 2); }, "slots rows"));
    EXPECT_TRUE(refuses([&] { choose(rows, where, counts, {}, probs, 1); }, "slots rows"));
    Tensor huge = probs;
    huge.shape = huge.stride = {1 << 20, 1 << 10, 4};
    EXPECT_TRUE(refuses([&] { choose(slots, where, counts, {}, huge, 1); }, "1073741824 tokens x 4 experts"));
    EXPECT_TRUE(refuses([&] { moe_choose_tokens(slots, where, probs, 1, 4, d.ctx); }, "groups of 4"));
    EXPECT_TRUE(refuses([&] { moe_choose_tokens(slots, where, probs, 4, 3, d.ctx); }, "4 of 3 tokens"));
    EXPECT_TRUE(refuses([&] { moe_choose_tokens(slots, where, probs, 1, -1, d.ctx); }, "groups of -1"));
    EXPECT_TRUE(refuses([&] { moe_choose_tokens(slots, where, probs, 2, 6, d.ctx); }, "expected [4, 6]"));
    EXPECT_TRUE(refuses([&] { moe_gather(long_rows, x, slots, 4, {}, d.ctx); }, "gathered long_rows"));
    EXPECT_TRUE(refuses([&] { moe_gather(y, flat, slots, 4, {}, d.ctx); }, "x flat"));
    EXPECT_TRUE(refuses([&] { moe_gather(y, x, slots, 4, x, d.ctx); }, "weights x"));
    EXPECT_TRUE(refuses([&] { moe_gather(y, x, counts, 4, {}, d.ctx); }, "gathered y"));
    EXPECT_TRUE(refuses([&] { moe_gather(y, x, slots, 5, probs, d.ctx); }, "weights probs"));
    EXPECT_TRUE(refuses([&] { moe_gather(y, x, slots, 0, {}, d.ctx); }, "0 experts"));
    EXPECT_TRUE(refuses([&] { moe_gather(y, x, y, 4, {}, d.ctx); }, "slots y"));
    EXPECT_TRUE(refuses([&] { moe_scatter(x, long_rows, where, {}, false, d.ctx); }, "y long_rows"));
    EXPECT_TRUE(refuses([&] { moe_scatter(x, y, short_where, {}, false, d.ctx); }, "out x"));
    EXPECT_TRUE(refuses([&] { moe_weights_backward(halves, x, y, where, false, d.ctx); }, "dweights halves"));
    EXPECT_TRUE(refuses([&] { moe_weights_backward(probs, {}, y, where, false, d.ctx); }, "dout"));
    EXPECT_TRUE(refuses([&] { moe_balance(probs, probs, counts, slots, d.ctx); }, "stats probs"));
    EXPECT_TRUE(refuses([&] { moe_balance(stats, probs, few, slots, d.ctx); }, "counts few"));
    EXPECT_TRUE(refuses([&] { moe_balance_backward(probs, few, 1.0, d.ctx); }, "counts few"));
    if (!backend_supports(DType::f64)) {
        Tensor doubles = d.tensor(DType::f64, {6, 3, 4}, "doubles");
        EXPECT_TRUE(refuses([&] { choose(slots, where, counts, {}, doubles, 1); },
                            "probs doubles has dtype F64, expected F32"));
    }
}

}  // namespace
}  // namespace llmc
