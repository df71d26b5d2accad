// Device memory on every backend: what goes up comes down, fill, and copies that convert.
#include <limits>

#include "dev/test/reference.h"

namespace llmc::test {
namespace {

TEST(Memory, UploadDownloadAllTypes) {
    Device device;
    for (DType type : {DType::f32, DType::bf16, DType::f64, DType::i32}) {
        Vector values = random_integers(5001, -100, 100, 1);
        Tensor t = device.tensor(type, {5001}, values, "t");
        EXPECT_EQ(device.read(t), values);
        EXPECT_EQ(device.read(t.slice(7, 9)), (Vector{values[7], values[8]}));
    }
    Tensor square = device.tensor(DType::f32, {4, 4}, "square");
    square.shape = {4, 2};  // a view of two columns
    EXPECT_TRUE(refuses([&] { device.read(square); }, "square must be contiguous"));
}

TEST(Memory, FillAndCopyConvert) {
    const double third = 1.0 / 3;
    for (DType from : {DType::f32, DType::bf16, DType::f64}) {
        Device device;
        Tensor src = device.tensor(from, {5001}, "src");
        fill(src, third, device.ctx);
        EXPECT_EQ(device.read(src), rounded(from, Vector(5001, third)));
        for (DType to : {DType::f32, DType::bf16, DType::f64}) {
            Vector values = random_vector(5001, 2);
            values[3] = std::numeric_limits<double>::quiet_NaN();
            values[4] = std::numeric_limits<double>::infinity();
            device.write(src, values);
            Tensor dst = device.tensor(to, {3, 1667}, "dst");
            copy(dst, src, device.ctx);
            Vector want = rounded(to, rounded(from, values));
            EXPECT_TRUE(close(device.read(dst), want, 0.0, Nans::expected)) << name_of(from) << " to " << name_of(to);
        }
    }
    Device device;
    Tensor index = device.tensor(DType::i32, {3}, "index"), other = device.tensor(DType::i32, {3}, {7, -1, 2}, "other");
    copy(index, other, device.ctx);
    EXPECT_EQ(device.read(index), (Vector{7, -1, 2}));
    fill(index, -1, device.ctx);
    EXPECT_EQ(device.read(index), Vector(3, -1.0));
    Tensor floats = device.tensor(DType::f32, {3}, "floats"), longer = device.tensor(DType::f32, {4}, "longer");
    EXPECT_TRUE(refuses([&] { copy(floats, index, device.ctx); }, "index is I32"));
    EXPECT_TRUE(refuses([&] { copy(longer, floats, device.ctx); }, "longer has shape [4]"));
    synchronize(device.ctx);
}

TEST(Memory, SwapAxes) {
    Device device;
    for (DType type : {DType::f32, DType::bf16, DType::f64, DType::i32})
        for (Shape s : {Shape{2, 3, 5}, Shape{4, 1, 8}, Shape{3, 7, 1000}, Shape{1, 5, 3}, Shape{300, 300, 1},
                        Shape{0, 3, 4}, Shape{2, 2, 70001}}) {
            const Vector values = random_integers(s.numel(), -100, 100, 1);
            Tensor in = device.tensor(type, s, values, "in"), out = device.tensor(type, {s[1], s[0], s[2]}, "out");
            swap_axes(out, in, device.ctx);
            Vector want(values.size());
            for (int64_t a = 0; a < s[0]; a++)
                for (int64_t b = 0; b < s[1]; b++)
                    for (int64_t i = 0; i < s[2]; i++)
                        want[size_t((b * s[0] + a) * s[2] + i)] = values[size_t((a * s[1] + b) * s[2] + i)];
            EXPECT_EQ(device.read(out), want) << name_of(type) << " " << s.text();
        }
    Tensor in = device.tensor(DType::f32, {2, 3, 4}, "in"), out = device.tensor(DType::f32, {2, 3, 4}, "out");
    EXPECT_TRUE(refuses([&] { swap_axes(out, in, device.ctx); }, "out has shape [2, 3, 4], expected [3, 2, 4]"));
    EXPECT_TRUE(refuses([&] { swap_axes(out, in.view({6, 4}), device.ctx); }, "three axes"));
}

TEST(Machine, BandwidthIsThatOfSomeMemory) {
    Context ctx({.threads = 2});
    const Bandwidth bandwidth = peak_bandwidth(ctx);
    EXPECT_GT(bandwidth.bytes, 1e7);
    EXPECT_LT(bandwidth.bytes, 1e14);
    EXPECT_EQ(bandwidth.how, "measured now");
}

}  // namespace
}  // namespace llmc::test
