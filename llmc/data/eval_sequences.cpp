#include "llmc/data/eval_sequences.h"

#include "llmc/base/errors.h"

namespace llmc {

namespace {

int64_t checked_targets(const Split& split, int64_t context) {
    if (context < 1) input_error("a sequence length of ", context, " is impossible: it must be at least 1");
    if (split.shards.empty()) input_error("the data has no ", split.name, " split");
    if (split.tokens < 2)
        input_error("split ", split.name, " has ", split.tokens, " tokens: at least 2 are needed to predict one");
    return split.tokens - 1;
}

}  // namespace

EvalSequences::EvalSequences(const Split& data, int64_t context, uint64_t seed)
    : split(data), length(context), predicted(checked_targets(data, context)),
      order(std::max<int64_t>(1, predicted / context), seed, 0), first_token{0} {
    for (const Shard& shard : split.shards) first_token.push_back(first_token.back() + shard.count);
}

// out[T]: the stream's tokens from a position on, in a circle.
void EvalSequences::read(int32_t* out, int64_t position) const {
    for (int64_t left = length; left > 0;) {
        position %= split.tokens;
        const auto after = std::upper_bound(first_token.begin(), first_token.end(), position);
        const auto shard = size_t(after - first_token.begin()) - 1;
        const int64_t count = std::min(left, *after - position);
        read_tokens(out, split, shard, position - first_token[shard], count);
        out += count, position += count, left -= count;
    }
}

void EvalSequences::fill(int32_t* tokens, int32_t* targets, int64_t rows, int64_t first, int64_t end) const {
    const int64_t full = predicted / length;
    for (int64_t i = first; i < first + rows; i++, tokens += length, targets += length) {
        const int64_t number = i % count(), position = (number < full ? order(number) : full) * length;
        read(tokens, position);
        read(targets, position + 1);
        const int64_t targets_left = i < end ? predicted - position : 0;
        if (targets_left < length) std::fill(targets + targets_left, targets + length, -1);
    }
}

}  // namespace llmc
