// Speed of the ops around the matrix products: MoT, norm, embedding, optimizer, at two model sizes.
//     bench_mot [threads] [f32|bf16]
// For each op: best of several runs in ms, GB/s of the tensors it must read and write once, GFLOP/s. The ceilings are
// printed first.
#include "dev/bench/bench.h"

namespace {

using namespace llmc;

// `touched`: tensors the op reads or writes; one that it reads and writes is listed twice.
void line(Bench& b, const char* name, const std::vector<Tensor>& touched, const std::function<void()>& f) {
    int64_t bytes = 0;
    const double before = b.ctx.flops;
    for (const Tensor& t : touched) bytes += t.bytes();
    f();
    const double flops = b.ctx.flops - before;
    double seconds = b.best_seconds(f);
    std::printf("%-28s %9.3f ms %8.1f GB/s %8.1f GFLOP/s\n", name, seconds * 1e3, double(bytes) / seconds * 1e-9,
                flops / seconds * 1e-9);
}

void bench_mot(Bench& b, DType act, int64_t B, int64_t T, int64_t C, int64_t g, int64_t E) {
    std::printf("\nMoT  B %ld  T %ld  C %ld  g %ld  E %ld  %s\n", long(B), long(T), long(C), long(g), long(E),
                name_of(act));
    Group group{g, false};
    Tensor tokens = b.tensor(act, {B, T, C}, "tokens"), slots = b.tensor(act, {E, B * T / g, C}, "slots");
    Tensor weights = b.tensor(DType::f32, {B, T, E}, "weights"), logits = b.tensor(DType::f32, {B, T, E}, "logits");
    Tensor dweights = b.tensor(DType::f32, {B, T, E}, "dweights");
    line(b, "mot_softmax_forward group", {logits, weights},
         [&] { mot_softmax_forward(weights, logits, SoftmaxOver::group, group, 1.0, b.ctx); });
    line(b, "mot_softmax_forward experts", {logits, weights},
         [&] { mot_softmax_forward(weights, logits, SoftmaxOver::experts, group, 1.0, b.ctx); });
    line(b, "mot_softmax_backward group", {logits, dweights, weights},
         [&] { mot_softmax_backward(logits, dweights, weights, SoftmaxOver::group, group, 1.0, false, b.ctx); });
    line(b, "mot_merge", {tokens, weights, slots}, [&] { mot_merge(slots, weights, tokens, group, b.ctx); });
    line(b, "mot_emit", {tokens, weights, slots}, [&] { mot_emit(tokens, weights, slots, group, false, b.ctx); });
    line(b, "mot_emit accumulate", {tokens, tokens, weights, slots},
         [&] { mot_emit(tokens, weights, slots, group, true, b.ctx); });
    line(b, "mot_weights_backward", {tokens, dweights, slots},
         [&] { mot_weights_backward(dweights, tokens, slots, group, false, b.ctx); });
    b.clear();
}

void bench_rows(Bench& b, DType act, int64_t B, int64_t T, int64_t C) {
    const int64_t V = 50257;
    std::printf("\nRows  B %ld  T %ld  C %ld  V %ld  %s\n", long(B), long(T), long(C), long(V), name_of(act));
    Tensor x = b.tensor(act, {B, T, C}, "x"), y = b.tensor(act, {B, T, C}, "y"), z = b.tensor(act, {B, T, C}, "z");
    Tensor weight = b.tensor(act, {C}, "weight"), bias = b.tensor(act, {C}, "bias");
    Tensor mean = b.tensor(DType::f32, {B, T}, "mean"), rstd = b.tensor(DType::f32, {B, T}, "rstd");
    Tensor dweight = b.tensor(DType::f32, {C}, "dweight"), dbias = b.tensor(DType::f32, {C}, "dbias");
    line(b, "add", {x, y, z}, [&] { add(z, x, y, b.ctx); });
    line(b, "norm_forward", {x, y},
         [&] { norm_forward(y, mean, rstd, x, weight, bias, Norm::layernorm, 1e-5, b.ctx); });
    line(b, "residual_norm_forward", {x, x, y, z},
         [&] { residual_norm_forward(x, y, mean, rstd, x, z, weight, bias, Norm::layernorm, 1e-5, b.ctx); });
    line(b, "norm_backward accumulate", {x, y, z, z},
         [&] { norm_backward(z, dweight, dbias, y, x, mean, rstd, weight, Norm::layernorm, true, false, b.ctx); });
    Tensor ids = b.tensor(DType::i32, {B, T}, "ids"), table = b.tensor(act, {V, C}, "table");
    Tensor dtable = b.tensor(DType::f32, {V, C}, "dtable");
    line(b, "embedding_forward", {x, y}, [&] { embedding_forward(y, ids, table, {}, 0, b.ctx); });
    line(b, "embedding_backward", {dtable, x}, [&] { embedding_backward(dtable, {}, x, ids, false, false, b.ctx); });
    b.clear();
}

void bench_optimizer(Bench& b, DType act, int64_t n) {
    std::printf("\nOptimizer  %ld parameters, compute copy %s\n", long(n), act == DType::bf16 ? "BF16" : "none");
    StepState initial;
    Tensor step = step_state_tensor(nullptr);
    step = b.tensor(DType::i32, step.shape, "step");
    upload(step, &initial, b.ctx);
    Tensor p = b.tensor(DType::f32, {n}, "p"), m = b.tensor(DType::f32, {n}, "m"), v = b.tensor(DType::f32, {n}, "v");
    Tensor grad = b.tensor(DType::f32, {n}, "grad"), copy = act == DType::bf16 ? b.tensor(act, {n}, "copy") : Tensor();
    line(b, "grad_norm_accumulate", {grad}, [&] { grad_norm_accumulate(step, grad, b.ctx); });
    step_begin(step, 1e-3, b.ctx);
    step_decide(step, 1.0, 0.9, 0.999, b.ctx);
    std::vector<Tensor> touched = {p, p, m, m, v, v, grad};
    if (copy) touched.push_back(copy);
    line(b, "adamw_update", touched, [&] { adamw_update(p, copy, m, v, grad, step, n, {}, b.ctx); });
    b.clear();
}

}  // namespace

int main(int argc, char** argv) {
    try {
        llmc::ContextOptions options;
        if (argc > 1) options.threads = std::atoi(argv[1]);
        llmc::DType act = argc > 2 && std::string(argv[2]) == "bf16" ? llmc::DType::bf16 : llmc::DType::f32;
        Bench b(options);
        std::printf("%s; peak %.0f GFLOP/s (f32)\n", llmc::backend_description(b.ctx).c_str(),
                    llmc::peak_flops(llmc::DType::f32, b.ctx).flops * 1e-9);
        llmc::Tensor from = b.tensor(llmc::DType::f32, {64 << 20}, "from"),
                     to = b.tensor(llmc::DType::f32, {64 << 20}, "to");
        line(b, "copy of 256 MiB", {from, to}, [&] { llmc::copy(to, from, b.ctx); });
        b.clear();
        bench_mot(b, act, 32, 128, 128, 32, 32);
        bench_mot(b, act, 32, 256, 512, 32, 32);
        bench_mot(b, act, 32, 256, 512, 32, 256);
        bench_rows(b, act, 32, 128, 128);
        bench_rows(b, act, 32, 256, 512);
        bench_optimizer(b, act, 20 << 20);
        return llmc::finish_output(0);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "bench_mot: %s\n", e.what());
        return 1;
    }
}
