// Evaluation of a split: every token once, and the same loss for every micro-batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "dev/test/memory_split.h"
#include "dev/test/model_lab.h"
#include "llmc/base/errors.h"
#include "llmc/infer/evaluate.h"

namespace llmc::test {
namespace {

constexpr int64_t T = 8;  // the context of tiny models

struct Rows {
    Tokens tokens, targets;
};
Rows rows_of(const EvalSequences& sequences, int64_t rows, int64_t first, int64_t end) {
    Rows r{Tokens(size_t(rows * T)), Tokens(size_t(rows * T))};
    sequences.fill(r.tokens.data(), r.targets.data(), rows, first, end);
    return r;
}

// The loss of every target that counts, from logits.
struct Sum {
    double loss = 0;
    int64_t count = 0;
};
Sum sum_of(Lab& lab, const Rows& r) {
    const Vector logits = lab.logits(r.tokens, int64_t(r.tokens.size()) / T);
    const int64_t V = lab.model.config.vocab_size;
    Sum sum;
    for (size_t i = 0; i < r.targets.size(); i++) {
        if (r.targets[i] < 0) continue;
        const double* row = logits.data() + int64_t(i) * V;
        double exponentials = 0;
        for (int64_t v = 0; v < V; v++) exponentials += std::exp(row[v]);
        sum.loss += std::log(exponentials) - row[r.targets[i]], sum.count++;
    }
    return sum;
}

EvalResult evaluate(Lab& lab, const Dataset& data, int64_t micro_batch, int64_t batches = 0) {
    TrainConfig config;
    config.micro_batch = micro_batch, config.eval_batches = batches;
    const Evaluator evaluator(data, lab.model.config, config, &data.val);
    return evaluator.run(lab.model, config, {}, lab.arena, lab.ctx, World::alone());
}

// `lengths`: of the validation shards.
Dataset dataset(MemorySplit& train, MemorySplit& val) {
    Dataset data;
    data.train = std::move(train.split), data.val = std::move(val.split);
    data.vocab_size = 50;
    return data;
}

}  // namespace

TEST(EvalSequences, PredictEveryTokenButTheFirstOnce) {
    for (const std::vector<int>& lengths : {std::vector{41}, {42}, {2}, {9}, {3, 0, 1, 20, 7}, {8, 8, 8}, {1, 1}}) {
        const MemorySplit data(lengths);
        const EvalSequences sequences(data.split, T, 5);
        const int64_t count = sequences.count(), N = data.split.tokens;
        EXPECT_EQ(count, (N - 1 + T - 1) / T);
        const Rows r = rows_of(sequences, count + 3, 0, count);
        std::vector<int> predicted(size_t(N), 0);
        for (int64_t i = 0; i < (count + 3) * T; i++) {
            const int32_t token = r.tokens[size_t(i)], target = r.targets[size_t(i)];  // numbers in the stream
            EXPECT_TRUE(target == -1 || target == token + 1) << i;
            EXPECT_TRUE(i % T == 0 || token == (r.tokens[size_t(i) - 1] + 1) % N) << i;
            if (target >= 0) predicted[size_t(target)]++;
        }
        EXPECT_EQ(predicted[0], 0);
        EXPECT_EQ(std::count(predicted.begin() + 1, predicted.end(), 1), N - 1);
    }
}

TEST(EvalSequences, AnyNumberOfRowsAtATimeIsTheSame) {
    const MemorySplit data({30, 25, 4});
    const EvalSequences sequences(data.split, T, 5);
    const Rows all = rows_of(sequences, 12, 0, 6);
    for (int64_t first = 0; first < 12; first += 3) {
        const Rows some = rows_of(sequences, 3, first, 6);
        EXPECT_TRUE(std::equal(some.tokens.begin(), some.tokens.end(), all.tokens.begin() + first * T));
        EXPECT_TRUE(std::equal(some.targets.begin(), some.targets.end(), all.targets.begin() + first * T));
    }
    EXPECT_EQ(std::count(all.targets.begin() + 6 * T, all.targets.end(), -1), 6 * T);
    EXPECT_EQ(std::count(all.targets.begin(), all.targets.begin() + 6 * T, -1), 0);
}

TEST(EvalSequences, BadDataIsNamed) {
    EXPECT_THROW(EvalSequences(MemorySplit({1}).split, T, 5), InputError);
    EXPECT_THROW(EvalSequences(MemorySplit({}).split, T, 5), InputError);
    EXPECT_THROW(EvalSequences(MemorySplit({40}).split, 0, 5), InputError);
    const MemorySplit damaged({20, 20}, 39);  // the last token of shard 1 is 39
    EXPECT_THROW(rows_of(EvalSequences(damaged.split, T, 5), 5, 0, 5), InputError);
}

TEST(Evaluator, TheLossOfASplitDoesNotDependOnTheMicroBatch) {
    MemorySplit train({50}, 50), val({21, 5, 12}, 50);  // 37 targets: four sequences and five tokens
    const Dataset data = dataset(train, val);
    for (const std::string& pattern : {dense_pattern, mot_pattern}) {
        Lab lab(tiny(pattern), "fp64");
        const bool groups = has_mot(lab.model.config);  // of four sequences
        const EvalSequences sequences(data.val, T, eval_seed);
        const Sum want = sum_of(lab, rows_of(sequences, 8, 0, 5));
        for (int64_t micro_batch : {1, 2, 3, 4, 5, 7, 8, 12, 64}) {
            if (groups && micro_batch % 4) continue;
            const EvalResult result = evaluate(lab, data, micro_batch);
            EXPECT_EQ(result.tokens, 37);
            EXPECT_NEAR(result.loss, want.loss / double(want.count), 1e-12) << pattern << ' ' << micro_batch;
        }
        const Sum four = sum_of(lab, rows_of(sequences, 4, 0, 4));
        EXPECT_NEAR(evaluate(lab, data, 4, 1).loss, four.loss / 32, 1e-12);
        EXPECT_EQ(evaluate(lab, data, 4, 1).tokens, 32);
        EXPECT_EQ(evaluate(lab, data, 4, 2).tokens, 37);
    }
}

}  // namespace llmc::test
