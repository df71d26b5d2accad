// The arithmetic of emulated cuBLASLt: float products in float, as CUBLAS_COMPUTE_32F, by plain loops on packed copies.
#include <cmath>
#include <cstring>
#include <vector>

#include "dev/emu/cublaslt.h"
#include "dev/emu/sanitizers.h"
#include "dev/emu/settings.h"

namespace emu {
namespace {

float get(const Matrix& x, int64_t index) {
    if (x.type == CUDA_R_32F) return reinterpret_cast<const float*>(x.data)[index];
    const uint32_t bits = uint32_t(reinterpret_cast<const uint16_t*>(x.data)[index]) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Round to nearest, ties to even; a NaN stays one.
void put(const Matrix& x, int64_t index, float value) {
    if (x.type == CUDA_R_32F) {
        reinterpret_cast<float*>(x.data)[index] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value) bits = 0x7fff0000;
    else bits += 0x7fff + (bits >> 16 & 1);
    reinterpret_cast<uint16_t*>(x.data)[index] = uint16_t(bits >> 16);
}

// Blocks of 16 rows of d by 4 columns stay in registers while the sum over k runs.
typedef float Lanes __attribute__((vector_size(64)));
constexpr int64_t lanes = 16, columns = 4;

// `count` rows of op(x) cut into strips of `width`: strip after strip, p after p, zeros behind the last row.
// Element (i, p) of op(x) lies at i * step_i + p * step_p.
template <int64_t width>
std::vector<float> pack(const Matrix& x, int64_t offset, int64_t count, int64_t k, int64_t step_i, int64_t step_p) {
    const int64_t strips = (count + width - 1) / width;
    std::vector<float> packed(size_t(strips * width * k), 0.0f);
    for (int64_t i = 0; i < count; i++) {
        float* to = packed.data() + i / width * width * k + i % width;
        for (int64_t p = 0; p < k; p++) to[p * width] = get(x, offset + i * step_i + p * step_p);
    }
    return packed;
}

float gelu(float x) { return 0.5f * x * (1 + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x))); }
float gelu_slope(float x) {
    const float t = std::tanh(0.7978845608f * (x + 0.044715f * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.7978845608f * (1 + 3 * 0.044715f * x * x);
}

// Stores one sum. ReLU as users report cuBLASLt's to be: NaN becomes 0.
void finish(const Product& p, int64_t batch, int64_t i, int64_t j, float sum) {
    float value = p.alpha * sum;
    if (p.beta != 0) value += p.beta * get(p.c, batch * p.c.stride + j * p.c.ld + i);
    if (p.epilogue & CUBLASLT_EPILOGUE_BIAS) value += get(p.bias, batch * p.bias.stride + i);
    const int64_t aux = batch * p.aux.stride + j * p.aux.ld + i;
    switch (int(p.epilogue) & ~int(CUBLASLT_EPILOGUE_BIAS)) {
        case CUBLASLT_EPILOGUE_RELU: value = value > 0 ? value : 0; break;
        case CUBLASLT_EPILOGUE_GELU_AUX: put(p.aux, aux, value); [[fallthrough]];
        case CUBLASLT_EPILOGUE_GELU: value = gelu(value); break;
        case CUBLASLT_EPILOGUE_DGELU: value *= gelu_slope(get(p.aux, aux)); break;
        default: break;
    }
    put(p.d, batch * p.d.stride + j * p.d.ld + i, value);
}

void multiply_one(const Product& p, int64_t batch) {
    const int64_t m = p.m(), n = p.n(), k = p.k();
    const std::vector<float> a = pack<lanes>(p.a, batch * p.a.stride, m, k, p.transpose_a ? p.a.ld : 1,
                                             p.transpose_a ? 1 : p.a.ld);
    const std::vector<float> b = pack<columns>(p.b, batch * p.b.stride, n, k, p.transpose_b ? 1 : p.b.ld,
                                               p.transpose_b ? p.b.ld : 1);
    for (int64_t j = 0; j < n; j += columns)
        for (int64_t i = 0; i < m; i += lanes) {
            const float *strip_a = a.data() + i * k, *strip_b = b.data() + j * k;
            Lanes sum[columns] = {};
            for (int64_t q = 0; q < k; q++) {
                Lanes x;
                memcpy(&x, strip_a + q * lanes, sizeof x);
                for (int64_t c = 0; c < columns; c++) sum[c] += x * strip_b[q * columns + c];
            }
            for (int64_t c = 0; c < columns && j + c < n; c++)
                for (int64_t l = 0; l < lanes && i + l < m; l++) finish(p, batch, i + l, j + c, sum[c][l]);
        }
}

// This file is not instrumented, so ASan is asked: a matrix with a wrong shape reaches beyond its memory.
void check_memory([[maybe_unused]] const char* name, [[maybe_unused]] const Matrix& x) {
#ifdef EMU_ASAN
    if (x.data && __asan_region_is_poisoned(x.data, size_t(x.bytes())))
        fail("cuBLASLt: matrix %s, %ld x %ld, leading dimension %ld, reaches out of its memory", name, long(x.rows),
             long(x.columns), long(x.ld));
#endif
}

}  // namespace

void multiply(const Product& p) {
    const Quiet quiet;
    check_memory("A", p.a), check_memory("B", p.b), check_memory("D", p.d);
    check_memory("bias", p.bias), check_memory("aux", p.aux);
    for (int64_t batch = 0; batch < p.d.batch; batch++) multiply_one(p, batch);
}

}  // namespace emu
