// A small run that saves and loads checkpoints, for the tests of what they survive.
#pragma once
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "dev/test/reference.h"
#include "llmc/checkpoint/checkpoint.h"

namespace llmc::test {

// Tensors on the device that free themselves.
struct Tensors {
    explicit Tensors(Context& context) : ctx(context) {}
    ~Tensors() {
        for (NamedTensor& t : list) device_free(t.tensor.data, std::max<int64_t>(t.tensor.bytes(), 1), ctx);
    }
    Tensors(const Tensors&) = delete;

    Tensors& add(const std::string& name, DType dtype, Shape shape, double seed) {
        Tensor tensor(nullptr, dtype, shape, "");
        tensor.data = device_alloc(std::max<int64_t>(tensor.bytes(), 1), ctx);
        list.push_back({name, tensor});
        return set(list.size() - 1, seed);
    }
    Tensors& set(size_t i, double seed) {
        std::vector<char> bytes = expected(i, seed);
        upload(list[i].tensor, bytes.data(), ctx);
        return *this;
    }
    std::vector<char> expected(size_t i, double seed) const {
        const Tensor& t = list[i].tensor;
        return encode(t.dtype, random_vector(t.numel(), uint64_t(int64_t(seed * 1000)) + i, 1000));
    }
    // True if all hold what set(i, seed) puts there.
    bool holds(double seed) const {
        for (size_t i = 0; i < list.size(); i++) {
            std::vector<char> got(size_t(list[i].tensor.bytes()));
            download(got.data(), list[i].tensor, ctx);
            if (got != expected(i, seed)) return false;
        }
        return true;
    }
    void set_all(double seed) {
        for (size_t i = 0; i < list.size(); i++) set(i, seed);
    }

    Context& ctx;
    std::vector<NamedTensor> list;
};

// A run whose tensors are a function of the step.
struct TestRun {
    explicit TestRun(const std::string& directory, Context& ctx, int64_t rows = 3)
        : run(directory), model(ctx), optimizer(ctx) {
        model.add("blocks.0.qkv.weight", DType::f32, {rows, 5}, 0).add("head.weight", DType::bf16, {7}, 0);
        model.add("double", DType::f64, {2, 1, 3}, 0).add("empty", DType::f32, {0, 4}, 0);
        optimizer.add("blocks.0.qkv.weight.m", DType::f32, {rows, 5}, 0).add("step_state", DType::i32, {11}, 0);
    }
    std::string save(int64_t step, int64_t keep = 0) {
        model.set_all(double(step));
        optimizer.set_all(double(step) + 0.5);
        nlohmann::json state = {{"loss", 1.0 / double(step + 1)}};
        return save_checkpoint(run, step, model.list, optimizer.list, state, keep, model.ctx, World::alone());
    }
    // The step of the checkpoint at `path` if all of it is right, else -1.
    int64_t load(const std::string& path) {
        Checkpoint c = open_checkpoint(path);
        model.set_all(-1);
        optimizer.set_all(-1);
        load_tensors(c, model_file, model.list, model.ctx, World::alone());
        load_tensors(c, optimizer_file, optimizer.list, model.ctx, World::alone());
        bool good = model.holds(double(c.step)) && optimizer.holds(double(c.step) + 0.5) &&
                    c.state["loss"] == 1.0 / double(c.step + 1);
        return good ? c.step : -1;
    }
    std::string run;
    Tensors model, optimizer;
};

struct CheckpointTest : testing::Test {
    std::string directory;
    Context ctx{ContextOptions{.threads = 1, .counting = false, .guard = true, .profile = false}};
    void SetUp() override {
        char name[] = "/tmp/llmc_checkpoint_XXXXXX";
        directory = mkdtemp(name);
    }
    void TearDown() override { std::filesystem::remove_all(directory); }

    std::vector<std::string> listing() const {  // of the run directory, sorted
        std::vector<std::string> names;
        for (const auto& entry : std::filesystem::directory_iterator(directory))
            names.push_back(entry.path().filename().string());
        std::sort(names.begin(), names.end());
        return names;
    }
};

using Names = std::vector<std::string>;

}  // namespace llmc::test
