// A tiny model in training on all ranks of the world, as `Trainee` is on one.
#pragma once
#include "dev/test/ranks.h"
#include "dev/test/trainee.h"

namespace llmc::test {

// A training run with exactly the memory that its plan asks for, on every rank.
struct SharedTrainee : Session {
    TrainConfig train;
    Plan plan;

    SharedTrainee(const ModelConfig& config, const TrainConfig& train_config)
        : Session(config, train_config, test::world(), {.threads = 1, .device = choose_device(test::world())}),
          train(train_config), plan(make_plan(config, train, true, 1, {}, {}, world.size)) {
        allocate(true, plan.activation_bytes, plan.workspace_bytes);
        initialize();
    }

    // This rank's part of one step on grad_accumulation x micro_batch rows; the state after it, equal on all ranks.
    StepState operator()(const Tokens& tokens, const Tokens& targets, int64_t number, bool statistics = false) {
        const Sharding& s = model.sharding;
        const int64_t row = model.config.context;
        step->begin(train.lr, number);
        for (int64_t k = s.batch(); k < train.grad_accumulation; k += s.batches()) {
            const auto first = size_t((k * train.micro_batch + s.batch_part() * step->rows()) * row);
            step->micro_batch(tokens.data() + first, targets.data() + first, k, statistics);
        }
        step->update();
        return step->state();
    }
};

}  // namespace llmc::test
