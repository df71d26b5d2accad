// Speed of attention: bench_attention [threads] [f32|bf16|f64].
//
// GFLOP/s counts the causal pairs only (masked ones are no work): 4 D per pair forward, 10 D backward (scores once
// more, and four gradient products). Each sample has the peak of a fused-multiply-add loop measured beside it: on a
// shared machine only the ratio means something. ms and GFLOP/s are those of the best of several samples.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "llmc/base/standard_output.h"
#include "llmc/ops/ops.h"

using namespace llmc;

namespace {

struct Case { const char* name; int64_t B, T, C, H; };

double seconds_of(const std::function<void()>& f) {
    const auto start = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Best of `samples` runs, each printed as a share of the peak measured right after it.
void report(const Case& c, const char* pass, int64_t flops, DType act, Context& ctx, const std::function<void()>& f) {
    constexpr int samples = 5;
    f();
    double best = 0, best_share = 0;
    for (int i = 0; i < samples; i++) {
        const double seconds = seconds_of(f), peak = peak_flops(act, ctx).flops, rate = double(flops) / seconds;
        if (rate > best) best = rate, best_share = rate / peak;
    }
    std::printf("%-8s %-9s %9.3f ms %8.1f GFLOP/s  %5.1f %% of the FMA loop beside it\n", c.name, pass,
                double(flops) / best * 1e3, best * 1e-9, best_share * 100);
}

void bench(const Case& c, DType act, Context& ctx) {
    const DType arithmetic = arithmetic_dtype(act);
    std::vector<void*> owned;
    auto make = [&](DType dtype, Shape shape, const char* name) {
        owned.push_back(device_alloc(shape.numel() * size_of(dtype), ctx));
        Tensor t(owned.back(), dtype, shape, name);
        fill(t, 0, ctx);
        return t;
    };
    const Tensor noise = make(DType::f32, {c.B, c.T, 3 * c.C}, "noise"), qkv = make(act, {c.B, c.T, 3 * c.C}, "qkv");
    std::vector<float> values(size_t(noise.numel()));
    uint32_t state = 1;
    for (float& x : values) x = float((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 1;
    upload(noise, values.data(), ctx);
    copy(qkv, noise, ctx);
    const Tensor out = make(act, {c.B, c.T, c.C}, "out"), dout = make(act, {c.B, c.T, c.C}, "dout");
    const Tensor lse = make(arithmetic, {c.B, c.H, c.T}, "lse"), dqkv = make(act, {c.B, c.T, 3 * c.C}, "dqkv");
    fill(dout, 0.5, ctx);
    const int64_t pair_flops = c.B * c.H * (c.T * (c.T + 1) / 2) * (c.C / c.H);
    report(c, "forward", 4 * pair_flops, act, ctx, [&] { attention_forward(out, lse, qkv, c.H, ctx); });
    report(c, "backward", 10 * pair_flops, act, ctx, [&] { attention_backward(dqkv, dout, qkv, out, lse, c.H, ctx); });
    report(c, "rope", 6 * c.B * c.T * c.C, act, ctx, [&] { rope(qkv, c.H, 0, false, ctx); });
    for (size_t i = 0; i < owned.size(); i++) {
        const Tensor all[] = {noise, qkv, out, dout, lse, dqkv};
        device_free(owned[i], all[i].bytes(), ctx);
    }
}

}  // namespace

int main(int argc, char** argv) {
    ContextOptions options;
    options.threads = argc > 1 ? std::atoi(argv[1]) : 0;
    const std::string dtype = argc > 2 ? argv[2] : "f32";
    const DType act = dtype == "bf16" ? DType::bf16 : dtype == "f64" ? DType::f64 : DType::f32;
    Context ctx(options);
    std::printf("%s, %s, FMA loop %.1f GFLOP/s\n", backend_description(ctx).c_str(), name_of(act),
                peak_flops(act, ctx).flops * 1e-9);
    for (const Case& c :
         {Case{"Tiny", 32, 128, 128, 4}, Case{"Medium", 32, 256, 512, 8}, Case{"long", 1, 4096, 512, 8}})
        bench(c, act, ctx);
    return finish_output(0);
}
