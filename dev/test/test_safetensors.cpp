// safetensors: what is written comes back, golden files are read, and no damage of any kind gets past the reader.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "dev/test/write_safetensors.h"
#include "llmc/base/rng.h"

using namespace llmc;
using namespace llmc::test;

namespace {

struct SafetensorsTest : testing::Test {
    std::string directory, path;
    void SetUp() override {
        char name[] = "/tmp/llmc_safetensors_XXXXXX";
        directory = mkdtemp(name);
        path = directory + "/t.safetensors";
    }
    void TearDown() override { std::filesystem::remove_all(directory); }

    void write(const std::string& bytes) {
        std::filesystem::remove(path);  // overwriting in place would make some file systems sync every time
        std::ofstream(path, std::ios::binary) << bytes;
    }
    // A file with this header and `data` bytes of zeros behind it.
    void write_header(const std::string& header, size_t data) {
        uint64_t size = header.size();
        write(std::string(reinterpret_cast<char*>(&size), 8) + header + std::string(data, '\0'));
    }
    // What the reader says about the file; "" if it is happy.
    std::string complaint() {
        try {
            SafetensorsFile file(path);
            for (const SafetensorsEntry& entry : file.tensors())  // every byte a caller could reach must be there
                for (int64_t i = 0; i < entry.bytes(); i++) reachable += file.bytes(entry)[i];
            return "";
        } catch (const InputError& e) {
            return e.what();
        }
    }
    char reachable = 0;

    void expect_complaint(const std::string& header, size_t data, const std::string& words) {
        write_header(header, data);
        std::string text = complaint();
        EXPECT_NE(text.find(words), std::string::npos) << header << "\n-> " << text;
        EXPECT_NE(text.find(path), std::string::npos) << text;
    }
};

template <class T>
void supply(const std::vector<T>& values, char* buffer) {
    std::memcpy(buffer, values.data(), values.size() * sizeof(T));
}

}  // namespace

TEST_F(SafetensorsTest, WhatIsWrittenComesBack) {
    std::vector<bf16> b = {1.5f, -2.0f, 3.25f};
    std::vector<int32_t> n = {-1, 7};
    std::vector<double> d = {1.0 / 3};
    std::vector<float> large(5'000'001);
    RandomStream(1, "large").uniform_fill(large.data(), 0, int64_t(large.size()), -1, 1);
    std::vector<SafetensorsEntry> tensors = {{"b", DType::bf16, {3, 1}},
                                             {"n", DType::i32, {2}},
                                             {"d", DType::f64, {}},
                                             {"none", DType::f32, {0, 5}},
                                             {"large", DType::f32, {1, 1, 5'000'001, 1}}};
    write_safetensors(path, tensors, {{"who", "a \"test\""}, {"more", "x\ny"}},
                      [&](size_t i, char* buffer) {
                          if (i == 0) supply(b, buffer);
                          if (i == 1) supply(n, buffer);
                          if (i == 2) supply(d, buffer);
                          if (i == 4) supply(large, buffer);
                      });
    SafetensorsFile file(path);
    EXPECT_EQ(file.metadata(), (Metadata{{"who", "a \"test\""}, {"more", "x\ny"}}));
    ASSERT_EQ(file.tensors().size(), 5u);
    for (const SafetensorsEntry& entry : file.tensors())
        EXPECT_EQ(entry.offset % size_of(entry.dtype), 0) << entry.name;
    for (const SafetensorsEntry& want : tensors) {
        EXPECT_EQ(file.at(want.name).dtype, want.dtype);
        EXPECT_EQ(file.at(want.name).shape, want.shape);
    }
    EXPECT_EQ(file.read<int32_t>("n"), n);
    EXPECT_EQ(file.read<double>("d"), d);
    EXPECT_EQ(file.read<float>("large"), large);
    EXPECT_TRUE(file.read<float>("none").empty());
    for (size_t i = 0; i < b.size(); i++) EXPECT_EQ(file.read<bf16>("b")[i].bits, b[i].bits);
    EXPECT_EQ(file.find("absent"), nullptr);
    EXPECT_THROW(file.at("absent"), InputError);
    EXPECT_THROW(file.read<float>("n"), InputError);

    SafetensorsFile moved = std::move(file);  // the mapping moves along
    EXPECT_EQ(moved.read<double>("d"), d);
}

TEST_F(SafetensorsTest, NoTensors) {
    write_safetensors(path, {}, {}, {});
    EXPECT_TRUE(SafetensorsFile(path).tensors().empty());
}

// A file laid out by hand, byte by byte.
TEST_F(SafetensorsTest, TheFormatItself) {
    std::string header = R"({"__metadata__":{"k":"v"},"y":{"dtype":"F32","shape":[2],"data_offsets":[2,10]},)"
                         R"("x":{"dtype":"BF16","shape":[1,1],"data_offsets":[0,2]}}   )";
    uint64_t size = header.size();
    const std::string data("\x80\x3f\x00\x00\x80\x3f\x00\x00\x00\xc0", 10);  // 1 in bf16; 1 and -2 in f32
    write(std::string(reinterpret_cast<char*>(&size), 8) + header + data);
    SafetensorsFile file(path);
    EXPECT_EQ(float(file.read<bf16>("x")[0]), 1.0f);
    EXPECT_EQ(file.read<float>("y"), (std::vector<float>{1, -2}));  // not aligned
    EXPECT_EQ(file.metadata().at("k"), "v");
    EXPECT_EQ(file.tensors()[0].name, "x");
}

TEST_F(SafetensorsTest, EveryDefectOfTheHeaderIsNamed) {
    const auto one = [](const std::string& dtype, const std::string& shape, const std::string& range) {
        return R"({"w":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + range + "}}";
    };
    write_header(one("\"F32\"", "[2]", "[0,8]"), 8);
    EXPECT_EQ(complaint(), "");
    expect_complaint(one("\"F16\"", "[2]", "[0,4]"), 4, "tensor w has dtype \"F16\"");
    expect_complaint(one("3", "[2]", "[0,8]"), 8, "tensor w has dtype 3");
    expect_complaint(one("\"F32\"", "[2]", "[0,8]"), 7, "truncated");
    expect_complaint(one("\"F32\"", "[2]", "[0,8]"), 9, "1 bytes at the end belong to no tensor");
    expect_complaint(one("\"F32\"", "[3]", "[0,8]"), 8, "needs 12 bytes, but its range has 8");
    expect_complaint(one("\"F32\"", "[2]", "[8,0]"), 8, "before its begin");
    expect_complaint(one("\"F32\"", "[2]", "[4,12]"), 12, "4 bytes before tensor w");
    expect_complaint(one("\"F32\"", "[2]", "[0]"), 8, "no data_offsets");
    expect_complaint(one("\"F32\"", "[2]", "[0,\"8\"]"), 8, "\"8\" is not a size");
    expect_complaint(one("\"F32\"", "[-2]", "[0,8]"), 8, "-2 is not a size");
    expect_complaint(one("\"F32\"", "[2.0]", "[0,8]"), 8, "2.0 is not a size");
    expect_complaint(one("\"F32\"", "2", "[0,8]"), 8, "no shape");
    expect_complaint(one("\"F32\"", "[2,1,1,1,1]", "[0,8]"), 8, "5 dimensions");
    expect_complaint(one("\"F32\"", "[4611686018427387904,4]", "[0,0]"), 0, "too large for any memory");  // 2^66 bytes
    expect_complaint(one("\"F32\"", "[18446744073709551615]", "[0,8]"), 8, "is not a size");
    expect_complaint(R"({"w":{"dtype":"F32","shape":[2]}})", 8, "no data_offsets");
    expect_complaint(R"({"w":[]})", 8, "tensor w is not described");
    expect_complaint(R"({"__metadata__":{"k":1}})", 0, "k is not a string");
    expect_complaint(R"({"__metadata__":[]})", 0, "__metadata__ is not");
    const std::string first = R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)";
    expect_complaint(first + R"("v":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12, "w and v overlap");
    expect_complaint(first + R"("w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})", 16, "w is listed twice");
    expect_complaint("[1]", 0, "does not start with {");
    expect_complaint("{\"w\":", 0, "not valid JSON");
    expect_complaint("", 0, "does not start with {");
    expect_complaint("{\"w\":" + std::string(100000, '['), 0, "nested deeper than 64");
    expect_complaint("{\"\xff\xfe\":{}}", 0, "not valid JSON");
    write("");
    EXPECT_NE(complaint().find("0 bytes"), std::string::npos);
    write(std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10));
    EXPECT_NE(complaint().find("truncated or not a safetensors file"), std::string::npos);
    path = directory + "/absent";
    EXPECT_NE(complaint().find("cannot read"), std::string::npos);
    path = directory;
    EXPECT_NE(complaint().find("directory"), std::string::npos);
}

// Cut anywhere: refused. Any byte changed in the header: refused or another valid file, but never a crash (the
// sanitizer variant of this test looks closer).
TEST_F(SafetensorsTest, TruncationAndGarbage) {
    write_safetensors(path, {{"a.weight", DType::f32, {3, 5}}, {"b", DType::bf16, {7}}}, {{"k", "v"}},
                      [](size_t i, char* buffer) { std::memset(buffer, 7, i == 0 ? 60 : 14); });
    const std::string good = read_file(path);
    EXPECT_EQ(complaint(), "");
    for (size_t size = 0; size < good.size(); size++) {
        write(good.substr(0, size));
        EXPECT_NE(complaint(), "") << "cut to " << size << " of " << good.size() << " bytes";
    }
    RandomStream random(1, "garbage");
    const size_t header_end = good.size() - 15 * 4 - 7 * 2;
    int refused = 0;
    for (uint64_t trial = 0; trial < 3000; trial++) {
        std::string bad = good;
        int changes = 1 + int(random.bits(3 * trial) % 3);
        for (int c = 0; c < changes; c++) {
            uint64_t bits = random.bits(1'000'000 + 3 * trial + uint64_t(c));
            bad[bits % header_end] = "0123456789{}[]\",:-\\\xff\x00 eE"[(bits >> 32) % 24];
        }
        write(bad);
        refused += complaint() != "";
    }
    EXPECT_GT(refused, 2500);
    for (uint64_t trial = 0; trial < 200; trial++) {
        std::string noise(random.bits(2'000'000 + trial) % 300, '\0');
        for (size_t i = 0; i < noise.size(); i++) noise[i] = char(random.bits(3'000'000 + trial * 300 + i));
        if (noise.size() > 8 && trial % 2) std::memset(&noise[1], 0, 7);  // a header length that fits
        write(noise);
        EXPECT_NE(complaint(), "");
    }
}

TEST_F(SafetensorsTest, TwoTensorsOfOneNameAreRefused) {
    EXPECT_THROW(lay_out_safetensors({{"a", DType::f32, {1}}, {"a", DType::f32, {1}}}, {}), RunError);
}

// A file of the reference implementation, written by the Python library.
TEST(Safetensors, ReadsGoldenFiles) {
    const std::string path = "dev/test/golden/mot_1_shared_E_gt_g.safetensors";
    if (!path_exists(path)) GTEST_SKIP() << path << " is not here: run from the repository's root";
    SafetensorsFile file(path);
    EXPECT_EQ(file.metadata().at("block"), "mot");
    EXPECT_EQ(file.at("input").shape, (Shape{8, 7, 24}));
    EXPECT_EQ(file.at("param.experts.up.weight").shape, (Shape{6, 10, 24}));
    EXPECT_EQ(nlohmann::json::parse(file.metadata().at("config"))["group_size"], 4);
    EXPECT_EQ(file.read<float>("output").size(), size_t(8 * 7 * 24));
}
