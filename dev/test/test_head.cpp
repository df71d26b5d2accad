// head_loss against a float64 oracle and finite differences.
#include "dev/test/reference.h"

namespace llmc::test {
namespace {

const double nan_value = std::numeric_limits<double>::quiet_NaN();

struct Sizes { int64_t rows, model, vocabulary; };

struct HeadResult { Sums losses, dx, dweight; };

// Losses and gradients in double, straight from the definition. A logit is as exact as its terms, an exponential as its
// argument, and gradients see dlogits rounded to `type`.
HeadResult oracle(const Vector& x, const Vector& weight, const Vector& targets, Sizes s, double dloss, DType type) {
    const Sums logits = matmul_sums(x, weight, s.rows, s.vocabulary, s.model, false, true);
    const double stored = 2 * roundoff(type) / (8 * roundoff(statistics_dtype(type)));
    Vector dlogits(logits.value.size()), sizes(dlogits.size());
    HeadResult r{{Vector(size_t(s.rows)), Vector(size_t(s.rows))}, {}, {}};
    for (int64_t i = 0; i < s.rows; i++) {
        const int64_t target = int64_t(targets[size_t(i)]), first = i * s.vocabulary;
        const double *row = &logits.value[size_t(first)], *terms = &logits.terms[size_t(first)];
        const double most = *std::max_element(row, row + s.vocabulary),
                     most_terms = *std::max_element(terms, terms + s.vocabulary);
        double sum = 0;
        for (int64_t j = 0; j < s.vocabulary; j++) sum += std::exp(row[j] - most);
        if (target < 0) continue;
        r.losses.value[size_t(i)] = most + std::log(sum) - row[target];
        r.losses.terms[size_t(i)] = 2 * most_terms + std::log(sum) + 1;
        for (int64_t j = 0; j < s.vocabulary; j++) {
            const double p = std::exp(row[j] - most) / sum, hit = j == target;
            dlogits[size_t(first + j)] = dloss * (p - hit);
            sizes[size_t(first + j)] = dloss * (p * (1 + 2 * most_terms) + hit + stored * std::abs(p - hit));
        }
    }
    r.dx = {matmul_sums(dlogits, weight, s.rows, s.model, s.vocabulary, false, false).value,
            matmul_sums(sizes, weight, s.rows, s.model, s.vocabulary, false, false).terms};
    r.dweight = {matmul_sums(dlogits, x, s.vocabulary, s.model, s.rows, true, false).value,
                 matmul_sums(sizes, x, s.vocabulary, s.model, s.rows, true, false).terms};
    return r;
}

struct Head {
    Device device;
    Sizes s;
    Tensor x, weight, targets, losses, dx, dweight;
    Head(DType type, Sizes sizes, double scale = 1.0, const ContextOptions& options = {}) : device(options), s(sizes) {
        x = device.tensor(type, {s.rows, s.model}, random_vector(s.rows * s.model, 1, scale), "x");
        weight = device.tensor(type, {s.vocabulary, s.model}, random_vector(s.vocabulary * s.model, 2), "weight");
        targets = device.tensor(DType::i32, {s.rows}, random_integers(s.rows, -1, s.vocabulary, 3), "targets");
        losses = device.tensor(statistics_dtype(type), {s.rows}, "losses");
        dx = device.tensor(type, {s.rows, s.model}, "dx");
        dweight = device.tensor(statistics_dtype(type), {s.vocabulary, s.model}, "dweight");
    }
    void run(double dloss, bool accumulate) {
        head_loss(losses, dx, dweight, x, weight, targets, dloss, accumulate, device.ctx);
    }
};

// Vocabularies below one warp's width, of several warps, and longer than what one block holds at a time.
std::vector<Sizes> head_sizes() {
    if (small_sizes()) return {{1, 1, 1}, {3, 7, 17}, {5, 9, 300}, {1, 2, 17001}};
    return {{1, 1, 1}, {3, 7, 17}, {17, 33, 65}, {65, 17, 64}, {33, 3, 1000}, {3, 5, 17001}};
}

TEST(Head, LossesAndGradients) {
    for (DType type : all_act)
        for (Sizes s : head_sizes())
            for (bool accumulate : {false, true}) {
                Head head(type, s);
                Vector start(size_t(s.vocabulary * s.model), 0.0);
                if (accumulate) {
                    start = random_vector(s.vocabulary * s.model, 4);
                    head.device.write(head.dweight, start);
                }
                head.run(0.25, accumulate);
                HeadResult want = oracle(head.device.read(head.x), head.device.read(head.weight),
                                         head.device.read(head.targets), s, 0.25, type);
                // A probability is divided by a sum over the vocabulary.
                const double of_sum = error_of_positive_sum(statistics_dtype(type), s.vocabulary);
                want.dx = with_errors_of_factors(want.dx, type, of_sum);
                want.dweight = with_errors_of_factors(want.dweight, statistics_dtype(type), of_sum);
                want.dweight += start;
                // Gradients see dlogits rounded to the activation type.
                const double stored = 4 * roundoff(type);
                const DType f = statistics_dtype(type);
                EXPECT_TRUE(close_sums(head.device.read(head.losses), want.losses, f, tolerance(f, s.vocabulary)));
                const double tol = tolerance(type, s.vocabulary) + stored;
                EXPECT_TRUE(close_sums(head.device.read(head.dx), want.dx, type, tol)) << name_of(type);
                EXPECT_TRUE(close_sums(head.device.read(head.dweight), want.dweight, f, tolerance(f, s.rows) + stored))
                    << name_of(type) << " rows " << s.rows;
            }
}

// More rows than fit one chunk, and a vocabulary that is not a multiple of 64.
TEST(Head, SeveralChunks) {
    for (DType type : {DType::f32, DType::bf16}) {
        if (small_sizes() && type == DType::f32) continue;
        const Sizes s = small_sizes() ? Sizes{8200, 1, 3} : Sizes{8200, 7, 33};
        Head head(type, s);
        head.run(0.001, false);
        const HeadResult want = oracle(head.device.read(head.x), head.device.read(head.weight),
                                       head.device.read(head.targets), s, 0.001, type);
        const DType f32 = DType::f32;
        const double stored = 4 * roundoff(type);
        EXPECT_TRUE(close_sums(head.device.read(head.losses), want.losses, f32, tolerance(f32, s.vocabulary)));
        EXPECT_TRUE(close_sums(head.device.read(head.dx), want.dx, type, tolerance(type, s.vocabulary) + stored));
        EXPECT_TRUE(close_sums(head.device.read(head.dweight), want.dweight, f32, tolerance(f32, s.rows) + stored));
    }
}

int64_t workspace_of(DType type, Sizes s) {
    Head head(type, s, 1.0, {.counting = true});
    head.run(1.0, false);
    return head.device.ctx.workspace_needed;
}

// The whole matrix of logits never exists: beyond a number of rows, more rows need no more memory.
TEST(Head, WorkspaceHasABound) {
    for (DType type : {DType::f32, DType::bf16}) {
        EXPECT_LT(workspace_of(type, {8192, 1, 500}), workspace_of(type, {8192, 1, 50257}));
        EXPECT_EQ(workspace_of(type, {100000, 1, 50257}), workspace_of(type, {200000, 1, 50257}));
        EXPECT_LT(workspace_of(type, {200000, 1, 50257}), int64_t(200000) * 50304 * size_of(type) / 8);
    }
    // Each f32 row takes round_up(17, 64) logits.
    EXPECT_EQ(workspace_of(DType::f32, {3, 7, 17}) - workspace_of(DType::f32, {2, 7, 17}), 64 * 4);
}

TEST(Head, GradientsMatchFiniteDifferences) {
    if (!backend_supports(DType::f64)) GTEST_SKIP() << "finite differences need float64";
    Sizes s{3, 7, 17};
    Head head(DType::f64, s);
    head.run(1.0, false);
    auto total = [&](const Tensor& changed) {
        return [&head, changed](const Vector& v) {
            head.device.write(changed, v);
            head_loss(head.losses, {}, {}, head.x, head.weight, head.targets, 1.0, false, head.device.ctx);
            Vector losses = head.device.read(head.losses);
            return dot(losses, Vector(losses.size(), 1.0));
        };
    };
    Vector x = head.device.read(head.x), weight = head.device.read(head.weight);
    EXPECT_TRUE(close(head.device.read(head.dx), numeric_gradient(total(head.x), x), 1e-8));
    head.device.write(head.x, x);
    EXPECT_TRUE(close(head.device.read(head.dweight), numeric_gradient(total(head.weight), weight), 1e-8));
}

TEST(Head, IgnoredTargetsGiveNothing) {
    Head head(DType::f32, {3, 7, 17});
    head.device.write(head.targets, {-1, -1, -1});
    head.run(1.0, false);
    EXPECT_EQ(head.device.read(head.losses), Vector(3, 0.0));
    EXPECT_EQ(head.device.read(head.dx), Vector(21, 0.0));
    EXPECT_EQ(head.device.read(head.dweight), Vector(119, 0.0));
}

TEST(Head, NoRows) {
    Head head(DType::f32, {0, 7, 17});
    head.run(1.0, false);
    EXPECT_EQ(head.device.read(head.dweight), Vector(119, 0.0));
    Vector start = random_vector(119, 4);
    head.device.write(head.dweight, start);
    head.run(1.0, true);
    EXPECT_EQ(head.device.read(head.dweight), rounded(DType::f32, start));
}

// Logits of thousands must not overflow; a NaN must reach the loss of its row and of no other.
TEST(Head, LargeLogitsAndNotANumber) {
    for (DType type : all_act) {
        Head head(type, {3, 7, 33}, 3000.0);
        head.device.write(head.targets, {1, 5, 32});
        head.run(1.0, false);
        HeadResult want = oracle(head.device.read(head.x), head.device.read(head.weight),
                                 head.device.read(head.targets), head.s, 1.0, type);
        const DType f = statistics_dtype(type);
        EXPECT_TRUE(close_sums(head.device.read(head.losses), want.losses, f, tolerance(f, 33)));
        Vector x = head.device.read(head.x);
        x[7] = nan_value;
        head.device.write(head.x, x);
        head.run(1.0, false);
        Vector losses = head.device.read(head.losses);
        EXPECT_TRUE(std::isfinite(losses[0]) && std::isnan(losses[1]) && std::isfinite(losses[2])) << name_of(type);
        EXPECT_TRUE(std::isnan(head.device.read(head.dx)[7]));
        // A target outside the vocabulary is never read; its loss says so.
        head.device.write(head.x, random_vector(21, 1));
        head.device.write(head.targets, {1, 33, 32});
        head.run(1.0, false);
        losses = head.device.read(head.losses);
        EXPECT_TRUE(std::isfinite(losses[0]) && std::isnan(losses[1]) && std::isfinite(losses[2])) << name_of(type);
    }
}

// A logit of -infinity has probability 0 and does no harm; one of +infinity makes the loss NaN.
TEST(Head, InfiniteLogits) {
    for (DType type : all_act) {
        Head head(type, {1, 1, 200});
        head.device.write(head.x, {1});
        head.device.write(head.targets, {150});
        Vector weight = rounded(type, random_vector(200, 5));
        for (size_t j : {0, 1, 2, 3, 99}) weight[j] = -std::numeric_limits<double>::infinity();
        head.device.write(head.weight, weight);
        auto loss = [&] {
            head_loss(head.losses, {}, {}, head.x, head.weight, head.targets, 1.0, false, head.device.ctx);
            return head.device.read(head.losses)[0];
        };
        double sum = 0;
        for (double w : weight) sum += std::exp(w);
        EXPECT_NEAR(loss(), std::log(sum) - weight[150], 1e-5) << name_of(type);
        weight[99] = std::numeric_limits<double>::infinity();
        head.device.write(head.weight, weight);
        EXPECT_TRUE(std::isnan(loss())) << name_of(type);
    }
}

TEST(Head, SameBitsEveryTime) {
    for (DType type : all_act) {
        Vector first[3];
        for (int run = 0; run < 2; run++) {
            Head head(type, {5, 9, 300});
            head.run(1.0, false);
            Vector results[3] = {head.device.read(head.losses), head.device.read(head.dx),
                                 head.device.read(head.dweight)};
            for (int i = 0; i < 3; i++) {
                if (run == 0) first[i] = results[i];
                EXPECT_EQ(results[i], first[i]) << name_of(type);
            }
        }
    }
}

TEST(Head, LossAloneEqualsLossWithGradients) {
    for (DType type : all_act) {
        Head head(type, {17, 33, 65});
        head.run(1.0, false);
        Vector with = head.device.read(head.losses);
        head_loss(head.losses, {}, {}, head.x, head.weight, head.targets, 0.0, false, head.device.ctx);
        EXPECT_EQ(head.device.read(head.losses), with);
    }
}

TEST(Head, CountsAndRefuses) {
    Head head(DType::f32, {3, 7, 17}, 1.0, {.counting = true});
    head.run(1.0, false);
    EXPECT_EQ(head.device.ctx.flops, 3 * 2 * 3 * 7 * 17);
    Context& ctx = head.device.ctx;
    Tensor wrong = head.device.tensor(DType::f32, {17, 8}, "wrong"), few = head.device.tensor(DType::i32, {2}, "few");
    EXPECT_TRUE(refuses([&] { head_loss(head.losses, {}, {}, head.x, wrong, head.targets, 1, false, ctx); }, "wrong"));
    EXPECT_TRUE(refuses([&] { head_loss(head.losses, {}, {}, head.x, head.weight, few, 1, false, ctx); }, "few"));
    EXPECT_TRUE(
        refuses([&] { head_loss(head.losses, wrong, {}, head.x, head.weight, head.targets, 1, false, ctx); }, "wrong"));
    EXPECT_TRUE(
        refuses([&] { head_loss(head.losses, {}, wrong, head.x, head.weight, head.targets, 1, false, ctx); }, "wrong"));
}

}  // namespace
}  // namespace llmc::test
