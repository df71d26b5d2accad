// The loader: every window exactly once an epoch, whoever reads; positions are arithmetic.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "dev/test/memory_split.h"
#include "dev/test/refusal.h"
#include "dev/test/temp_dir.h"
#include "llmc/base/errors.h"
#include "llmc/data/loader.h"

using namespace llmc;
using llmc::test::MemorySplit;
using llmc::test::refusal;

namespace {

// First tokens (which identify the windows) of samples [first, first + count), read `rows` at a time.
std::vector<int32_t> first_tokens(const Loader& loader, int64_t first, int64_t count, int64_t rows) {
    std::vector<int32_t> result, tokens(size_t(rows * loader.seq_len())), targets(tokens.size());
    for (int64_t s = first; s < first + count; s += rows) {
        int64_t n = std::min(rows, first + count - s);
        loader.fill(tokens.data(), targets.data(), n, s);
        for (int64_t r = 0; r < n; r++) result.push_back(tokens[size_t(r * loader.seq_len())]);
    }
    return result;
}

}  // namespace

TEST(Permutation, IsABijectionForEverySize) {
    for (int64_t n : {1, 2, 3, 5, 16, 17, 63, 64, 65, 255, 256, 257, 1000, 4095, 4096, 4097, 65537}) {
        for (int64_t epoch : {0, 1}) {
            Permutation order(n, 42, epoch);
            std::vector<bool> seen(size_t(n), false);
            for (int64_t i = 0; i < n; i++) {
                int64_t p = order(i);
                ASSERT_TRUE(p >= 0 && p < n) << n;
                ASSERT_FALSE(seen[size_t(p)]) << n;
                seen[size_t(p)] = true;
            }
        }
    }
}

TEST(Permutation, WorksNearTheLargestSizes) {
    int64_t n = (int64_t(1) << 40) + 12345;
    Permutation order(n, 1, 2);
    std::set<int64_t> seen;
    for (int64_t i = 0; i < 2000; i++) {
        int64_t p = order(n - 1 - i);
        EXPECT_TRUE(p >= 0 && p < n);
        EXPECT_TRUE(seen.insert(p).second);
    }
}

// Fixed points of a random permutation: 1 expected, Poisson. Correlation of i and p(i): normal, sd 1/sqrt(n).
TEST(Permutation, LooksRandomAndDependsOnSeedAndEpoch) {
    constexpr int64_t n = 10000;
    auto correlation = [&](const Permutation& a, const auto& b) {
        double sum = 0, mean = (n - 1) / 2.0;
        for (int64_t i = 0; i < n; i++) sum += (double(a(i)) - mean) * (double(b(i)) - mean);
        return sum / (double(n) * (double(n) * n - 1) / 12);
    };
    auto identity = [](int64_t i) { return i; };
    Permutation base(n, 7, 0), next_epoch(n, 7, 1), other_seed(n, 8, 0);
    EXPECT_LT(std::abs(correlation(base, identity)), 5 / std::sqrt(double(n)));
    EXPECT_LT(std::abs(correlation(base, next_epoch)), 5 / std::sqrt(double(n)));
    EXPECT_LT(std::abs(correlation(base, other_seed)), 5 / std::sqrt(double(n)));
    int64_t fixed = 0, neighbours = 0;
    for (int64_t i = 0; i + 1 < n; i++) fixed += base(i) == i, neighbours += std::abs(base(i) - base(i + 1)) == 1;
    EXPECT_LT(fixed, 10);
    EXPECT_LT(neighbours, 14);  // 2 expected
    // Every small permutation appears: all 6 orders of 3 windows within 200 epochs, each at least 10 times.
    std::map<std::vector<int64_t>, int> orders;
    for (int64_t epoch = 0; epoch < 200; epoch++) {
        Permutation p(3, 1, epoch);
        orders[{p(0), p(1), p(2)}]++;
    }
    EXPECT_EQ(orders.size(), 6u);
    for (auto& [order, count] : orders) EXPECT_GE(count, 10);
}

TEST(Loader, WindowsOverlapByTheTargetAndStayInTheirShard) {
    // 11 tokens hold (11 - 1) / 3 = 3 windows of 3; 3 tokens none; 4 exactly one; 6 one (5 / 3).
    MemorySplit data({11, 3, 4, 6});
    Loader loader(data.split, 3, 0, false);
    EXPECT_EQ(loader.windows(), 5);
    int32_t tokens[15], targets[15];
    loader.fill(tokens, targets, 5, 0);
    const int32_t starts[] = {0, 3, 6, 14, 18};  // shards begin at tokens 0, 11, 14, 18
    for (int row = 0; row < 5; row++)
        for (int t = 0; t < 3; t++) {
            EXPECT_EQ(tokens[row * 3 + t], starts[row] + t);
            EXPECT_EQ(targets[row * 3 + t], starts[row] + t + 1);
        }
    loader.fill(tokens, targets, 3, 4);  // without shuffling the next epoch starts over
    EXPECT_EQ(tokens[0], 18);
    EXPECT_EQ(tokens[3], 0);
    EXPECT_EQ(tokens[6], 3);
}

TEST(Loader, EpochsAreCompleteAndDifferent) {
    MemorySplit data({1000, 500, 77});
    Loader loader(data.split, 8, 5, true);
    int64_t n = loader.windows();
    auto first = first_tokens(loader, 0, n, 7), second = first_tokens(loader, n, n, 7);
    EXPECT_NE(first, second);
    std::set<int32_t> all(first.begin(), first.end());
    EXPECT_EQ(int64_t(all.size()), n);
    EXPECT_EQ(std::set<int32_t>(second.begin(), second.end()), all);
    EXPECT_EQ(first_tokens(loader, 0, n, 64), first);  // however many rows are read at once
    Loader other(data.split, 8, 6, true);
    EXPECT_NE(first_tokens(other, 0, n, 7), first);
}

// Rank r of W takes the micro-batches k with k mod W = r of each step, as the trainer deals them. Together the ranks
// read what one process reads, each sample once, across the end of an epoch.
TEST(Loader, RanksAreDisjointAndCompleteAndAgreeWithOne) {
    MemorySplit data({3000, 2000});
    Loader loader(data.split, 16, 9, true);
    constexpr int64_t micro_batch = 3;
    for (int64_t ranks = 1; ranks <= 7; ranks++) {
        int64_t micro_batches = ranks <= 4 ? 12 : ranks * 2;  // K, a multiple of the ranks
        int64_t steps = loader.windows() / (micro_batches * micro_batch) + 2;
        std::vector<int32_t> together(size_t(steps * micro_batches * micro_batch), -1);
        for (int64_t rank = 0; rank < ranks; rank++) {
            Loader own(data.split, 16, 9, true);
            for (int64_t step = 0; step < steps; step++)
                for (int64_t k = rank; k < micro_batches; k += ranks) {
                    int64_t sample = (step * micro_batches + k) * micro_batch;
                    ASSERT_EQ(together[size_t(sample)], -1) << "sample " << sample << " is read twice";
                    auto got = first_tokens(own, sample, micro_batch, micro_batch);
                    std::copy(got.begin(), got.end(), together.begin() + sample);
                }
        }
        EXPECT_EQ(together, first_tokens(loader, 0, int64_t(together.size()), 50)) << ranks << " ranks";
        std::set<int32_t> epoch(together.begin(), together.begin() + loader.windows());
        EXPECT_EQ(int64_t(epoch.size()), loader.windows()) << ranks << " ranks";
    }
}

TEST(Loader, StateIsEpochAndSample) {
    MemorySplit data({1000});
    Loader loader(data.split, 9, 1, true);
    ASSERT_EQ(loader.windows(), 111);
    LoaderState state = loader.state_at(250);
    EXPECT_EQ(state.epoch, 2);
    EXPECT_EQ(state.sample, 28);
}

TEST(Loader, BadDataIsNamed) {
    MemorySplit data({50, 60}, 104);
    EXPECT_NE(refusal([&] { Loader(data.split, 60, 0, true); }).find("has 60 tokens, a sequence of 60 needs 61"),
              std::string::npos);
    EXPECT_NO_THROW(Loader(data.split, 59, 0, true));
    EXPECT_NE(refusal([&] { Loader(data.split, 0, 0, true); }).find("at least 1"), std::string::npos);
    Split empty;
    empty.name = "val";
    EXPECT_NE(refusal([&] { Loader(empty, 4, 0, true); }).find("no val split"), std::string::npos);
    Loader loader(data.split, 9, 0, false);  // token 54 of shard 1 is 104: the very last target of the last window
    int32_t tokens[9], targets[9];
    EXPECT_NO_THROW(loader.fill(tokens, targets, 1, 9));
    EXPECT_EQ(targets[8], 95);
    std::string error = refusal([&] { loader.fill(tokens, targets, 1, 10); });
    EXPECT_NE(error.find("shard1: token 54 is 104, but the vocabulary has 104"), std::string::npos) << error;
}
