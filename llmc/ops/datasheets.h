// What NVIDIA's datasheets say about its GPUs, once for everything that compares with it or calculates on paper.
#pragma once
#include "llmc/base/dtype.h"

namespace llmc {

// FLOP/s of matrix products of this type, from those on tensor cores (bf16) and without (fp32).
constexpr double product_rate(DType type, double bf16, double fp32) {
    switch (type) {
        case DType::bf16: return bf16;
        case DType::f32:
        case DType::f64:
        case DType::i32: break;
    }
    return fp32;
}

struct Datasheet {
    const char* name;      // whole words of the name that the device gives itself
    double bf16, fp32;     // FLOP/s: dense on tensor cores; without them (fp32 here never is TF32)
    double bandwidth = 0;  // of its memory, bytes/s; 0 from here on: not written down for this GPU
    double memory = 0;     // bytes
    double link = 0;       // to the other GPUs of its node (NVLink), bytes/s in one direction
    int per_node = 0;      // GPUs of a node
};

// SXM modules and HGX boards where the name does not say another form. A name can contain another: first match wins.
inline constexpr Datasheet datasheets[] = {
    {"GB200", 2500e12, 80e12},
    {"B200", 2250e12, 75e12, 8e12, 180e9, 900e9, 8},
    {"B100", 1750e12, 60e12},
    {"GH200", 989e12, 67e12},
    {"H200", 989e12, 67e12, 4.8e12, 141e9, 450e9, 8},
    {"H100 PCIe", 756e12, 51e12},
    {"H100 NVL", 835e12, 60e12},
    {"H100", 989e12, 67e12, 3.35e12, 80e9, 450e9, 8},
    {"A100", 312e12, 19.5e12, 2.039e12, 80e9, 300e9, 8},
    {"A800", 312e12, 19.5e12},
    {"H800", 989e12, 67e12},
    {"A40", 150e12, 37.4e12},
    {"A10", 125e12, 31.2e12},
    {"L40S", 362e12, 91.6e12},
    {"L40", 181e12, 90.5e12},
    {"L4", 121e12, 30.3e12},
    {"RTX 5090", 210e12, 105e12},
    {"RTX 4090", 165e12, 82.6e12},
    {"RTX 3090", 71e12, 35.6e12},
};

}  // namespace llmc
