// Initial weights (facts of the reference: Linear layers and embeddings by truncated normal, embeddings with fan-in 1,
// biases as PyTorch's Linear draws them, norms at 1 and 0, scalars at values of their own).
//
//   truncated-normal        std = sqrt(scale / fan_in), cut at +-2 scale (absolute, not in units of std)
//   truncated-normal-fixed  std = scale / sqrt(fan_in), cut at +-2 std
#include "llmc/model/initialize.h"

#include <algorithm>
#include <cmath>

#include "llmc/base/rng.h"
#include "llmc/model/model.h"

namespace llmc {
namespace {

// Fills `out` (of the parameter's type) with elements first .. first+n of the tensor.
template <class T>
void draw(T* out, int64_t first, int64_t n, const ParamSpec& spec, const ModelConfig& config, uint64_t seed) {
    RandomStream stream(seed, spec.name);
    const double fan_in = double(spec.init.fan_in), scale = config.init_scale;
    if (spec.init.kind == ParamInit::weight) {
        const bool fixed = config.init == Init::truncated_normal_fixed;
        const double std = fixed ? scale / std::sqrt(fan_in) : std::sqrt(scale / fan_in);
        stream.truncated_normal_fill(out, first, n, std, fixed ? 2 * std : 2 * scale);
    } else {
        stream.uniform_fill(out, first, n, -1 / std::sqrt(fan_in), 1 / std::sqrt(fan_in));
    }
}

}  // namespace

void initialize_parameters(const ParamTable& table, Tensor params, const ModelConfig& config, uint64_t seed,
                           Context& ctx) {
    constexpr int64_t chunk = 1 << 20;  // elements on the host at a time
    std::vector<double> host(chunk);    // large enough for every type
    for (const ParamPart& part : parts_of(table, params, false)) {
        const ParamSpec& spec = part.spec;
        if (spec.init.kind != ParamInit::weight && spec.init.kind != ParamInit::bias) {
            fill(part.data, spec.scalar() ? spec.init.value : spec.init.kind == ParamInit::ones ? 1 : 0, ctx);
            continue;
        }
        for (int64_t done = 0; done < part.data.numel() && !ctx.counting; done += chunk) {
            const int64_t n = std::min(chunk, part.data.numel() - done), first = part.first + done;
            void* out = host.data();
            switch (params.dtype) {
                case DType::f32: draw(static_cast<float*>(out), first, n, spec, config, seed); break;
                case DType::bf16: draw(static_cast<bf16*>(out), first, n, spec, config, seed); break;
                case DType::f64: draw(static_cast<double*>(out), first, n, spec, config, seed); break;
                case DType::i32: run_error("parameters cannot be ", name_of(params.dtype));
            }
            upload(part.data.slice(done, done + n), out, ctx);
        }
    }
}

void Model::initialize(uint64_t seed) {
    initialize_parameters(table, params, config, seed, ctx);
    refresh_compute_copy();
}

}  // namespace llmc
