// Embedding and its gradient against plain float64 loops; gradients of a lookup are sums, so they are exact formulas.
#include "dev/test/reference.h"

namespace llmc {
namespace {

using namespace test;

struct Case {
    int64_t B, T, V, C, context;
};
// On the GPU: a vocabulary of one bucket or two (300), several rows at a time in a block or one, in 16 bytes or element
// by element (17, 301), rows that take more than one turn (301 elements, 2056).
const std::vector<Case> cases = [] {
    std::vector<Case> all = {
        {3, 5, 7, 16, 5}, {2, 7, 300, 17, 12}, {1, 1, 2, 1, 1}, {0, 4, 9, 16, 4}, {2, 3, 4, 301, 3}};
    if (small_sizes()) all.push_back({4, 17, 3, 40, 18});
    else all.insert(all.end(), {{12, 33, 5, 40, 33}, {2, 3, 5, 2056, 4}, {30, 40, 1000, 24, 40}});
    return all;
}();

struct Gradients {
    Vector token, position;
};
Gradients oracle(const Case& k, const Vector& tokens, const Vector& dout) {
    Gradients g{Vector(size_t(k.V * k.C)), Vector(size_t(k.context * k.C))};
    for (int64_t b = 0; b < k.B; b++)
        for (int64_t t = 0; t < k.T; t++)
            for (int64_t c = 0; c < k.C; c++) {
                double x = dout[size_t((b * k.T + t) * k.C + c)];
                g.token[size_t(int64_t(tokens[size_t(b * k.T + t)]) * k.C + c)] += x;
                g.position[size_t(t * k.C + c)] += x;
            }
    return g;
}

TEST(Embedding, ForwardAddsTokenAndPositionRows) {
    for (DType act : all_act)
        for (const Case& k : cases)
            for (int64_t first : {int64_t(0), k.context - k.T}) {
                Vector tokens = random_integers(k.B * k.T, 0, k.V, 1);
                Vector tt = rounded(act, random_vector(k.V * k.C, 2)),
                       pt = rounded(act, random_vector(k.context * k.C, 3));
                Vector only_token(size_t(k.B * k.T * k.C)), both = only_token;
                for (int64_t n = 0; n < k.B * k.T; n++)
                    for (int64_t c = 0; c < k.C; c++) {
                        double row = tt[size_t(int64_t(tokens[size_t(n)]) * k.C + c)];
                        only_token[size_t(n * k.C + c)] = row;
                        both[size_t(n * k.C + c)] = row + pt[size_t((first + n % k.T) * k.C + c)];
                    }
                Device d;
                Tensor ids = d.tensor(DType::i32, {k.B, k.T}, tokens, "ids"),
                       table = d.tensor(act, {k.V, k.C}, tt, "table");
                Tensor positions = d.tensor(act, {k.context, k.C}, pt, "positions"),
                       out = d.tensor(act, {k.B, k.T, k.C}, "out");
                embedding_forward(out, ids, table, positions, first, d.ctx);
                EXPECT_EQ(d.read(out), rounded(act, both));
                embedding_forward(out, ids, table, {}, first, d.ctx);
                EXPECT_EQ(d.read(out), only_token);
            }
}

TEST(Embedding, BackwardSumsRowsOfEqualTokensAndPositions) {
    for (DType act : all_act)
        for (const Case& k : cases)
            for (bool accumulate : {false, true}) {
                SCOPED_TRACE(str(name_of(act), " B", k.B, " T", k.T, " V", k.V, accumulate ? " accumulate" : ""));
                Vector tokens = random_integers(k.B * k.T, 0, k.V, 4),
                       dout = rounded(act, random_vector(k.B * k.T * k.C, 5));
                const Gradients gradients = oracle(k, tokens, dout), terms = oracle(k, tokens, magnitudes(dout));
                Sums want_token{gradients.token, terms.token}, want_position{gradients.position, terms.position};
                Vector token_before = random_vector(k.V * k.C, 6), position_before = random_vector(k.context * k.C, 7);
                DType f = statistics_dtype(act);
                Device d;
                Tensor ids = d.tensor(DType::i32, {k.B, k.T}, tokens, "ids"),
                       dy = d.tensor(act, {k.B, k.T, k.C}, dout, "dout");
                Tensor dtoken = d.tensor(f, {k.V, k.C}, "dtoken"),
                       dposition = d.tensor(f, {k.context, k.C}, "dposition");
                if (accumulate) {
                    want_token += rounded(f, token_before), want_position += rounded(f, position_before);
                    d.write(dtoken, token_before), d.write(dposition, position_before);
                }
                embedding_backward(dtoken, dposition, dy, ids, accumulate, accumulate, d.ctx);
                EXPECT_TRUE(close_sums(d.read(dtoken), want_token, f, tolerance(f, k.B * k.T)));
                EXPECT_TRUE(close_sums(d.read(dposition), want_position, f, tolerance(f, k.B)));
            }
}

// <out, dout> as a function of the token table: central differences of a linear function are exact up to rounding.
TEST(Embedding, BackwardMatchesFiniteDifferences) {
    Case k{2, 3, 4, 5, 3};
    Vector tokens = {1, 3, 1, 0, 1, 3}, dout = random_vector(30, 8), table = random_vector(20, 9);
    auto f = [&](const Vector& x) {
        double sum = 0;
        for (size_t n = 0; n < 6; n++)
            for (size_t c = 0; c < 5; c++) sum += x[size_t(tokens[n]) * 5 + c] * dout[n * 5 + c];
        return sum;
    };
    for (DType act : all_act) {
        Device d;
        Tensor ids = d.tensor(DType::i32, {k.B, k.T}, tokens, "ids"),
               dy = d.tensor(act, {k.B, k.T, k.C}, dout, "dout");
        Tensor dtable = d.tensor(statistics_dtype(act), {k.V, k.C}, "dtable");
        embedding_backward(dtable, {}, dy, ids, false, false, d.ctx);
        EXPECT_TRUE(close(d.read(dtable), numeric_gradient(f, table), 1e-8 + tolerance(act)));
    }
}

TEST(Embedding, BackwardDoesNotDependOnThreads) {
    Vector tokens = random_integers(1200, 0, 200, 10), dout = random_vector(1200 * 17, 11);
    Vector results[2];
    for (int threads : {1, 2}) {
        ContextOptions options;
        options.threads = threads;
        options.guard = true;  // and nothing is touched outside an op
        Device d(options);
        Tensor dtable = d.tensor(DType::f32, {200, 17}, "dtable"),
               dposition = d.tensor(DType::f32, {40, 17}, "dposition");
        embedding_backward(dtable, dposition, d.tensor(DType::f32, {30, 40, 17}, dout, "dout"),
                           d.tensor(DType::i32, {30, 40}, tokens, "ids"), false, false, d.ctx);
        results[threads - 1] = d.read(dtable);
        Vector position = d.read(dposition);
        results[threads - 1].insert(results[threads - 1].end(), position.begin(), position.end());
    }
    EXPECT_EQ(results[0], results[1]);
}

// What cannot be told to the host from within a kernel shows as NaN and touches no other memory.
TEST(Embedding, UnknownTokensBecomeNaNWhereTheyCannotBeRefused) {
    if (backend_supports(DType::f64)) GTEST_SKIP() << "the CPU refuses them: WrongTensorsAndTokensAreNamed";
    for (DType act : all_act) {
        Device d;
        Tensor table = d.tensor(act, {3, 8}, random_vector(24, 12), "table"), out = d.tensor(act, {1, 5, 8}, "out");
        Tensor ids = d.tensor(DType::i32, {1, 5}, {2, -1, 0, 3, 1000000000}, "ids");
        embedding_forward(out, ids, table, {}, 0, d.ctx);
        Vector rows = d.read(out);
        for (size_t i = 0; i < rows.size(); i++) EXPECT_EQ(std::isnan(rows[i]), i / 8 != 0 && i / 8 != 2) << i;
        Tensor dtable = d.tensor(DType::f32, {3, 8}, "dtable"), dy = d.tensor(act, {1, 5, 8}, Vector(40, 1.0), "dy");
        embedding_backward(dtable, {}, dy, ids, false, false, d.ctx);
        Vector want(24, 1.0);
        std::fill(want.begin() + 8, want.begin() + 16, 0.0);  // token 1 does not occur
        EXPECT_EQ(d.read(dtable), want);
    }
}

TEST(Embedding, WrongTensorsAndTokensAreNamed) {
    Device d;
    Tensor out = d.tensor(DType::f32, {2, 3, 4}, "out"), table = d.tensor(DType::f32, {5, 4}, Vector(20, 0.0), "table");
    Tensor ids = d.tensor(DType::i32, {2, 3}, {0, 1, 2, 3, 4, 5}, "ids"),
           negative = d.tensor(DType::i32, {2, 3}, Vector(6, -1), "negative");
    Tensor narrow = d.tensor(DType::f32, {5, 3}, "narrow"), flat = d.tensor(DType::i32, {6}, "flat");
    Tensor two = d.tensor(DType::f32, {2, 4}, "two"), dtable = d.tensor(DType::f32, {5, 4}, "dtable");
    EXPECT_TRUE(refuses([&] { embedding_forward(out, ids, narrow, {}, 0, d.ctx); }, "narrow"));
    EXPECT_TRUE(refuses([&] { embedding_forward(out, flat, table, {}, 0, d.ctx); }, "flat"));
    EXPECT_TRUE(refuses([&] { embedding_forward(out, ids, table, two, 0, d.ctx); }, "two"));
    EXPECT_TRUE(refuses([&] { embedding_forward(out, ids, table, table, 3, d.ctx); }, "positions"));
    EXPECT_TRUE(refuses([&] { embedding_backward(narrow, {}, out, ids, false, false, d.ctx); }, "narrow"));
    EXPECT_TRUE(refuses([&] { embedding_backward(dtable, two, out, ids, false, false, d.ctx); }, "two"));
    if (!backend_supports(DType::f64)) return;  // tokens are on a device that cannot complain
    EXPECT_TRUE(refuses([&] { embedding_forward(out, ids, table, {}, 0, d.ctx); }, "element 5 is 5"));
    EXPECT_TRUE(refuses([&] { embedding_forward(out, negative, table, {}, 0, d.ctx); }, "negative"));
    EXPECT_TRUE(refuses([&] { embedding_backward(dtable, {}, out, ids, false, false, d.ctx); }, "element 5 is 5"));
}

}  // namespace
}  // namespace llmc
