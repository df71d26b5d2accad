// train_mot: validation at other MoT group sizes and with one-hot weights, and evaluation as another mixture.
#include <fstream>

#include "dev/test/train_mot_test.h"

using namespace llmc;
using namespace llmc::test;

namespace {

class Evaluations : public TrainMotOneThread {
protected:
    std::vector<std::string> eval(const std::string& checkpoint, std::vector<std::string> more) const {
        std::vector<std::string> words = {"train_mot", "eval", "--checkpoint",   dir / checkpoint,
                                          "--data",    data,   "--eval-batches", "3"};
        words.insert(words.end(), more.begin(), more.end());
        return words;
    }
    // "loss" of the line that begins with `start`, after any spaces.
    std::string loss_in_line(const std::string& start) const {
        std::istringstream lines(said());
        for (std::string line; std::getline(lines, line);) {
            std::istringstream words(line);
            std::string word, loss;
            words >> word >> loss;
            if (word == start) return loss;
            if (const size_t at = line.find("loss "); at != std::string::npos && start == word + " " + loss)
                return line.substr(at + 5, line.find(' ', at + 5) - at - 5);
        }
        return "no line \"" + start + "\" in: " + said();
    }
};

}  // namespace

TEST_F(Evaluations, EveryValidationReportsThem) {
    ASSERT_EQ(run(recipe("run", {"--steps", "10", "--eval-interval", "5", "--eval-batches", "3", "--eval-group-sizes",
                                 "2,4,8", "--eval-discrete"})),
              0)
        << said();
    const std::vector<json> validations = log("run", "val_loss");
    ASSERT_EQ(validations.size(), 2u);
    for (const json& v : validations) {
        EXPECT_EQ(v.at("val_loss_group_4"), v.at("val_loss"));  // the size it is trained with
        EXPECT_NE(v.at("val_loss_group_2"), v.at("val_loss"));
        EXPECT_NE(v.at("val_loss_group_8"), v.at("val_loss"));
        EXPECT_NE(v.at("val_loss_discrete"), v.at("val_loss"));
    }
    EXPECT_NE(said().find("group_2"), std::string::npos) << said();

    // The same from outside: a table, and one at a time.
    auto four_digits = [&](const char* key) {
        char text[32];
        std::snprintf(text, sizeof text, "%.4f", validations.back().at(key).get<double>());
        return std::string(text);
    };
    ASSERT_EQ(run(eval("run", {"--eval-group-sizes", "8,2,4"})), 0) << said();
    EXPECT_EQ(loss_in_line("step 10,"), four_digits("val_loss"));
    for (const char* size : {"2", "4", "8"})
        EXPECT_EQ(loss_in_line(size), four_digits(str("val_loss_group_", size).c_str()));
    for (const char* size : {"2", "8"}) {
        ASSERT_EQ(run(eval("run", {"--group-size", size})), 0) << said();
        EXPECT_EQ(loss_in_line("step 10,"), four_digits(str("val_loss_group_", size).c_str()));
    }
    ASSERT_EQ(run(eval("run", {"--discrete", "--eval-group-sizes", "4"})), 0) << said();
    EXPECT_EQ(loss_in_line("step 10,"), four_digits("val_loss_discrete"));
    EXPECT_EQ(loss_in_line("4"), four_digits("val_loss_discrete"));
}

// They take no part in what is trained, may change on a resume, and can stand in a file.
TEST_F(Evaluations, LeaveTrainingAlone) {
    std::ofstream(dir / "sizes.toml") << "eval-group-sizes = \"2,8\"\n";
    ASSERT_EQ(run(recipe("with", {"--steps", "4", "--config", dir / "sizes.toml", "--eval-interval", "1"})), 0)
        << said();
    ASSERT_EQ(run(recipe("without", {"--steps", "4"})), 0) << said();
    expect_equal_checkpoints("with/step-00000004", "without/step-00000004");
    EXPECT_TRUE(log("with", "val_loss").back().contains("val_loss_group_2"));
    EXPECT_TRUE(log("with", "val_loss").back().contains("val_loss_group_8"));
    ASSERT_EQ(run({"train_mot", "--resume", "--data", data, "--run-dir", dir / "without", "--steps", "6",
                   "--eval-group-sizes", "2", "--eval-discrete"}),
              0)
        << said();
    EXPECT_TRUE(log("without", "val_loss").back().contains("val_loss_group_2"));
    EXPECT_TRUE(log("without", "val_loss").back().contains("val_loss_discrete"));
}

TEST_F(Evaluations, RefuseWhatDoesNotFit) {
    expect_refusal(recipe("x", {"--eval-group-sizes", "3"}), {"--eval-group-sizes", "3", "--micro-batch 8"});
    expect_refusal(recipe("x", {"--eval-group-sizes", "two"}), {"--eval-group-sizes", "two"});
    expect_refusal(recipe("x", {"--pattern", "attention ffn", "--eval-discrete"}), {"--eval-discrete"});
    EXPECT_FALSE(path_exists(dir / "x"));

    ASSERT_EQ(run(recipe("run", {"--steps", "1"})), 0) << said();
    expect_refusal(eval("run", {"--eval-group-sizes", "3"}), {"--eval-group-sizes", "3"});
    expect_refusal(eval("run", {"--eval-group-sizes", "4", "--as", "token-choice"}), {"--eval-group-sizes"});
    expect_refusal(eval("run", {"--group-size", "4", "--as", "token-choice"}), {"--group-size"});
    expect_refusal(eval("run", {"--discrete", "--as", "token-choice"}), {"--discrete"});
    expect_refusal(eval("run", {"--as", "dense"}), {"dense"});
    ASSERT_EQ(run(recipe("dense", {"--steps", "1", "--pattern", "attention ffn"})), 0) << said();
    expect_refusal(eval("dense", {"--as", "token-choice", "--group-size", "4"}), {"no Mixture-of-Tokens block"});
}

// A model that was sparse from the start has no group size of its own.
TEST_F(Evaluations, ASparseModelAsAMixtureOfTokens) {
    ASSERT_EQ(run(recipe("sparse", {"--steps", "2", "--pattern", "attention moe_token_choice"})), 0) << said();
    expect_refusal(eval("sparse", {"--as", "mot"}), {"--group-size"});
    expect_refusal(eval("sparse", {"--as", "mot", "--group-size", "3"}), {"3", "8"});
    expect_refusal(eval("sparse", {"--group-size", "4"}), {"--group-size"});
    ASSERT_EQ(run(eval("sparse", {"--as", "mot", "--group-size", "2"})), 0) << said();
    const std::string two = loss_in_line("step 2,");
    ASSERT_EQ(run(eval("sparse", {"--as", "mot", "--group-size", "8", "--eval-group-sizes", "2"})), 2) << said();
    ASSERT_EQ(run(eval("sparse", {"--as", "mot", "--group-size", "8"})), 0) << said();
    EXPECT_NE(loss_in_line("step 2,"), two);
    ASSERT_EQ(run(eval("sparse", {"--as", "token-choice"})), 0) << said();
    const std::string as_it_is = loss_in_line("step 2,");
    ASSERT_EQ(run(eval("sparse", {})), 0) << said();
    EXPECT_EQ(loss_in_line("step 2,"), as_it_is);
}

// Only a model all of whose mixtures are of the kind already is evaluated as it is.
TEST_F(Evaluations, AMixedModelIsNotTakenForOneOfItsKinds) {
    ASSERT_EQ(run(recipe("mixed", {"--steps", "1", "--pattern", "mot moe_token_choice", "--expert-size", "8"})), 0)
        << said();
    for (const char* as : {"mot", "token-choice", "expert-choice"})
        expect_refusal(eval("mixed", {"--as", as}), {"both Mixture-of-Tokens and sparse blocks"});
    ASSERT_EQ(run(eval("mixed", {})), 0) << said();

    ASSERT_EQ(run(recipe("sparse", {"--steps", "1", "--pattern", "moe_token_choice moe_expert_choice", "--expert-size",
                                    "8", "--no-expert-choice-norm"})),
              0)
        << said();
    expect_refusal(eval("sparse", {"--as", "token-choice"}), {"--group-size"});
    ASSERT_EQ(run(eval("sparse", {"--as", "token-choice", "--group-size", "4"})), 0) << said();
    const std::string converted = loss_in_line("step 1,");
    ASSERT_EQ(run(eval("sparse", {})), 0) << said();
    EXPECT_NE(loss_in_line("step 1,"), converted);

    ASSERT_EQ(run(recipe("shared", {"--steps", "1", "--pattern", "attention moe_token_choice", "--expert-size", "8",
                                    "--shared-experts", "1"})),
              0)
        << said();
    expect_refusal(eval("shared", {"--as", "mot"}), {"--shared-experts 1"});  // no group size would help
}
