// CUDA's device functions for g++: barriers, warp operations, atomics, cache hints, arithmetic. Names, arguments and
// results as in NVIDIA's CUDA C++ Programming Guide. The hidden last argument of what waits is the caller's place.
#pragma once
#include <math.h>
#include <string.h>

#include <bit>
#include <type_traits>

#include "dev/emu/device.h"

#define EMU_SITE emu::Site site = emu::Site::current()

// ------------------------------------------------------------------------------------------------------------ barriers
inline void __syncthreads(EMU_SITE) { emu::barrier(false, site); }
inline int __syncthreads_count(int predicate, EMU_SITE) { return emu::barrier(predicate != 0, site); }
inline int __syncthreads_or(int predicate, EMU_SITE) { return emu::barrier(predicate != 0, site) > 0; }
inline int __syncthreads_and(int predicate, EMU_SITE) { return emu::barrier(predicate == 0, site) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_SITE) { emu::exchange(emu::WarpOp::sync, mask, {}, site); }
inline void __threadfence() { emu::fence(); }
inline void __threadfence_block() { emu::fence(); }

// ------------------------------------------------------------------------------------------------------------ shuffles
namespace emu {

// The value of lane `source`; junk if that lane takes no part, as it is undefined on the device.
template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2, "shuffles move 2, 4 or 8 bytes");
    Packet mine{};
    __builtin_memcpy(mine.word, &value, sizeof value);
    const Packet* lanes = exchange(WarpOp::shuffle, mask, mine, site);
    if (mask >> source & 1) __builtin_memcpy(&value, lanes[source].word, sizeof value);
    else __builtin_memset(static_cast<void*>(&value), 0xff, sizeof value);
    return value;
}

}  // namespace emu

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, EMU_SITE) {
    return emu::shuffle(mask, value, (emu::lane() & ~(width - 1)) | (source & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, EMU_SITE) {
    const int lane = emu::lane(), source = lane ^ bits;
    const bool later_part = (source & ~(width - 1)) > (lane & ~(width - 1));  // those cannot be read
    return emu::shuffle(mask, value, later_part ? lane : source, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = warpSize, EMU_SITE) {
    const int lane = emu::lane();
    const bool inside = (lane & (width - 1)) >= int(by);
    return emu::shuffle(mask, value, inside ? lane - int(by) : lane, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = warpSize, EMU_SITE) {
    const int lane = emu::lane();
    const bool inside = (lane & (width - 1)) + int(by) < width;
    return emu::shuffle(mask, value, inside ? lane + int(by) : lane, site);
}

// --------------------------------------------------------------------------------------------- votes, matches, reduces
inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_SITE) {
    const emu::Packet mine{{uint64_t(predicate != 0)}};
    return unsigned(emu::exchange(emu::WarpOp::vote, mask, mine, site, emu::combine_votes)[emu::lane()].word[0]);
}
inline int __any_sync(unsigned mask, int predicate, EMU_SITE) { return __ballot_sync(mask, predicate, site) != 0; }
inline int __all_sync(unsigned mask, int predicate, EMU_SITE) { return __ballot_sync(mask, !predicate, site) == 0; }

template <class T>
unsigned __match_any_sync(unsigned mask, T value, EMU_SITE) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "matches compare 4 or 8 bytes");
    emu::Packet mine{};
    __builtin_memcpy(mine.word, &value, sizeof value);
    return unsigned(emu::exchange(emu::WarpOp::match, mask, mine, site, emu::combine_matches)[emu::lane()].word[0]);
}

namespace emu {

template <class F>
unsigned reduce(unsigned mask, unsigned value, Site site, F combine) {
    const Packet* lanes = exchange(WarpOp::shuffle, mask, {{value}}, site);
    unsigned all = unsigned(lanes[__builtin_ctz(mask)].word[0]);
    for (unsigned rest = mask & (mask - 1); rest; rest &= rest - 1)
        all = unsigned(combine(all, unsigned(lanes[__builtin_ctz(rest)].word[0])));
    return all;
}

}  // namespace emu

template <class T>
T __reduce_add_sync(unsigned mask, T value, EMU_SITE) {
    return T(emu::reduce(mask, unsigned(value), site, [](unsigned a, unsigned b) { return a + b; }));
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, EMU_SITE) {
    return T(emu::reduce(mask, unsigned(value), site, [](unsigned a, unsigned b) { return T(a) < T(b) ? a : b; }));
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, EMU_SITE) {
    return T(emu::reduce(mask, unsigned(value), site, [](unsigned a, unsigned b) { return T(a) > T(b) ? a : b; }));
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, EMU_SITE) {
    return emu::reduce(mask, value, site, [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, EMU_SITE) {
    return emu::reduce(mask, value, site, [](unsigned a, unsigned b) { return a & b; });
}

// ------------------------------------------------------------------------------------------------------------- atomics
namespace emu {

// *p = f(*p) in one step; the value before. Relaxed: an atomic operation orders no other memory, as on the device.
template <class T, class F>
T atomic_update(T* p, F f) {
    using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
    static_assert(sizeof(Bits) == sizeof(T));
    Bits* bits = reinterpret_cast<Bits*>(p);
    Bits before = __atomic_load_n(bits, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(bits, &before, std::bit_cast<Bits>(T(f(std::bit_cast<T>(before)))), true,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return std::bit_cast<T>(before);
}

}  // namespace emu

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> x) {
    return emu::atomic_update(p, [=](T old) { return old + x; });
}
template <class T>
T atomicSub(T* p, std::type_identity_t<T> x) {
    return emu::atomic_update(p, [=](T old) { return old - x; });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> x) {
    static_assert(std::is_integral_v<T>, "CUDA has atomicMax for integers only");
    return emu::atomic_update(p, [=](T old) { return old > x ? old : x; });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> x) {
    static_assert(std::is_integral_v<T>, "CUDA has atomicMin for integers only");
    return emu::atomic_update(p, [=](T old) { return old < x ? old : x; });
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> x) {
    return emu::atomic_update(p, [=](T old) { return old & x; });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> x) {
    return emu::atomic_update(p, [=](T old) { return old | x; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> x) {
    return emu::atomic_update(p, [=](T) { return x; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> x) {
    return emu::atomic_update(p, [=](T old) { return old == compare ? x : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned last) {
    return emu::atomic_update(p, [=](unsigned old) { return old >= last ? 0u : old + 1; });
}

// -------------------------------------------------------------------------------------------------------- cache hints
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldca(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldlu(const T* p) { return *p; }
template <class T> T __ldcv(const T* p) { return *p; }
template <class T> void __stwb(T* p, std::type_identity_t<T> x) { *p = x; }
template <class T> void __stcg(T* p, std::type_identity_t<T> x) { *p = x; }
template <class T> void __stcs(T* p, std::type_identity_t<T> x) { *p = x; }
template <class T> void __stwt(T* p, std::type_identity_t<T> x) { *p = x; }

// ---------------------------------------------------------------------------------------------------------- arithmetic
// The functions named __... are fast approximations on the device; here they are exact: tests need a tolerance anyway.
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline void __sincosf(float x, float* sine, float* cosine) { *sine = sinf(x), *cosine = cosf(x); }
inline void sincospif(float x, float* sine, float* cosine) {
    *sine = float(sin(M_PI * double(x))), *cosine = float(cos(M_PI * double(x)));
}
inline float __tanhf(float x) { return tanhf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1 / sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __double2float_rn(double x) { return float(x); }
inline int __float2int_rn(float x) { return int(rintf(x)); }
inline int __float2int_rz(float x) { return int(x); }
inline int __float2int_rd(float x) { return int(floorf(x)); }
inline int __float2int_ru(float x) { return int(ceilf(x)); }

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned(uint64_t(x) * y >> 32); }
inline int __mulhi(int x, int y) { return int(int64_t(x) * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (x >> i & 1) << (31 - i);
    return reversed;
}

// CUDA's min and max take two different types, and of a number and a NaN they return the number.
template <class A, class B>
    requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> min(A x, B y) {
    using C = std::common_type_t<A, B>;
    return C(x) < C(y) || y != y ? C(x) : C(y);
}
template <class A, class B>
    requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> max(A x, B y) {
    using C = std::common_type_t<A, B>;
    return C(x) > C(y) || y != y ? C(x) : C(y);
}
