// One golden file: a numeric case of the reference implementation as dev/test/golden/README.md describes it.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "llmc/base/safetensors.h"
#include "llmc/step/config.h"

namespace llmc {

struct GoldenCase {
    SafetensorsFile file;
    std::string kind;         // attention | ffn | layernorm | mot | moe_... | model | trajectory
    std::string unsupported;  // a sentence if this version cannot run the case; then nothing below is filled in
    nlohmann::json config;    // as it is in the file
    int64_t B = 0, T = 0, C = 0;
    ModelConfig model;      // block cases: a model of which the block is taken
    TrainConfig train;      // trajectories: the optimizer
    bool discrete = false;  // MoT with one-hot weights
    bool forward_only = false;

    // Reads metadata only. InputError naming the file and the field that is missing or wrong.
    explicit GoldenCase(const std::string& path);

    // The values of a tensor of exactly this shape. InputError otherwise.
    std::vector<double> floats(const std::string& name, const Shape& shape) const;
    std::vector<int32_t> integers(const std::string& name, const Shape& shape) const;
    // InputError unless the tensors called `prefix`<name> are exactly these.
    void require_names(const std::string& prefix, const std::vector<std::string>& names) const;
    [[noreturn]] void bad(const std::string& what) const { input_error(file.path(), ": ", what); }
};

}  // namespace llmc
