// Random numbers in kernels.
#pragma once
#include "llmc/ops/cuda/gpu.cuh"

namespace llmc {

// Philox4x32-10, as in llmc/base/rng.h.
__device__ inline uint4 philox(uint4 c, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        const uint32_t high0 = __umulhi(0xD2511F53u, c.x), high1 = __umulhi(0xCD9E8D57u, c.z);
        c = make_uint4(high1 ^ c.y ^ k0, 0xCD9E8D57u * c.z, high0 ^ c.w ^ k1, 0xD2511F53u * c.x);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

}  // namespace llmc
