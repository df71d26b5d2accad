#include "llmc/train/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace llmc {

Evaluator::Evaluator(const Dataset& data, const ModelConfig& model, const TrainConfig& config, const Split* chosen)
    : micro_batch(config.micro_batch), context(model.context) {
    if (const int64_t together = rows_together(model); together > 1) {
        const Loader training(data.train, context, eval_seed, true);
        std::vector<int32_t> rows(size_t(together * context)), ignored(rows.size());
        training.fill(rows.data(), ignored.data(), together, 0);
        for (int64_t i = 0; i < together; i++)
            filler_rows.emplace_back(rows.begin() + i * context, rows.begin() + (i + 1) * context);
    }
    const Split& split = chosen ? *chosen : data.val;
    if (split.shards.empty()) return;
    loader.emplace(split, context, eval_seed, true);
    // A split smaller than one micro-batch is repeated; otherwise no sequence counts twice.
    count = std::max<int64_t>(1, std::min(config.eval_batches, loader->windows() / micro_batch));
    bytes_per_token = split.bytes_per_token();
}

EvalResult Evaluator::run(Step& step, const EvalOptions& options) const {
    EvalResult result;
    std::vector<int32_t> tokens(size_t(micro_batch * context)), targets(tokens.size());
    for (int64_t i = 0; i < count; i++) {
        loader->fill(tokens.data(), targets.data(), micro_batch, i * micro_batch);
        result.loss += step.evaluate(tokens.data(), targets.data(), options) / double(count);
    }
    result.perplexity = std::exp(result.loss);
    result.bits_per_byte = bytes_per_token > 0 ? result.loss / (std::log(2.0) * bytes_per_token) : 0;
    result.tokens = count * micro_batch * context;
    return result;
}

std::string EvalResult::text() const {
    char text[160];
    int n = std::snprintf(text, sizeof text, "loss %.4f  perplexity %.2f", loss, perplexity);
    if (bits_per_byte > 0) n += std::snprintf(text + n, sizeof text - size_t(n), "  bits per byte %.4f", bits_per_byte);
    std::snprintf(text + n, sizeof text - size_t(n), "  (%lld tokens)", static_cast<long long>(tokens));
    return text;
}

void EvalResult::add_to(nlohmann::json& json, const std::string& prefix) const {
    json[prefix + "loss"] = loss;
    json[prefix + "perplexity"] = perplexity;
    if (bits_per_byte > 0) json[prefix + "bits_per_byte"] = bits_per_byte;
    json[prefix + "tokens"] = tokens;
}

}  // namespace llmc
