// Lanes: a vector of floats or ints in which every element belongs to another block.
//
// ggml's quantizers are long chains of scalar float operations over one block, and their bytes
// depend on the order of every addition. The kernels beside this file keep that order: they are
// written like scalar code, and each lane runs it on a block of its own. No operation ever mixes
// two lanes, so vectors of 4, 8 and 16 lanes give the same bytes.
//
// Written in the vector extensions that gcc and clang share, so that one text serves every
// instruction set. What is compiled for one processor must not be merged with what is compiled
// for another: everything is in an unnamed namespace, and no header with inline functions of its
// own (such as <algorithm>) may be included here.
#pragma once

#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef DOTS_LANES
#error "DOTS_LANES: the number of lanes that this file is compiled for"
#endif

// A contracted a * b + c rounds once where ggml rounds twice.
#if defined(__FAST_MATH__)
#error "the bytes depend on IEEE arithmetic: compile without -ffast-math"
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "blocks are assembled in 32-bit words");

namespace {

constexpr int kLanes = DOTS_LANES;

constexpr float kTiny = 1e-15f;  // a largest weight or scale below it counts as zero (GROUP_MAX_EPS)

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));  // also a mask: all ones or zero

inline Floats all(float value) { return value - Floats{}; }

inline Floats select(Ints mask, Floats a, Floats b) { return mask ? a : b; }
inline Ints select(Ints mask, Ints a, Ints b) { return mask ? a : b; }

// a > b ? a : b and a < b ? a : b, also where one is NaN or both are zeros. That is what the
// instructions of x86 do, unlike fmax and fmin.
#if defined(__AVX512F__)
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats square_root(Floats x) { return _mm512_sqrt_ps(x); }
#elif defined(__AVX2__)
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats square_root(Floats x) { return _mm256_sqrt_ps(x); }
#elif defined(__SSE2__)
inline Floats larger(Floats a, Floats b) { return _mm_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm_min_ps(a, b); }
inline Floats square_root(Floats x) { return _mm_sqrt_ps(x); }
#else
inline Floats larger(Floats a, Floats b) { return select(a > b, a, b); }
inline Floats smaller(Floats a, Floats b) { return select(a < b, a, b); }
inline Floats square_root(Floats x) {
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
    return x;
}
#endif

inline Floats absolute(Floats x) { return (Floats)((Ints)x & 0x7fffffff); }

inline bool any(Ints mask) {
    int32_t found = 0;
    for (int lane = 0; lane < kLanes; ++lane) found |= mask[lane];
    return found != 0;
}

inline Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }
inline Ints to_ints(Floats x) { return __builtin_convertvector(x, Ints); }

// Rounding as ggml's nearest_int does it: after adding 1.5 * 2^23 the last bit of the mantissa is
// worth one, so the hardware has rounded to the nearest integer, ties to even, and the low 23 bits
// hold that integer plus 2^22. Beyond +-2^22, and for NaN and infinity, those bits are what they
// are: the result wraps, and ggml's does too.
//
// snapped(x) is kSnap + the integer, as a float: limits can be laid on it with float comparisons,
// and taking kSnap off again is exact.
constexpr float kSnap = 12582912.0f;

inline Floats snapped(Floats x) { return (Floats)(((Ints)(x + kSnap) & 0x007fffff) | 0x4b000000); }

inline Floats unsnapped(Floats x, float low, float high) {
    return smaller(larger(x, all(kSnap + low)), all(kSnap + high)) - kSnap;
}

inline Floats nearest(Floats x) { return snapped(x) - kSnap; }
inline Floats nearest_within(Floats x, float low, float high) {
    return unsnapped(snapped(x), low, high);
}
// The same for x that are known to lie within +-2^22, where nothing wraps.
inline Floats small_nearest_within(Floats x, float low, float high) {
    return unsnapped(x + kSnap, low, high);
}

// IEEE half precision in the low 16 bits, rounded to nearest even.
inline Ints to_half(Floats x) {
    const Ints bits = (Ints)x, size = bits & 0x7fffffff;
    // Below 2^-14 a half counts in units of 2^-24, which is the last bit of a float next to 0.5.
    const Ints subnormal = (Ints)((Floats)size + 0.5f) - 0x3f000000;
    const Ints normal = (size - (112 << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
    Ints half = select(size < 0x38800000, subnormal, normal);
    half = select(size >= 0x47800000, 0x7c00 - Ints{}, half);
    half = select(size > 0x7f800000, 0x7e00 - Ints{}, half);
    return half | ((bits >> 16) & 0x8000);
}

inline Floats from_half(Ints half) {
    const Ints size = half & 0x7fff;
    const Ints normal = (size << 13) + (112 << 23);
    const Ints subnormal = (Ints)(to_floats(size) * 0x1p-24f);
    Ints bits = select(size < 0x0400, subnormal, normal);
    bits = select(size >= 0x7c00, normal + (112 << 23), bits);
    return (Floats)(bits | ((half & 0x8000) << 16));
}

}  // namespace
