// Element types of tensors, and bf16 on the host.
#pragma once
#include <bit>
#include <cstdint>
#include <string>

namespace llmc {

enum class DType : uint8_t { f32, bf16, f64, i32 };

// Bytes of one element.
constexpr int64_t size_of(DType t) {
    switch (t) {
        case DType::f32:
            return 4;
        case DType::bf16:
            return 2;
        case DType::f64:
            return 8;
        case DType::i32:
            return 4;
    }
    return 0;
}

// The name of a type as in safetensors.
constexpr const char* name_of(DType t) {
    switch (t) {
        case DType::f32:
            return "F32";
        case DType::bf16:
            return "BF16";
        case DType::f64:
            return "F64";
        case DType::i32:
            return "I32";
    }
    return "?";
}

// bfloat16: the upper half of a float32. Storage only: arithmetic happens in float.
struct bf16 {
    uint16_t bits = 0;
    bf16() = default;
    bf16(float x) : bits(round(x)) {}
    bf16(const bf16&) = default;
    bf16& operator=(const bf16& x) {  // written out because GCC 12 vectorises this and not the default
        bits = x.bits;
        return *this;
    }
    operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }

    // Round to nearest, ties to even. A NaN stays a (quiet) NaN: plain rounding could carry it into infinity.
    static uint16_t round(float x) {
        uint32_t u = std::bit_cast<uint32_t>(x);
        if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 0x40);
        return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    }
};

// dtype_of<T>::value: the DType of a C++ type.
template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
    static constexpr DType value = DType::f32;
};
template <>
struct dtype_of<bf16> {
    static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of<double> {
    static constexpr DType value = DType::f64;
};
template <>
struct dtype_of<int32_t> {
    static constexpr DType value = DType::i32;
};

}  // namespace llmc
