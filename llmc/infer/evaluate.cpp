#include "llmc/infer/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

namespace llmc {

Evaluator::Evaluator(const Dataset& data, const ModelConfig& model, const TrainConfig& config, const Split* chosen)
    : micro_batch(config.micro_batch) {
    const int64_t context = model.context;
    if (const int64_t together = rows_together(model); together > 1) {
        const Loader training(data.train, context, eval_seed, true);
        std::vector<int32_t> rows(size_t(together * context)), ignored(rows.size());
        training.fill(rows.data(), ignored.data(), together, 0);
        for (int64_t i = 0; i < together; i++)
            filler_rows.emplace_back(rows.begin() + i * context, rows.begin() + (i + 1) * context);
    }
    const Split& split = chosen ? *chosen : data.val;
    if (split.shards.empty()) return;
    sequences.emplace(split, context, eval_seed);
    count = sequences->count(config.eval_batches * micro_batch);
    bytes_per_token = split.bytes_per_token();
}

namespace {

using LossSum = Step::LossSum;

// The sum of all batches, in their order, of which all ranks have computed theirs, or parts of them.
LossSum total_of(const std::vector<LossSum>& mine, World& world) {
    const std::vector<std::string> parts =
        world.all_gather(std::string(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof mine[0]));
    LossSum total;
    for (size_t i = 0; i < mine.size(); i++)
        for (const std::string& part : parts) {
            LossSum sum;
            std::memcpy(&sum, part.data() + i * sizeof sum, sizeof sum);
            total.sum += sum.sum, total.count += sum.count;
        }
    return total;
}

}  // namespace

EvalResult Evaluator::run(Step& step, const EvalOptions& options, World& world, const Stop& stop) const {
    const int group_ranks = step.sharding().group_ranks, group = world.rank / group_ranks;
    const int64_t at_a_time = world.size / group_ranks, first_row = world.rank % group_ranks * step.rows();
    std::vector<int32_t> tokens(size_t(step.rows() * sequences->context())), targets(tokens.size());
    std::vector<LossSum> sums;
    for (int64_t first = 0; first < batches(); first += at_a_time) {
        if (stop && stop()) return {.abandoned = true};
        const int64_t row = (first + group) * micro_batch + first_row;
        sequences->fill(tokens.data(), targets.data(), step.rows(), row, count);
        sums.push_back(step.evaluate(tokens.data(), targets.data(), options));
    }
    const LossSum total = total_of(sums, world);
    EvalResult result;
    result.loss = total.mean();
    result.perplexity = std::exp(result.loss);
    result.bits_per_byte = bytes_per_token > 0 ? result.loss / (std::log(2.0) * bytes_per_token) : 0;
    result.tokens = int64_t(total.count);
    return result;
}

EvalResult Evaluator::run(Model& model, const TrainConfig& config, const EvalOptions& options, Arena& arena,
                          Context& ctx, World& world, const Stop& stop) const {
    const int64_t mark = arena.mark();
    UnitHooks hooks;
    Step step(model, nullptr, config, arena, hooks, ctx);
    const EvalResult result = run(step, options, world, stop);
    arena.release(mark);
    return result;
}

std::vector<ExtraEvaluation> extra_evaluations(const ModelConfig& model, const TrainConfig& config) {
    std::vector<ExtraEvaluation> list;
    const std::string& text = config.eval_group_sizes;
    if ((!text.empty() || config.eval_discrete) && !has_mot(model))
        input_error(text.empty() ? "--eval-discrete" : "--eval-group-sizes",
                    " needs Mixture-of-Tokens blocks, and this model has none");
    const bool batch = model.group_axis == GroupAxis::batch;
    const int64_t whole = batch ? config.micro_batch : model.context;
    for (size_t begin = 0; begin <= text.size() && !text.empty();) {
        const size_t end = std::min(text.find(',', begin), text.size());
        std::string word = text.substr(begin, end - begin);
        word.erase(0, word.find_first_not_of(" \t"));
        word.erase(word.find_last_not_of(" \t") + 1);
        begin = end + 1;
        if (word.empty() || word.size() > 9 || word.find_first_not_of("0123456789") != std::string::npos)
            input_error("--eval-group-sizes \"", text, "\": \"", word,
                        "\" is not a number: write the list like 8,16,32");
        const int64_t size = std::stoll(word);
        if (size < 1 || whole % size)
            input_error("--eval-group-sizes: ", size, " does not divide ", batch ? "--micro-batch " : "--context ",
                        whole);
        list.push_back({str("group_", size), {.group_size = size}});
    }
    if (config.eval_discrete) list.push_back({"discrete", {.discrete = true}});
    return list;
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
