// The contract that sharding will hang on: hooks come in pairs around every use of a unit, and once a unit's backward
// is over, its gradient is complete.
#include <gtest/gtest.h>

#include <map>

#include "dev/test/trainee.h"

using namespace llmc;
using namespace llmc::test;

namespace {

struct Recorder : UnitHooks {
    std::map<std::string, int> open, completed;
    int most_open = 0;
    void before(const Unit& unit, Phase) override { most_open = std::max(most_open, ++open[unit.name]); }
    void after(const Unit& unit, Phase phase) override {
        ASSERT_EQ(open[unit.name]--, 1) << unit.name;
        if (phase == Phase::backward) completed[unit.name]++;
    }
};

// Erases a unit's gradient right after its backward: whatever arrives later is what the hook came too early for.
struct Eraser : UnitHooks {
    Trainee* trainee = nullptr;
    void after(const Unit& unit, Phase phase) override {
        if (phase == Phase::backward) fill(unit_range(unit, trainee->model.grads), 0, trainee->ctx);
    }
};

ModelConfig tiny(bool tied) {
    ModelConfig c;
    c.pattern = "attention ffn attention mot moe_token_choice moe_expert_choice";
    c.vocab_size = 29, c.d_model = 16, c.heads = 2, c.context = T;
    c.group_size = 2, c.experts = 3, c.expert_size = 5, c.tied_head = tied, c.final_norm = true, c.init_scale = 1;
    return c;
}

void micro_batch(Trainee& trainee, UnitHooks& hooks) {
    Tokens tokens(size_t(4 * T)), targets(tokens.size());
    for (size_t i = 0; i < tokens.size(); i++) tokens[i] = int32_t(i * 7 % 29), targets[i] = int32_t(i * 11 % 29);
    Step step(trainee.model, nullptr, trainee.train, trainee.arena, hooks, trainee.ctx);
    step.begin(1e-3);
    step.micro_batch(tokens.data(), targets.data(), 0, false);
}

}  // namespace

TEST(Hooks, ComeInPairsAndEveryGradientCompletesOnce) {
    for (bool tied : {false, true}) {
        Trainee trainee(tiny(tied), training(4));
        trainee.arena.release(0);
        Recorder recorder;
        micro_batch(trainee, recorder);
        EXPECT_EQ(recorder.most_open, 1);
        for (const Unit& unit : trainee.model.table.units) {
            EXPECT_EQ(recorder.open[unit.name], 0) << unit.name;
            EXPECT_EQ(recorder.completed[unit.name], 1) << unit.name << (tied ? ", tied" : "");
        }
    }
}

TEST(Hooks, NothingIsAddedToAGradientAfterItsHook) {
    for (bool tied : {false, true}) {
        Trainee trainee(tiny(tied), training(4));
        trainee.arena.release(0);
        Eraser eraser;
        eraser.trainee = &trainee;
        micro_batch(trainee, eraser);
        for (const auto& [name, values] : trainee.gradients())
            for (double g : values) ASSERT_EQ(g, 0) << name << (tied ? ", tied" : "");
    }
}
