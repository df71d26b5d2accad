// Element types of tensors, and bf16 on the host.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>

namespace llmc {

enum class DType : uint8_t { f32, bf16, f64, i32 };

// A new type is a row here and a C++ type below (dtype_of). Code that does something for each type has a switch without
// default: the compiler then lists the places where the new type is missing.
struct DTypeTraits {
    DType type;
    const char* name;  // as safetensors spells it
    int64_t size;      // bytes
    DType arithmetic;  // what sums, statistics and gradients of parameters are in, beside activations of this type (i32
                       // is never one: checks that ask for its arithmetic type refuse it by that)
};
inline constexpr DTypeTraits dtype_table[] = {
    {DType::f32, "F32", 4, DType::f32},
    {DType::bf16, "BF16", 2, DType::f32},
    {DType::f64, "F64", 8, DType::f64},
    {DType::i32, "I32", 4, DType::f32},
};
constexpr bool in_order_of_dtype() {
    uint8_t number = 0;
    for (const DTypeTraits& row : dtype_table)
        if (row.type != DType(number++)) return false;
    return true;
}
static_assert(in_order_of_dtype(), "the row of a type is found by its number");

// Bytes of one element.
constexpr int64_t size_of(DType t) { return dtype_table[size_t(t)].size; }
// The name of a type as in safetensors.
constexpr const char* name_of(DType t) { return dtype_table[size_t(t)].name; }
// The type of statistics, gradients of parameters and softmax weights beside activations of type t.
constexpr DType arithmetic_dtype(DType t) { return dtype_table[size_t(t)].arithmetic; }

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
