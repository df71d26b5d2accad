// The golden runner: every file of the repository passes in fp32 and fp64, and files that are wrong are refused in one
// sentence. (The numbers themselves come from the reference implementation: dev/test/golden/README.md.)
#include <filesystem>
#include <functional>

#include "dev/golden/golden.h"
#include "dev/test/reference.h"
#include "dev/test/temp_dir.h"
#include "dev/test/write_safetensors.h"

namespace llmc::test {
namespace {

const std::string folder = "dev/test/golden/";

TEST(Golden, EveryFilePasses) {
    int files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        if (entry.path().extension() != ".safetensors") continue;
        files++;
        for (PrecisionMode precision : {PrecisionMode::fp32, PrecisionMode::fp64}) {
            GoldenResult result = run_golden(entry.path().string(), precision, 1);
            EXPECT_TRUE(result.skipped.empty()) << entry.path() << ": " << result.skipped;
            for (const GoldenLine& line : result.lines)
                EXPECT_TRUE(line.ok()) << entry.path() << " " << precision << " " << line.name << ": error "
                                       << line.error << " > " << line.tolerance;
            EXPECT_TRUE(result.ok()) << entry.path();
        }
    }
    EXPECT_GE(files, 29);
}

// A copy of a golden file that `change` may spoil.
struct Copy {
    std::vector<SafetensorsEntry> entries;
    std::map<std::string, std::vector<char>> data;
    Metadata metadata;

    explicit Copy(const std::string& name) {
        SafetensorsFile file(folder + name);
        entries = file.tensors(), metadata = file.metadata();
        for (const SafetensorsEntry& e : entries) data[e.name].assign(file.bytes(e), file.bytes(e) + e.bytes());
    }
    void remove(const std::string& name) {
        std::erase_if(entries, [&](const SafetensorsEntry& e) { return e.name == name; });
    }
    void add(const std::string& name, Shape shape) {
        entries.push_back({name, DType::f32, shape});
        data[name].assign(size_t(shape.numel() * 4), 0);
    }
    void replace(const char* key, const std::string& from, const std::string& to) {
        std::string& text = metadata[key];
        size_t at = text.find(from);
        ASSERT_NE(at, std::string::npos) << from << " is not in " << text;
        text.replace(at, from.size(), to);
    }
    // Adds `amount` to element 0.
    void nudge(const std::string& name, float amount) {
        float value;
        std::memcpy(&value, data[name].data(), sizeof value);
        value += amount;
        std::memcpy(data[name].data(), &value, sizeof value);
    }
    GoldenResult run(PrecisionMode precision = PrecisionMode::fp32) const {
        TempDir directory;
        const std::string path = directory / "spoiled.safetensors";
        write_safetensors(path, entries, metadata, [&](size_t i, char* buffer) {
            std::memcpy(buffer, data.at(entries[i].name).data(), size_t(entries[i].bytes()));
        });
        return run_golden(path, precision, 1);
    }
};

std::string refusal(const std::string& name, const std::function<void(Copy&)>& spoil) {
    Copy copy(name);
    spoil(copy);
    try {
        copy.run();
    } catch (const InputError& e) {
        return e.what();
    }
    return "";
}

TEST(Golden, WrongFilesGetOneSentence) {
    struct Case {
        const char* file;
        std::function<void(Copy&)> spoil;
        const char* says;
    };
    const std::vector<Case> cases = {
        {"mot_1_shared_E_gt_g", [](Copy& c) { c.remove("param.controller.weight"); }, "param.controller.weight"},
        {"mot_1_shared_E_gt_g", [](Copy& c) { c.remove("grad.experts.up.weight"); }, "grad.experts.up.weight"},
        {"ffn_1_relu", [](Copy& c) { c.remove("grad_output"); }, "grad_output"},
        {"ffn_1_relu",
         [](Copy& c) {
             c.add("param.gate.weight", {40, 24});
         },
         "tensor param.gate.weight belongs to nothing"},
        {"ffn_1_relu", [](Copy& c) { c.replace("config", "40", "41"); }, "has shape [40"},
        {"ffn_1_relu", [](Copy& c) { c.replace("config", "\"relu\"", "\"tanh\""); }, "tanh"},
        {"attention_1", [](Copy& c) { c.replace("config", "\"n_heads\": 3", "\"n_heads\": 5"); }, "not divisible"},
        {"attention_1", [](Copy& c) { c.replace("config", "\"n_heads\": 3", "\"n_heads\": 0"); }, "\"n_heads\" is 0"},
        {"attention_1", [](Copy& c) { c.replace("config", "\"n_heads\": 3", "\"n_heads\": \"3\""); },
         "\"n_heads\" has the wrong type"},
        {"attention_1", [](Copy& c) { c.replace("config", "\"rope\"", "\"ropes\""); }, "no \"rope\""},
        {"attention_1", [](Copy& c) { c.replace("shape", "24", "27"); },
         "tensor param.qkv.weight has shape [72, 24], expected [81, 27]"},
        {"mot_1_shared_E_gt_g", [](Copy& c) { c.replace("config", "\"group_size\": 4", "\"group_size\": 3"); },
         "group size 3"},
        {"mot_1_shared_E_gt_g", [](Copy& c) { c.replace("config", "\"shared\"", "\"sharded\""); }, "sharded"},
        {"mot_1_shared_E_gt_g", [](Copy& c) { c.replace("config", "\"batch\"", "\"bath\""); }, "bath"},
        {"mot_1_shared_E_gt_g", [](Copy& c) { c.replace("config", "\"temperature\": 1.0", "\"temperature\": -1.0"); },
         "-1"},
        {"moe_token_choice_1_top1", [](Copy& c) { c.replace("config", "\"capacity\": 28", "\"capacity\": 27"); },
         "\"capacity\" is 27, computed 28"},
        {"moe_token_choice_1_top1", [](Copy& c) { c.replace("config", "\"top_k\": 1", "\"top_k\": 6"); }, "--top-k 6"},
        {"moe_token_choice_1_top1", [](Copy& c) { c.remove("aux_loss"); }, "aux_loss"},
        {"moe_expert_choice_1", [](Copy& c) { c.remove("param.norm.bias"); }, "param.norm.bias"},
        {"moe_expert_choice_1", [](Copy& c) { c.replace("config", "fraction\": 0.25", "fraction\": 0.01"); },
         "rounds to 0 tokens per expert"},
        {"moe_expert_choice_4_simulated_group",
         [](Copy& c) { c.replace("config", "group_size\": 4", "group_size\": 3"); }, "simulated group size 3"},
        {"model_1_dense", [](Copy& c) { c.replace("config", "\"layernorm\"", "\"lawyernorm\""); }, "lawyernorm"},
        {"model_1_dense", [](Copy& c) { c.replace("config", "\"ffn\"", "\"fnn\""); }, "fnn"},
        {"model_1_dense", [](Copy& c) { c.replace("config", "\"vocab\": 53", "\"vocab\": 52"); }, "52"},
        {"model_1_dense", [](Copy& c) { c.remove("final.param.head.weight"), c.remove("param.head.weight"); },
         "param.head.weight"},
        {"model_1_dense", [](Copy& c) { c.metadata.erase("config"); }, "\"config\""},
        {"model_1_dense", [](Copy& c) { c.metadata["config"] = "{"; }, "not a JSON object"},
        {"model_1_dense", [](Copy& c) { c.metadata.erase("block"); }, "\"block\""},
        {"model_1_dense", [](Copy& c) { c.metadata["block"] = "poem"; }, "poem"},
        {"trajectory_2_dense", [](Copy& c) { c.remove("final.param.head.weight"); }, "final.param.head.weight"},
        {"trajectory_2_dense", [](Copy& c) { c.replace("config", "\"steps\": 10", "\"steps\": 11"); }, "11"},
    };
    for (const Case& c : cases) {
        std::string sentence = refusal(std::string(c.file) + ".safetensors", c.spoil);
        EXPECT_NE(sentence.find(c.says), std::string::npos)
            << c.file << ", wanted \"" << c.says << "\", got \"" << sentence << "\"";
        EXPECT_NE(sentence.find("spoiled.safetensors"), std::string::npos) << sentence;
        EXPECT_EQ(sentence.find('\n'), std::string::npos);
    }
    EXPECT_THROW(run_golden(folder + "README.md", PrecisionMode::fp32, 1), InputError);
    EXPECT_THROW(run_golden(folder + "ffn_1_relu.safetensors", PrecisionMode::bf16, 1), InputError);
}

// One element of one tensor a little off must be seen, and only there.
TEST(Golden, SmallErrorsAreMisses) {
    for (const char* name : {"output", "grad_input", "grad.up.weight"}) {
        Copy copy("ffn_1_relu.safetensors");
        copy.nudge(name, 1e-3f);
        GoldenResult result = copy.run();
        EXPECT_FALSE(result.ok());
        for (const GoldenLine& line : result.lines) EXPECT_EQ(line.ok(), line.name != name) << line.name;
    }
    Copy copy("trajectory_2_dense.safetensors");
    copy.nudge("final.param.head.weight", 1e-4f);
    EXPECT_FALSE(copy.run().ok());
    Copy poisoned("ffn_1_relu.safetensors");
    poisoned.nudge("input", NAN);
    EXPECT_FALSE(poisoned.run().ok());
}

TEST(Golden, KindsOfLaterVersionsAreSkipped) {
    for (const char* kind : {"mamba"}) {
        Copy block("ffn_1_relu.safetensors");
        block.metadata["block"] = kind;
        EXPECT_NE(block.run().skipped.find(kind), std::string::npos);
        Copy model("model_1_dense.safetensors");
        model.replace("config", "\"ffn\"", str("\"", kind, "\""));
        EXPECT_NE(model.run().skipped.find(kind), std::string::npos);
        EXPECT_FALSE(model.run().ok());
    }
}

}  // namespace
}  // namespace llmc::test
