// Products of experts that own as many rows as they need, beside batched products of a fixed capacity.
//     bench_ragged [threads] [f32|bf16]
// 8192 rows of 512 in all, experts as large as a dense layer of 2048 and 256 small ones. Best of several runs, in ms:
// forward (up), input gradient, weight gradient; GFLOP/s are those of the rows that are needed.
#include <cmath>

#include "dev/bench/bench.h"

namespace {

using namespace llmc;

constexpr int64_t C = 512, pairs = 8192;

void line(Bench& b, const std::string& name, int64_t F, const std::function<void()> (&products)[3]) {
    std::printf("%-28s", name.c_str());
    for (const auto& product : products) {
        const double ms = b.best_seconds(product) * 1e3;
        std::printf("  %8.2f ms %7.1f", ms, 2e-6 * double(pairs * C * F) / ms);
    }
    std::printf("\n");
}

void bench_capacity(Bench& b, DType act, int64_t E, int64_t F, double capacity) {
    const int64_t S = int64_t(std::ceil(double(pairs) / double(E) * capacity));
    Tensor x = b.tensor(act, {E, S, C}, "x"), h = b.tensor(act, {E, S, F}, "h"), w = b.tensor(act, {E, F, C}, "w");
    Tensor dw = b.tensor(DType::f32, {E, F, C}, "dw");
    line(b, "capacity " + std::to_string(capacity).substr(0, 4), F,
         {[&] { matmul(h, x, w, {.transpose_b = true}, b.ctx); }, [&] { matmul(x, h, w, {}, b.ctx); },
          [&] { matmul(dw, h, x, {.transpose_a = true}, b.ctx); }});
    b.clear();
}

// share(e): the part of all pairs that expert e gets, up to a factor.
void bench_ragged(Bench& b, DType act, int64_t E, int64_t F, const char* name,
                  const std::function<double(int64_t)>& share) {
    double sum = 0, before = 0;
    for (int64_t e = 0; e < E; e++) sum += share(e);
    std::vector<int32_t> offsets{0};
    for (int64_t e = 0; e < E; e++) {
        const double after = before + share(e) / sum;
        const int64_t rows = std::llround(after * pairs) - std::llround(before * pairs), tile = ragged_tile();
        offsets.push_back(offsets.back() + int32_t((rows + tile - 1) / tile * tile));
        before = after;
    }
    const int64_t R = ragged_rows(pairs, E);
    Tensor x = b.tensor(act, {R, C}, "x"), h = b.tensor(act, {R, F}, "h"), w = b.tensor(act, {E, F, C}, "w");
    Tensor dw = b.tensor(DType::f32, {E, F, C}, "dw"), rows = b.tensor(DType::i32, {E + 1}, "offsets");
    upload(rows, offsets.data(), b.ctx);
    line(b, std::string("dropless, ") + name, F,
         {[&] { matmul_ragged(h, x, w, rows, {.transpose_b = true}, b.ctx); },
          [&] { matmul_ragged(x, h, w, rows, {}, b.ctx); },
          [&] { matmul_ragged(dw, h, x, rows, {.transpose_a = true}, b.ctx); }});
    b.clear();
}

}  // namespace

int main(int argc, char** argv) {
    try {
        llmc::ContextOptions options;
        if (argc > 1) options.threads = std::atoi(argv[1]);
        const llmc::DType act = argc > 2 && std::string(argv[2]) == "bf16" ? llmc::DType::bf16 : llmc::DType::f32;
        Bench b(options);
        std::printf("%s\n", llmc::backend_description(b.ctx).c_str());
        for (auto [E, F] : {std::pair<int64_t, int64_t>{32, 2048}, {256, 256}}) {
            std::printf("\n%ld experts, %ld to %ld, %s      forward    GFLOP/s   input gradient    weight gradient\n",
                        long(E), long(C), long(F), llmc::name_of(act));
            bench_capacity(b, act, E, F, 1.0);
            bench_capacity(b, act, E, F, 1.25);
            bench_ragged(b, act, E, F, "balanced", [](int64_t) { return 1.0; });
            bench_ragged(b, act, E, F, "skewed (1 / rank)", [](int64_t e) { return 1.0 / double(e + 1); });
            bench_ragged(b, act, E, F, "one takes all", [](int64_t e) { return e == 1 ? 1.0 : 0.0; });
        }
        return llmc::finish_output(0);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "bench_ragged: %s\n", e.what());
        return 1;
    }
}
