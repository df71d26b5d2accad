// Checkpoints: what is saved comes back, and every kind of damage is refused by name.
#include <gtest/gtest.h>

#include <fstream>

#include "dev/test/checkpoint_run.h"
#include "dev/test/forge_state.h"
#include "dev/test/refusal.h"
#include "llmc/base/files.h"
#include "llmc/base/safetensors.h"

using namespace llmc;
using namespace llmc::test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

void write(const std::string& path, const std::string& bytes) {
    fs::remove(path);
    std::ofstream(path, std::ios::binary) << bytes;
}

void expect_contains(const std::string& text, const std::string& words) {
    EXPECT_NE(text.find(words), std::string::npos) << text;
}

}  // namespace

TEST_F(CheckpointTest, WhatIsSavedComesBack) {
    const std::string run = directory + "/new/run";  // made on the way
    Tensors model(ctx), optimizer(ctx), other(ctx);
    model.add("a", DType::f32, {3, 5}, 1).add("b", DType::bf16, {7}, 1).add("c", DType::f64, {1, 2, 3}, 1);
    optimizer.add("a.m", DType::f32, {3, 5}, 2).add("state", DType::i32, {4}, 2);
    json state = {{"data", {1, 2}}, {"best", NAN}, {"path", "bad \xff"}};
    state["config"] = {{"d_model", 64}, {"lr", 0.1 + 0.2}};
    EXPECT_EQ(save_checkpoint(run, 1000, model.list, optimizer.list, state, 2, ctx, World::alone()),
              run + "/step-00001000");
    EXPECT_EQ(read_file(run + "/latest"), "step-00001000\n");

    for (const std::string& path : {run, run + "/", run + "/step-00001000", run + "/step-00001000/"}) {
        Checkpoint c = open_checkpoint(path);
        EXPECT_EQ(c.directory, run + "/step-00001000");
        EXPECT_EQ(c.step, 1000);
        EXPECT_EQ(c.note, "");
        EXPECT_EQ(c.state["format_version"], 1);
        EXPECT_EQ(c.state["config"]["lr"].get<double>(), 0.1 + 0.2);
        EXPECT_EQ(c.state["data"], (json{1, 2}));
        EXPECT_TRUE(c.state["best"].is_null());
        EXPECT_EQ(c.state["path"], "bad \xef\xbf\xbd");
        model.set_all(9);
        optimizer.set_all(9);
        load_tensors(c, model_file, model.list, ctx, World::alone());
        load_tensors(c, optimizer_file, optimizer.list, ctx, World::alone());
        EXPECT_TRUE(model.holds(1));
        EXPECT_TRUE(optimizer.holds(2));
    }
    // CRC-32 of the raw bytes, as zlib, Python and gzip know it.
    std::vector<char> bytes = model.expected(0, 1);
    EXPECT_EQ(open_checkpoint(run).state["files"]["model.safetensors"]["tensors"]["a"],
              hex32(crc32_of(bytes.data(), bytes.size())));
    EXPECT_THROW(save_checkpoint(run, 1, {}, {}, {{"step", 1}}, 0, ctx, World::alone()), RunError);
    EXPECT_THROW(save_checkpoint(run, -1, {}, {}, json::object(), 0, ctx, World::alone()), RunError);
    EXPECT_THROW(save_checkpoint(run, 1, {}, {}, json::array(), 0, ctx, World::alone()), RunError);
}

TEST_F(CheckpointTest, KeepsTheNewest) {
    TestRun run(directory, ctx);
    for (int64_t step : {1, 2, 3}) run.save(step);
    EXPECT_EQ(listing(), (Names{"latest", "step-00000001", "step-00000002", "step-00000003"}));
    run.save(4, 2);
    EXPECT_EQ(listing(), (Names{"latest", "step-00000003", "step-00000004"}));
    for (int64_t step : {8, 9}) run.save(step);
    run.save(5, 3);  // resumed from 4: 8 and 9 belong to a future that was given up
    EXPECT_EQ(listing(), (Names{"latest", "step-00000003", "step-00000004", "step-00000005"}));
    EXPECT_EQ(run.load(directory), 5);
    run.save(2, 1);  // never the one just written
    EXPECT_EQ(listing(), (Names{"latest", "step-00000002"}));
    EXPECT_EQ(run.load(directory), 2);
    run.save(100'000'000'000, 0);  // longer than eight digits
    EXPECT_EQ(run.load(directory + "/step-100000000000"), 100'000'000'000);
}

TEST_F(CheckpointTest, TheSameStepIsReplaced) {
    TestRun run(directory, ctx);
    run.save(7);
    run.model.set_all(70);
    save_checkpoint(directory, 7, run.model.list, run.optimizer.list, {{"again", true}}, 0, ctx, World::alone());
    EXPECT_EQ(listing(), (Names{"latest", "step-00000007"}));
    Checkpoint c = open_checkpoint(directory);
    EXPECT_TRUE(c.state["again"].get<bool>());
    run.model.set_all(0);
    load_tensors(c, model_file, run.model.list, ctx, World::alone());
    EXPECT_TRUE(run.model.holds(70));
}

// The states a kill can leave behind, made by hand.
TEST_F(CheckpointTest, HalfWrittenDirectoriesAreNeverTaken) {
    TestRun run(directory, ctx);
    EXPECT_FALSE(find_latest(directory));
    EXPECT_FALSE(find_latest(directory + "/absent"));
    expect_contains(refusal([&] { open_checkpoint(directory); }), "no complete checkpoint in " + directory);
    expect_contains(refusal([&] { open_checkpoint(directory + "/absent"); }), "there is no checkpoint " + directory);
    write(directory + "/file", "");
    expect_contains(refusal([&] { open_checkpoint(directory + "/file"); }), "give a run's directory");

    run.save(1);
    run.save(2);
    fs::rename(directory + "/step-00000002", directory + "/.step-00000002.tmp");  // killed before the rename
    write(directory + "/latest", "step-00000001\n");
    EXPECT_EQ(run.load(directory), 1);
    fs::create_directory(directory + "/step-00000009");  // not ours, empty
    write(directory + "/latest.tmp.123", "st");
    EXPECT_EQ(run.load(directory), 1);
    expect_contains(refusal([&] { run.load(directory + "/step-00000009"); }), "it has no state.json");
    run.save(3);
    EXPECT_EQ(listing(), (Names{"file", "latest", "step-00000001", "step-00000003", "step-00000009"}));

    // Killed between the two renames that replace step 3.
    fs::rename(directory + "/step-00000003", directory + "/step-00000003.replaced");
    EXPECT_EQ(run.load(directory), 3);
    expect_contains(find_latest(directory)->note, "using step-00000003.replaced instead");
    run.save(3);
    EXPECT_EQ(run.load(directory), 3);
    EXPECT_FALSE(path_exists(directory + "/step-00000003.replaced"));
}

TEST_F(CheckpointTest, ADamagedLatestFallsBack) {
    TestRun run(directory, ctx);
    for (int64_t step : {1, 2, 3}) run.save(step);
    for (const char* text : {"", "step-", "step-00000099\n", "../step-00000003\n", "step-3\n", "\xff\xfe\n"}) {
        write(directory + "/latest", text);
        EXPECT_EQ(run.load(directory), 3);
        expect_contains(find_latest(directory)->note, "using step-00000003 instead");
    }
    fs::remove(directory + "/latest");
    EXPECT_EQ(run.load(directory), 3);
    write(directory + "/latest", "step-00000003\n");
    fs::resize_file(directory + "/step-00000003/optimizer.safetensors", 100);
    EXPECT_EQ(run.load(directory), 2);
    expect_contains(find_latest(directory)->note, "step-00000003/optimizer.safetensors has 100 bytes instead of");
    fs::remove(directory + "/step-00000002/model.safetensors");
    EXPECT_EQ(run.load(directory), 1);
    write(directory + "/step-00000001/state.json", "{");
    expect_contains(refusal([&] { find_latest(directory); }), "no checkpoint in " + directory + " is usable");
}

TEST_F(CheckpointTest, WithoutLatestADamagedRunIsNoNewOne) {
    TestRun run(directory, ctx);
    run.save(1);
    fs::remove(directory + "/latest");
    write(directory + "/step-00000001/state.json", "{");
    expect_contains(refusal([&] { find_latest(directory); }), "no checkpoint in " + directory + " is usable");
}

// The search with all checksums goes on to an older one, whatever byte of the newest is another.
TEST_F(CheckpointTest, AFlippedByteAnywhereFallsBackToTheOlder) {
    TestRun run(directory, ctx);
    run.save(1);
    const std::string newest = run.save(2);
    auto verify = [](const Checkpoint& c) { verify_checkpoint(c, World::alone()); };
    EXPECT_EQ(find_latest(directory, verify)->step, 2);
    for (const char* file : {model_file, optimizer_file}) {
        const std::string path = newest + "/" + file, good = read_file(path);
        for (size_t i = 0; i < good.size(); i++) {
            std::string bad = good;
            bad[i] ^= char(1 << i % 8);
            write(path, bad);
            const std::optional<Checkpoint> found = find_latest(directory, verify);
            ASSERT_TRUE(found && found->step == 1) << file << " byte " << i;
            if (i % 50) continue;
            expect_contains(found->note, path);
            expect_contains(found->note, "; using step-00000001 instead");
        }
        write(path, good);
    }
    EXPECT_EQ(find_latest(directory, verify)->step, 2);
}

TEST_F(CheckpointTest, OldOnesWithoutAChecksumOfTheHeaderAreRead) {
    TestRun run(directory, ctx);
    forge(run.save(1) + "/state.json", [](json& state) {
        for (const char* file : {model_file, optimizer_file}) state["files"][file].erase("header");
    });
    EXPECT_EQ(run.load(directory), 1);
}

TEST_F(CheckpointTest, ForgedStatesAreRefusedByName) {
    TestRun run(directory, ctx);
    const std::string path = run.save(1) + "/state.json", good = read_file(path);
    auto expect = [&](const auto& change, const std::string& part) {
        write(path, good);
        forge(path, change);
        const std::string text = refusal([&] { run.load(directory); });
        expect_contains(text, path);
        expect_contains(text, part);
    };
    for (const json& step : {json(-1), json(int64_t(1) << 62), json(UINT64_MAX), json(1.5), json("1"), json()})
        expect([&](json& state) { state["step"] = step; }, "step is " + step.dump() + ", not a whole number");
    expect([](json& state) { state.erase("step"); }, "step or files are missing");
    for (const json& files : {json(), json(3), json::array({1})})
        expect([&](json& state) { state["files"] = files; }, "step or files are missing");
    for (const char* file : {model_file, optimizer_file}) {
        expect([&](json& state) { state["files"][file] = 5; }, str("does not say what is in ", file));
        expect([&](json& state) { state["files"].erase(file); }, str("does not say what is in ", file));
        expect([&](json& state) { state["files"][file]["bytes"] = -1; }, str("does not say what is in ", file));
        expect([&](json& state) { state["files"][file]["tensors"] = "all"; }, str("does not say what is in ", file));
    }
    json deep;
    for (int i = 0; i < 100; i++) deep = json::array({deep});
    expect([&](json& state) { state["more"] = deep; }, "nested deeper than 64");
}

TEST_F(CheckpointTest, EveryFlippedByteOfStateIsNoticed) {
    TestRun run(directory, ctx);
    const std::string path = run.save(1) + "/state.json", good = read_file(path);
    for (size_t i = 0; i < good.size(); i++) {
        std::string bad = good;
        bad[i] = char(bad[i] ^ (i % 3 ? 1 : 32));
        write(path, bad);
        std::string text = refusal([&] { open_checkpoint(directory + "/step-00000001"); });
        if (json::parse(bad, nullptr, false) == json::parse(good)) continue;  // white space
        expect_contains(text, path);
    }
    json other = json::parse(good);
    other["format_version"] = 2;
    write(path, other.dump());
    expect_contains(refusal([&] { run.load(directory); }), "has format 2, this program reads 1");
}

TEST_F(CheckpointTest, AFlippedByteNamesTheTensor) {
    TestRun run(directory, ctx);
    const std::string step = run.save(1);
    for (const char* file : {model_file, optimizer_file}) {
        const std::string path = step + "/" + file, good = read_file(path);
        std::vector<SafetensorsEntry> entries = SafetensorsFile(path).tensors();
        for (const SafetensorsEntry& entry : entries) {
            for (int64_t at : {int64_t(0), entry.bytes() - 1}) {
                if (entry.bytes() == 0) continue;
                std::string bad = good;
                bad[size_t(entry.offset + at)] ^= 0x10;
                write(path, bad);
                std::string text = refusal([&] { run.load(step); });
                expect_contains(text, "tensor " + entry.name + " is damaged");
                expect_contains(text, path);
            }
        }
        // In the header: whatever the byte says, the load fails or its result is right.
        for (int64_t i = 0; i < entries[0].offset; i++) {
            std::string bad = good;
            bad[size_t(i)] ^= 1;
            write(path, bad);
            int64_t loaded = 1;
            refusal([&] { loaded = run.load(step); });
            EXPECT_EQ(loaded, 1) << "byte " << i;
        }
        write(path, good);
    }
    EXPECT_EQ(run.load(step), 1);
}

TEST_F(CheckpointTest, OtherModelsAreRefusedByName) {
    TestRun run(directory, ctx);
    const std::string step = run.save(1), path = step + "/model.safetensors";
    const Checkpoint c = open_checkpoint(step);
    const auto say = [&](const std::vector<NamedTensor>& tensors) {
        return refusal([&] { load_tensors(c, model_file, tensors, ctx, World::alone()); });
    };
    std::vector<NamedTensor> list = run.model.list;
    list.pop_back();
    expect_contains(say(list), path + " has a tensor empty that this model does not have");
    list = run.model.list;
    list.push_back({"blocks.9.up.weight", list[0].tensor});
    expect_contains(say(list), path + " has no tensor blocks.9.up.weight, which this model needs");
    list = run.model.list;
    list[0].tensor.shape = list[0].tensor.stride = {5, 3};
    expect_contains(say(list), "tensor blocks.0.qkv.weight has shape [3, 5], this model needs [5, 3]");
    list = run.model.list;
    list[1].tensor.dtype = DType::f32;
    expect_contains(say(list), "tensor head.weight is BF16, this run needs F32: run with the --precision");
    EXPECT_EQ(say(run.model.list), "");
}

TEST_F(CheckpointTest, RoomIsWhatIsFreeAndWhatOldOnesHave) {
    TestRun run(directory, ctx);
    for (int64_t step : {1, 2}) run.save(step);
    uintmax_t files = 0;
    for (const char* name : {"/step-00000001/", "/step-00000002/"})
        for (const char* file : {model_file, optimizer_file}) files += fs::file_size(directory + name + file);
    EXPECT_NEAR(double(checkpoint_bytes(run.model.list, run.optimizer.list)), double(files) / 2, 8);
    EXPECT_GE(room_for_checkpoints(directory), int64_t(files));
    EXPECT_LT(room_for_checkpoints(directory + "/absent"), 0);
}

TEST_F(CheckpointTest, ADirectoryThatCannotBeWritten) {
    write(directory + "/file", "");
    TestRun run(directory + "/file", ctx);
    EXPECT_THROW(run.save(1), RunError);
    EXPECT_THROW(TestRun("/proc/no/such", ctx).save(1), RunError);
}
