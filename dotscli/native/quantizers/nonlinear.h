// IQ4_NL and IQ4_XS: levels are 4-bit numbers of 16 unevenly spaced values. IQ4_NL has one scale
// per 32 weights, IQ4_XS 6-bit scales for 8 sub-blocks of 32 under one scale per 256.
//
// The algorithm is ggml's (ggml-quants.c): quantize_row_iq4_nl_impl and best_index_int8. Here
// every lane is one block (of 32 or of 256).
#pragma once

#include "tile.h"

namespace {

constexpr int kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                             1,    13,   25,  38,  53,  69,  89,  113};

// The level of y is the index of the nearest value, the upper one on a tie: the number of borders
// (half-way points) that are not above y. ggml compares y - lower with upper - y, both rounded.
// As y grows the one never falls and the other never rises, so their order changes once, and that
// is exactly at the border (tests/test_native_quantizers.py). NaN counts as above all borders.
constexpr float border(int k) { return 0.5f * (kValues[k] + kValues[k + 1]); }

inline Ints level_of(Floats y) {
    Ints level = 15 - Ints{};
    for (int k = 0; k < 15; ++k) level += y < border(k);  // a mask that holds counts as -1
    return level;
}

inline Floats value_of(Floats y) {
    Floats value = all(float(kValues[0]));
    for (int k = 0; k < 15; ++k) {
        const Ints gap = (Ints)all(float(kValues[k + 1] - kValues[k]));
        value += (Floats)((y >= border(k)) & gap);
    }
    return value;
}

// The weighted fit x ~ scale * value for one choice of values.
struct Sums {
    Floats vx, vv;  // of w * value * x and w * value^2

    Floats scale() const { return select(vv > 0, vx / vv, Floats{}); }
    // Whether this choice leaves a smaller error than one whose gain (scale * vx) is given.
    Ints beats(Floats gain) const { return (vv > 0) & (vx * vx > gain * vv); }
};

// The scale of 32 weights: takes the largest one to +127, then to -134, -133, ... -120, and keeps
// the inverse scale whose values fit best.
//
// In the second part |inverse| stays between 120 and 134 over the largest weight. No two borders
// of one sign are that close (their ratio is 1.235 at least, 134 / 120 is 1.117), so a weight
// crosses at most one border. It is therefore enough to look up its value at both ends; in
// between, one comparison with the border between these two tells which of them it takes, and the
// products that go into the sums can be had in advance.
Floats fit_nonlinear(const Floats *x, const Floats *w) {
    Floats largest = {}, size = {};
    for (int j = 0; j < 32; ++j) {
        const Floats a = absolute(x[j]);
        const Ints more = a > size;
        size = select(more, a, size);
        largest = select(more, x[j], largest);
    }

    constexpr int kTries = 15;
    Floats inverse[kTries];
    for (int i = 0; i < kTries; ++i) inverse[i] = float(kValues[0] - 7 + i) / largest;
    const Floats opposite = 1.0f / (-largest / float(kValues[0]));

    Sums sums = {};
    Floats middle[32];              // the border that a weight may cross
    Sums below[32], above[32];      // what it adds to the sums on either side of it
    for (int j = 0; j < 32; ++j) {
        const Floats first = value_of(opposite * x[j]);
        sums.vx += w[j] * first * x[j];
        sums.vv += w[j] * first * first;
        const Floats one = value_of(inverse[0] * x[j]);
        const Floats other = value_of(inverse[kTries - 1] * x[j]);
        const Floats lower = smaller(one, other), upper = larger(one, other);
        middle[j] = (lower + upper) * 0.5f;
        below[j] = {w[j] * lower * x[j], w[j] * lower * lower};
        above[j] = {w[j] * upper * x[j], w[j] * upper * upper};
    }
    Floats scale = sums.scale(), gain = scale * sums.vx;

    constexpr int kTogether = 3;  // tries that share the loads
    for (int first = 0; first < kTries; first += kTogether) {
        Sums trial[kTogether] = {};
        for (int j = 0; j < 32; ++j) {
            for (int i = 0; i < kTogether; ++i) {
                const Ints is_below = inverse[first + i] * x[j] < middle[j];
                trial[i].vx += select(is_below, below[j].vx, above[j].vx);
                trial[i].vv += select(is_below, below[j].vv, above[j].vv);
            }
        }
        for (const Sums &sums : trial) {
            const Ints better = sums.beats(gain);
            scale = select(better, sums.scale(), scale);
            gain = select(better, sums.scale() * sums.vx, gain);
        }
    }
    return select(size < kTiny, Floats{}, scale);
}

// Fits the scales of all sub-blocks of a block.
template <int kBlock> void fit_all(const Tile<kBlock> &tile, Floats *scales) {
    Floats energy = {};
    for (const Floats &x : tile.x) energy += x * x;
    energy *= 2.0f / kBlock;
    for (int s = 0; s < kBlock / 32; ++s) {
        const Floats *x = tile.x + 32 * s;
        Floats w[32];
        for (int j = 0; j < 32; ++j) {
            const Floats square = x[j] * x[j];
            w[j] = tile.weighted ? tile.importance[32 * s + j] * square_root(energy + square)
                                 : square;
        }
        scales[s] = fit_nonlinear(x, w);
    }
}

// 1 / scale, or 0 for 0.
inline Floats inverse_or_zero(Floats scale) { return select(scale == 0, Floats{}, 1.0f / scale); }

// 32 weights in 16 bytes, the first 16 in the low nibbles.
void pack_levels(const Floats *x, Floats inverse, Ints *packed) {
    for (int j = 0; j < 16; ++j) {
        packed[j] = level_of(inverse * x[j]) | level_of(inverse * x[j + 16]) << 4;
    }
}

struct IQ4NL {
    static constexpr int kBlock = 32, kBytes = 18;  // d, levels 16

    static void quantize(const Tile<32> &tile, Ints *bytes) {
        Floats scale;
        fit_all(tile, &scale);
        const Ints d = to_half(scale);
        bytes[0] = d;
        bytes[1] = d >> 8;
        pack_levels(tile.x, inverse_or_zero(scale), bytes + 2);
    }
};

struct IQ4XS {
    static constexpr int kBlock = 256, kBytes = 136;  // d, high bits 2, low bits 4, levels 128

    static void quantize(const Tile<256> &tile, Ints *bytes) {
        Floats scales[8], largest = {}, size = {};
        fit_all(tile, scales);
        for (const Floats &scale : scales) {
            const Floats a = absolute(scale);
            const Ints more = a > size;
            size = select(more, a, size);
            largest = select(more, scale, largest);
        }
        const Floats unit = -largest / 32.0f;
        const Floats inverse = inverse_or_zero(unit);
        const Ints d = to_half(unit);
        bytes[0] = d;
        bytes[1] = d >> 8;
        Ints high = {}, codes[8];
        for (int s = 0; s < 8; ++s) {
            const Floats code = nearest_within(inverse * scales[s], -32, 31);
            pack_levels(tile.x + 32 * s, inverse_or_zero(unit * code), bytes + 8 + 16 * s);
            codes[s] = to_ints(code) + 32;
            high |= (codes[s] >> 4) << (2 * s);
        }
        bytes[2] = high;
        bytes[3] = high >> 8;
        for (int s = 0; s < 8; s += 2) bytes[4 + s / 2] = (codes[s] & 15) | (codes[s + 1] & 15) << 4;
    }
};

}  // namespace
