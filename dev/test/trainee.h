// A tiny model in training, for tests of whole steps.
#pragma once
#include "dev/test/model_lab.h"
#include "llmc/planner/plan.h"

namespace llmc::test {

constexpr int64_t T = 8;  // the context of tiny models

// A training run with exactly the memory that its plan asks for.
struct Trainee : Session {
    TrainConfig train;
    Plan plan;

    Trainee(const ModelConfig& config, const TrainConfig& train_config, ContextOptions options = {.threads = 1})
        : Session(config, train_config, World::alone(), options), train(train_config),
          plan(make_plan(config, train, true, options.threads)) {
        allocate(true, plan.activation_bytes, plan.workspace_bytes);
        initialize();
    }
    // One step on grad_accumulation x micro_batch rows; its mean loss.
    double operator()(const Tokens& tokens, const Tokens& targets, bool statistics = false, int64_t number = 0) {
        const size_t size = size_t(train.micro_batch * model.config.context);
        step->begin(train.lr, number);
        for (int64_t k = 0; k < train.grad_accumulation; k++)
            step->micro_batch(tokens.data() + size_t(k) * size, targets.data() + size_t(k) * size, k, statistics);
        step->update();
        StepState state = step->state();
        return state.loss_sum / state.loss_count;
    }
    NamedVectors parameters() { return read_all(model.parameters(), ctx); }
    NamedVectors gradients() { return read_all(model.gradients(), ctx); }
};

inline TrainConfig training(int64_t micro_batch, int64_t accumulation = 1, const std::string& precision = "fp32") {
    TrainConfig c;
    c.micro_batch = micro_batch, c.grad_accumulation = accumulation, c.precision = from_word<PrecisionMode>(precision);
    c.lr = 5e-3, c.weight_decay = 0.01;
    return c;
}

}  // namespace llmc::test
