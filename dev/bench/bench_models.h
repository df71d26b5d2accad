// The models that whole training steps are measured on; bench_train knows them by name: size_kind.
#pragma once
#include "llmc/model/config.h"

namespace llmc {

inline const std::vector<std::string> bench_kinds = {"dense", "mot", "switch", "dropless", "expert_choice"};

struct BenchSize {
    const char* name;
    int64_t d_model, layers, heads, vocabulary, context;
};
inline const std::vector<BenchSize> bench_sizes = {
    {"tiny", 128, 4, 4, 4096, 128},
    {"medium", 512, 8, 8, 50257, 256},
    {"gpt2", 768, 12, 12, 50257, 64},  // GPT-2 124M, on short sequences
};

inline std::vector<std::string> all_bench_models() {
    std::vector<std::string> names;
    for (const BenchSize& size : bench_sizes)
        for (const std::string& kind : bench_kinds) names.push_back(str(size.name, "_", kind));
    return names;
}

// Tied head, final norm, no biases; tanh-GELU in dense feed-forwards, ReLU in experts. Experts are in the last half of
// the layers, 32 of a dense layer's size; sparse ones get one token in 32 each, all the same number.
inline ModelConfig bench_model(const BenchSize& size, const std::string& kind) {
    ModelConfig c;
    c.d_model = size.d_model, c.heads = size.heads, c.d_ff = 4 * size.d_model;
    c.vocab_size = size.vocabulary, c.context = size.context;
    c.tied_head = c.final_norm = true, c.norm_bias = c.ffn_bias = c.attention_bias = false,
    c.ffn_activation = Hidden::gelu;
    const std::string block = kind == "dense"           ? "ffn"
                              : kind == "mot"           ? "mot"
                              : kind == "expert_choice" ? "moe_expert_choice"
                                                        : "moe_token_choice";
    c.pattern = str(size.layers / 2, "x(attention ffn) ", size.layers / 2, "x(attention ", block, ")");
    c.balanced_routing = block == "moe_token_choice", c.capacity_factor = 1.25, c.dropless = kind == "dropless";
    return resolved(c);
}

inline ModelConfig bench_model(const std::string& name) {
    const size_t underscore = name.find('_');
    const BenchSize& size = *std::find_if(bench_sizes.begin(), bench_sizes.end(),
                                          [&](const BenchSize& s) { return s.name == name.substr(0, underscore); });
    return bench_model(size, name.substr(underscore + 1));
}

}  // namespace llmc
