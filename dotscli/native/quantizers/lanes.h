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

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));  // also a mask: all ones or zero

inline Floats all(float value) { return value - Floats{}; }

inline Floats select(Ints mask, Floats a, Floats b) { return mask ? a : b; }
inline Ints select(Ints mask, Ints a, Ints b) { return mask ? a : b; }

// Comparisons, not fmin and fmax: with NaN or zeros of both signs the order of arguments counts.
inline Floats larger(Floats a, Floats b) { return select(a > b, a, b); }
inline Floats smaller(Floats a, Floats b) { return select(a < b, a, b); }
inline Ints clamp(Ints x, int32_t low, int32_t high) {
    const Ints floor = low - Ints{}, ceiling = high - Ints{};
    x = select(x < floor, floor, x);
    return select(x > ceiling, ceiling, x);
}

inline Floats absolute(Floats x) { return (Floats)((Ints)x & 0x7fffffff); }

inline bool any(Ints mask) {
    int32_t found = 0;
    for (int lane = 0; lane < kLanes; ++lane) found |= mask[lane];
    return found != 0;
}

inline Floats square_root(Floats x) {
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
    return x;
}

inline Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }

// Rounding as ggml's nearest_int does it: after adding 1.5 * 2^23 the last bit of the mantissa is
// worth one, so the hardware has rounded to the nearest integer, ties to even, and the low 23 bits
// hold that integer plus 2^22. Beyond +-2^22, and for NaN and infinity, those bits are what they
// are: the result wraps, and ggml's does too.
constexpr float kSnap = 12582912.0f;
constexpr int32_t kSnapBits = 0x4b400000, kMantissa = 0x007fffff, kHalfRange = 0x00400000;

inline Ints nearest(Floats x) { return ((Ints)(x + kSnap) & kMantissa) - kHalfRange; }

// nearest(x) limited to low..high and made a float again, without converting: the limits are laid
// on the bits, and kSnap is taken off again, which is exact.
inline Floats nearest_within(Floats x, int32_t low, int32_t high) {
    const Ints bits = (Ints)(x + kSnap) & kMantissa;
    const Ints limited = clamp(bits, kHalfRange + low, kHalfRange + high);
    return (Floats)(limited | (kSnapBits & ~kMantissa)) - kSnap;
}

// The same for x known to lie within +-2^22, where nothing wraps and the exponent stays put.
inline Floats small_nearest_within(Floats x, int32_t low, int32_t high) {
    return (Floats)clamp((Ints)(x + kSnap), kSnapBits + low, kSnapBits + high) - kSnap;
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
